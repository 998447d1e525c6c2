"""What to run here: which quantisation of a model fits, and how fast each would be.

Everything is planned from headers alone: nothing is downloaded.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from agents.errors import ProjectError
from supervisor.core.catalogue import (
    TASKS,
    CatalogueModel,
    estimated_facts,
    estimated_shape,
    for_task,
    named,
)
from supervisor.core.model_reference import OfferedModel, parse_reference
from supervisor.core.suggesting import (
    USUAL_MIN_SPEED,
    Suggestion,
    Suggestions,
    best_first,
    in_words,
    is_fine,
    judged,
    next_command,
    no_fit,
    nothing_fits,
    recommended,
    said,
    usual_ctx,
)
from supervisor.errors import (
    BadRequest,
    HubOffline,
    HubUnreachable,
    ModelBroken,
    ModelForbidden,
    ModelMissing,
)
from supervisor.ports import Model
from supervisor.service.fitting import Fitter, StandIns

MOST_OF_REPO: Final = 48
"""Models of one repository that are shown; those of real ones are fewer than forty."""

AT_ONCE: Final = 2
"""Questions; others wait."""

HEADERS_AT_ONCE: Final = 4
"""Each is some megabytes on the disk while it is planned with."""

REFINED: Final = 3
"""Of a task, how many models are looked up on the hub."""

REFINE_WITHIN_S: Final = 120.0


class OpenRepo(Protocol):
    """A repository of the hub, in one version."""

    models: tuple[OfferedModel, ...]

    @property
    def repo(self) -> str: ...

    @property
    def ctx_train_tokens(self) -> int | None:
        """Known after ``begin``."""
        ...

    def version(self, reference: str) -> str: ...

    async def begin(self) -> None:
        """Before the first ``read``. Raises ``ProjectError``, as that does."""
        ...

    async def read(self, reference: str, folder: Path) -> Model: ...


class Repos(Protocol):
    """Opens repositories of the hub. Raises ``ProjectError``."""

    async def open(self, repo: str) -> OpenRepo: ...


@dataclass(frozen=True, slots=True)
class SuggestWish:
    """What is asked: a repository, a task or the id of a model; empty is anything."""

    asked: str = ""
    ctx_tokens: int | None = None
    min_tokens_per_s: float = USUAL_MIN_SPEED


@dataclass(frozen=True, slots=True)
class SuggestProgress:
    """How far it is: steps done, of how many."""

    step: str
    done: int
    total: int


Tell = Callable[[SuggestProgress], None]
Row = Callable[[OfferedModel], Awaitable[Suggestion]]
"""Makes the suggestion of one candidate."""


class Suggester:
    """Answers what to run."""

    def __init__(
        self,
        fitter: Fitter,
        repos: Repos,
        catalogue: Callable[[], Sequence[CatalogueModel]],
        folder: Path,
    ) -> None:
        """
        Args:
            fitter: Plans them.
            repos: The hub.
            catalogue: The starting list, the most capable first.
            folder: For stand-ins while they are planned with; is made if it does not exist.
        """
        self.fitter, self._repos, self._catalogue = fitter, repos, catalogue
        self._folder = folder
        self._turns = asyncio.Semaphore(AT_ONCE)
        StandIns.sweep(folder)

    async def suggest(self, wish: SuggestWish, tell: Tell) -> Suggestions:
        """What to run of a repository, for a task, or at all.

        Raises:
            BadRequest: It is neither a repository nor a task nor a known model.
            ProjectError: There are no devices, or the hub does not give a repository that was
                asked for; says why.
        """
        if self._turns.locked():
            tell(SuggestProgress("waiting for other questions", 0, 1))
        async with self._turns:
            return await self._suggested(wish, tell)

    async def _suggested(self, wish: SuggestWish, tell: Tell) -> Suggestions:
        asked = wish.asked.strip()
        known = named(self._catalogue(), asked)
        if not asked or asked.lower() in TASKS:
            return await self._of_task(asked.lower(), wish, tell)
        repo = known.repo if known else asked
        reference = parse_reference(repo)
        if reference is None:
            ids = ", ".join(model.id for model in self._catalogue())
            raise BadRequest(
                f"{asked!r} is no repository, task or known model; give OWNER/REPO, one of"
                f" {', '.join(TASKS)}, or one of {ids}"
            )
        known = known or next((m for m in self._catalogue() if m.repo == reference.repo), None)
        try:
            return await self._of_repo(reference.repo, wish, tell)
        except (HubUnreachable, HubOffline) as exc:
            if known is None:
                raise
            rows = [await self._estimate(known, model, wish) for model in _estimates(known)]
            rows.sort(key=lambda row: -row.size_bytes)
            return self._answer(wish, rows, [f"Sizes and speeds are estimates: {exc}."])

    # -- a repository ----------------------------------------------------------------------------

    async def _of_repo(self, repo: str, wish: SuggestWish, tell: Tell) -> Suggestions:
        tell(SuggestProgress(f"asking for {repo}", 0, 1))
        opened = await self._repos.open(repo)
        total, done = min(len(opened.models), MOST_OF_REPO), 0
        turns = asyncio.Semaphore(HEADERS_AT_ONCE)

        async def made(model: OfferedModel, folder: Path) -> Suggestion:
            nonlocal done
            async with turns:
                row = await self._remote_row(opened, model, wish, folder)
            done += 1
            tell(SuggestProgress(f"planned {model.label}", done, total))
            return row

        with StandIns(self._folder) as folder:
            tell(SuggestProgress("reading a header", 0, total))
            await opened.begin()
            models = await self._worth_a_look(opened, wish, folder)
            rows = await _all(made(model, folder) for model in models)
        rows.sort(key=lambda row: (-row.size_bytes, row.reference))
        return self._answer(wish, rows, self._notes(opened))

    async def _worth_a_look(
        self, opened: OpenRepo, wish: SuggestWish, folder: Path
    ) -> Sequence[OfferedModel]:
        """All of them; of many those that are about as large as the best."""

        async def row(model: OfferedModel) -> Suggestion:
            return await self._remote_row(opened, model, wish, folder)

        models = opened.models
        if len(models) <= MOST_OF_REPO:
            return models
        best = await _best(models, row, wish.min_tokens_per_s)
        at = [model.reference for model in models].index(best.reference)
        start = min(max(0, at - MOST_OF_REPO // 2), len(models) - MOST_OF_REPO)
        return models[start : start + MOST_OF_REPO]

    def _answer(
        self, wish: SuggestWish, rows: Sequence[Suggestion], notes: Sequence[str]
    ) -> Suggestions:
        found = judged(rows, wish.min_tokens_per_s)
        chosen = next((row for row in found if row.is_recommended), None)
        return Suggestions(
            asked=wish.asked,
            ctx_tokens=wish.ctx_tokens,
            min_tokens_per_s=wish.min_tokens_per_s,
            suggestions=found,
            words=f"{chosen.reason}." if chosen else nothing_fits(found),
            command=next_command(chosen) if chosen else "",
            notes=tuple(notes),
        )

    def _notes(self, opened: OpenRepo) -> list[str]:
        more = len(opened.models) - MOST_OF_REPO
        notes = []
        if more > 0:
            notes = [f"{more} more models of {opened.repo} are larger or smaller by far."]
        if not self.fitter.has_engine:
            notes.append("The engine here cannot check memory, so our own formulas decided.")
        return notes

    async def _remote_row(
        self, opened: OpenRepo, model: OfferedModel, wish: SuggestWish, folder: Path
    ) -> Suggestion:
        async def read() -> Model:
            return await opened.read(model.reference, folder)

        key, trained = ("hub", opened.version(model.reference)), opened.ctx_train_tokens
        try:
            fit = await self.fitter.of(key, model.reference, wish.ctx_tokens, trained, read)
        except (ModelBroken, ModelMissing) as exc:
            fit = no_fit(wish.ctx_tokens or usual_ctx(trained), str(exc), exc.code)
        return Suggestion(
            reference=model.reference,
            repo=opened.repo,
            label=model.label,
            size_bytes=model.size_bytes,
            fit=fit,
        )

    # -- a task ------------------------------------------------------------------------------------

    async def _of_task(self, task: str, wish: SuggestWish, tell: Tell) -> Suggestions:
        models = for_task(self._catalogue(), task)
        total, rows = len(models) + REFINED, list[Suggestion]()
        for number, model in enumerate(models):
            tell(SuggestProgress(f"estimating {model.id}", number, total))
            rows.append(await self._estimated(model, wish))
        rows = best_first(rows, wish.min_tokens_per_s)
        rows, notes = await self._refined(rows, wish, tell, len(models))
        rows = best_first(rows, wish.min_tokens_per_s)
        chosen = rows[0] if rows and rows[0].fit.fits else None
        found = tuple(
            row.model_copy(
                update={"is_recommended": row is chosen, "reason": f"{row.id}, {said(row)}"}
            )
            for row in rows
        )
        words = nothing_fits(found)
        if chosen:
            words = f"{chosen.id}, {in_words(chosen, found, wish.min_tokens_per_s)}."
            words += f" {chosen.about}"
        return Suggestions(
            asked=wish.asked,
            ctx_tokens=wish.ctx_tokens,
            min_tokens_per_s=wish.min_tokens_per_s,
            suggestions=found,
            words=words,
            command=next_command(chosen) if chosen else "",
            notes=tuple(notes),
        )

    async def _estimated(self, model: CatalogueModel, wish: SuggestWish) -> Suggestion:
        """The best quantisation of a model, by its published sizes alone."""

        async def row(candidate: OfferedModel) -> Suggestion:
            return await self._estimate(model, candidate, wish)

        return await _best(_estimates(model), row, wish.min_tokens_per_s)

    async def _estimate(
        self, model: CatalogueModel, candidate: OfferedModel, wish: SuggestWish
    ) -> Suggestion:
        reference, label = candidate.reference, candidate.label

        async def read() -> Model:
            facts = estimated_facts(model, label)
            return Model(facts, estimated_shape(model, label), is_estimate=True)

        key, trained = ("estimate", model.id, label), model.ctx_train_tokens
        fit = await self.fitter.of(key, reference, wish.ctx_tokens, trained, read)
        return Suggestion(
            reference=reference,
            repo=model.repo,
            label=label,
            size_bytes=candidate.size_bytes,
            fit=fit,
            **_told(model),
        )

    async def _refined(
        self, rows: Sequence[Suggestion], wish: SuggestWish, tell: Tell, done: int
    ) -> tuple[list[Suggestion], list[str]]:
        """With headers in place of estimates for the first that fit, if the hub gives them."""
        found, notes, total = list(rows), list[str](), done + REFINED
        fitting = [index for index, row in enumerate(rows) if row.fit.fits][:REFINED]
        try:
            async with asyncio.timeout(REFINE_WITHIN_S):
                for number, index in enumerate(fitting):
                    tell(SuggestProgress(f"asking for {rows[index].repo}", done + number, total))
                    try:
                        found[index] = await self._looked_up(rows[index], wish)
                    except (ModelMissing, ModelForbidden, ModelBroken) as exc:
                        notes.append(f"{rows[index].id} is estimated: {exc}.")
        except ProjectError as exc:
            notes.append(f"Sizes and speeds are estimates: {exc}.")
        except TimeoutError:
            notes.append(f"The hub took more than {REFINE_WITHIN_S:g} s, so some are estimates.")
        if not notes and any(row.fit.is_estimate for row in found):
            notes.append("Those marked \u2248 are estimates; name a model to have it looked up.")
        return found, notes

    async def _looked_up(self, row: Suggestion, wish: SuggestWish) -> Suggestion:
        opened = await self._repos.open(row.repo)
        await opened.begin()
        told = {"id": row.id, "licence": row.licence, "about": row.about}
        with StandIns(self._folder) as folder:

            async def made(model: OfferedModel) -> Suggestion:
                found = await self._remote_row(opened, model, wish, folder)
                return found.model_copy(update=told)

            return await _best(opened.models, made, wish.min_tokens_per_s)


def _estimates(model: CatalogueModel) -> list[OfferedModel]:
    """Its quantisations, the smallest first."""
    return [
        OfferedModel(
            reference=model.reference(label),
            label=label,
            size_bytes=model.size_bytes(label),
            parts=1,
        )
        for label in sorted(model.quantisations, key=model.size_bytes)
    ]


async def _best(models: Sequence[OfferedModel], row: Row, min_tokens_per_s: float) -> Suggestion:
    """The recommended of several, the smallest first, with few of them planned.

    A larger one needs more memory and more time per token, so halving finds the largest that is
    good enough; those of less than four bits are tried only where nothing finer is.
    """
    fine = [model for model in models if is_fine(model.label)]
    coarse = [model for model in models if not is_fine(model.label)]
    seen: list[Suggestion] = []
    for group in (fine, coarse):
        low, high = 0, len(group)
        while low < high:
            middle = (low + high) // 2
            found = await row(group[middle])
            seen.append(found)
            speed = found.fit.tokens_per_s
            if found.fit.fits and (speed is None or speed >= min_tokens_per_s):
                low = middle + 1
            else:
                high = middle
        if low:
            break
    chosen = recommended(seen, min_tokens_per_s)
    return chosen or min(seen, key=lambda found: found.size_bytes)


async def _all(works: Iterable[Coroutine[Any, Any, Suggestion]]) -> list[Suggestion]:
    """All of them; if one fails or we are cancelled, none goes on."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _told(model: CatalogueModel) -> dict[str, str]:
    return {"id": model.id, "licence": model.licence, "about": model.about}
