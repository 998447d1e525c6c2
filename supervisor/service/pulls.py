"""Fetches models from the hub: one process for each, at most two at once, the others queued.

What is wanted is kept on disk, so that pulls go on after any end of the supervisor.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agents.errors import ProjectError
from supervisor.core.entities import PullView
from supervisor.core.pulling import Step, key_of, total_bytes
from supervisor.errors import HubOffline, HubUnreachable, PullEnded, PullFailed, PullUnknown
from supervisor.service.events import EventBus, Paced
from supervisor.service.pull_state import (
    RUNNING,
    Fetcher,
    Fetchers,
    Files,
    KeptPull,
    Pull,
    PullFile,
    State,
)

log = logging.getLogger(__name__)

AT_ONCE: Final = 2
KEPT: Final = 30
"""Pulls that have ended and are still told of."""

_DEATHS: Final = 3
"""Ends of a process that nobody told to, in a row and without progress."""

Tell = Callable[[PullView], None]


class Pulls:
    """All pulls of this host."""

    def __init__(self, folder: Path, files: Files, fetchers: Fetchers, bus: EventBus) -> None:
        self._file = PullFile(folder / "pulls.json")
        self._files = files
        self._fetchers = fetchers
        self._bus = bus
        self._pulls: dict[str, Pull] = {}
        self._works: set[asyncio.Task[None]] = set()
        """Also of pulls that are being removed."""
        self._news = asyncio.Event()
        self._begun = 0
        self._is_closing = False
        self._paced = Paced(bus, "pull", self._body)

    # -- life --------------------------------------------------------------------------------

    async def restore(self) -> None:
        """Go on with what ran or waited when we were stopped or killed."""
        self._fetchers.sweep()
        for kept in self._file.read():
            if kept.state == "done" and not Path(kept.path).exists():
                continue
            done = await asyncio.to_thread(self._files.done_bytes, kept.parts)
            pull = self._pulls[kept.id] = Pull(kept, done)
            if kept.state in RUNNING:
                pull.become("queued")
        self._schedule()

    async def close(self) -> None:
        """End every process; what was wanted goes on with the next start."""
        self._is_closing = True
        works = list(self._works)
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    # -- what is asked -----------------------------------------------------------------------

    def views(self) -> list[PullView]:
        """All pulls, the newest last."""
        return [pull.view() for pull in self._pulls.values()]

    def view(self, pull_id: str) -> PullView:
        """Raises:
        PullUnknown: With the ids that exist.
        """
        return self._pull(pull_id).view()

    def local(self, reference: str) -> Path | None:
        """The file of a model that is here already; blocks shortly, asks nobody.

        A repository alone is not looked up in the cache: its best quantisation may not be there.
        """
        path = Path(self._file.paths.get(reference, ""))
        if path.is_absolute() and path.exists():
            return path
        is_exact = ":" in reference or reference.lower().endswith(".gguf")
        return self._files.find(reference) if is_exact else None

    async def fetch(self, reference: str) -> PullView:
        """Fetch a model, or join whoever fetches it; returns at once.

        Raises:
            ModelMissing, ModelAmbiguous, ModelForbidden, HubOffline, HubUnreachable
        """
        return (await self._fetch(reference, "")).view()

    async def file_for(self, deployment: str, reference: str, tell: Tell) -> Path:
        """Wait for the file of a model that a deployment needs; ``tell`` hears how far it is.

        When the wait is cancelled, the pull goes on only if somebody else wants it.

        Raises:
            PullFailed: With the code of the cause.
            PullEnded: It was removed.
            ProjectError: Of the kinds that ``fetch`` names.
        """
        pull = await self._fetch(reference, deployment)
        last: PullView | None = None
        try:
            while True:
                news, view = self._news, pull.view()
                if view != last:
                    tell(view)
                last = view
                if pull.state == "done":
                    return Path(view.path)
                if pull.state == "failed":
                    raise PullFailed(view.detail, view.error_code)
                if pull.id not in self._pulls:
                    raise PullEnded(
                        f"the pull of {view.reference} was removed; start the deployment to fetch"
                        " it again"
                    )
                await news.wait()
        finally:
            await self._leave(pull, deployment)

    async def pause(self, pull_id: str) -> PullView:
        """End the process of a pull; what came is kept.

        Raises:
            PullUnknown
        """
        pull = self._pull(pull_id)
        if pull.state in (*RUNNING, "queued"):
            await self._end(pull, "paused")
        return pull.view()

    async def resume(self, pull_id: str) -> PullView:
        """Go on with a pull that was paused or has failed.

        Raises:
            PullUnknown
        """
        pull = self._pull(pull_id)
        if pull.state in ("paused", "failed"):
            pull.become("queued")
            self._changed(pull)
            self._schedule()
        return pull.view()

    async def remove(self, pull_id: str) -> None:
        """Forget a pull, and what came of files that are not whole. A finished model stays.

        Raises:
            PullUnknown
        """
        pull = self._pull(pull_id)
        del self._pulls[pull.id]  # first, so that who asks for it meanwhile begins another
        await self._end(pull, "paused")
        wanted = {part.etag for other in self._pulls.values() for part in other.kept.parts}
        alone = [part for part in pull.kept.parts if part.etag not in wanted]
        await asyncio.to_thread(self._files.forget, alone)
        self._bus.publish("pull_removed", {"id": pull.id})
        self._schedule()

    # -- one download per file ---------------------------------------------------------------

    async def _fetch(self, reference: str, deployment: str) -> Pull:
        try:
            parts = await asyncio.to_thread(self._files.resolve, reference)
        except (HubOffline, HubUnreachable):
            found = self._with_reference(reference)
            if found is None:
                raise
            parts = found.kept.parts
        path = await asyncio.to_thread(self._files.path_of, parts)
        pull = next(
            (p for p in self._pulls.values() if key_of(p.kept.parts) == key_of(parts)), None
        )
        if pull is None:
            self._file.last_id += 1
            kept = KeptPull(
                id=f"p{self._file.last_id}",
                reference=reference,
                parts=parts,
                state="queued",
                is_asked=not deployment,
            )
            pull = self._pulls[kept.id] = Pull(kept, [0] * len(parts))
            self._forget_oldest()
        else:
            pull.join(reference, parts, is_asked=not deployment)
        if deployment:
            pull.deployments.append(deployment)
        if path is not None and pull.state not in RUNNING:
            self._finish(pull, str(path))
        elif pull.state in ("done", "failed", "paused"):
            pull.become("queued", path="")
        self._changed(pull)
        self._schedule()
        return pull

    def _with_reference(self, reference: str) -> Pull | None:
        known = ((pull, (pull.kept.reference, *pull.kept.also)) for pull in self._pulls.values())
        return next((pull for pull, names in known if reference in names), None)

    async def _leave(self, pull: Pull, deployment: str) -> None:
        with suppress(ValueError):
            pull.deployments.remove(deployment)
        is_wanted = pull.deployments or pull.kept.is_asked or self._is_closing
        if not is_wanted and pull.state in (*RUNNING, "queued") and pull.id in self._pulls:
            await asyncio.shield(self._end(pull, "paused"))
        self._changed(pull)

    def _forget_oldest(self) -> None:
        ended = [p.id for p in self._pulls.values() if p.state == "done" and not p.deployments]
        for pull_id in ended[: max(0, len(self._pulls) - KEPT)]:
            del self._pulls[pull_id]

    # -- work --------------------------------------------------------------------------------

    def _schedule(self) -> None:
        if self._is_closing:
            return
        for pull in self._pulls.values():
            if len(self._works) >= AT_ONCE:
                return
            if pull.state == "queued" and pull.work is None:
                pull.become("fetching")
                self._begun += 1
                pull.begun = self._begun
                pull.work = asyncio.create_task(self._work(pull))
                self._works.add(pull.work)
                pull.work.add_done_callback(self._works.discard)
                pull.work.add_done_callback(lambda _: self._schedule())
                self._changed(pull)

    async def _work(self, pull: Pull) -> None:
        try:
            await self._run(pull)
        except ProjectError as exc:
            log.warning("pull.failed", extra={"pull": pull.id, "reason": str(exc)})
            pull.become("failed", error_code=exc.code, detail=str(exc))
        except Exception as exc:
            log.exception("pull.bug", extra={"pull": pull.id})
            pull.become("failed", error_code="error", detail=f"internal error: {exc!r}; report it")
        finally:
            pull.work = None
            if not self._is_closing:
                self._changed(pull)

    async def _run(self, pull: Pull) -> None:
        deaths = 0
        while True:
            before = sum(pull.done)
            fetcher = await self._fetchers.start(
                pull.id, pull.kept.parts, self._promised_bytes(pull)
            )
            try:
                async for step in fetcher.steps():
                    if await self._took(pull, step):
                        return
            finally:
                await _ended(fetcher)
            path = await asyncio.to_thread(self._files.path_of, pull.kept.parts)
            if path is not None:
                self._finish(pull, str(path))
                return
            deaths = 1 if sum(pull.done) > before else deaths + 1
            log.warning("pull.process_ended", extra={"pull": pull.id, "times": deaths})
            if deaths >= _DEATHS:
                raise PullEnded(
                    f"what fetches {pull.kept.reference} ended {deaths} times by itself (status"
                    f" {fetcher.exit_status}); see {fetcher.log_path}, and resume the pull"
                )

    def _promised_bytes(self, pull: Pull) -> int:
        """What the pulls that began before this one will still take of the disk."""
        running = (p for p in self._pulls.values() if p.state in RUNNING)
        others = (other for other in running if other.begun < pull.begun)
        return sum(total_bytes(other.kept.parts) - sum(other.done) for other in others)

    async def _took(self, pull: Pull, step: Step) -> bool:
        """Take what a process says; whether that was its last word."""
        if step.event == "done":
            await asyncio.to_thread(self._files.note_main, pull.kept.parts)
            self._finish(pull, step.path)
            return True
        if step.event == "failed":
            log.warning("pull.failed", extra={"pull": pull.id, "reason": step.detail})
            pull.become("failed", error_code=step.code, detail=step.detail)
            return True
        for number, done_bytes in step.done.items():
            pull.done[number] = done_bytes
        if not step.is_checking:
            pull.meter.note(time.monotonic(), sum(pull.done))
        state: State = "checking" if step.is_checking else "fetching"
        pull.kept = pull.kept.model_copy(update={"state": state})
        pull.detail = step.detail
        self._told(pull)
        return False

    def _finish(self, pull: Pull, path: str) -> None:
        pull.done = [part.size_bytes for part in pull.kept.parts]
        pull.become("done", path=path)
        for name in (pull.kept.reference, *pull.kept.also):
            self._file.paths[name] = path
        log.info("pull.done", extra={"pull": pull.id, "path": path})

    async def _end(self, pull: Pull, state: State) -> None:
        pull.become(state)  # first, so that who asks for it meanwhile lets it go on
        if pull.work is not None:
            pull.work.cancel()
            await asyncio.gather(pull.work, return_exceptions=True)
        self._changed(pull)
        self._schedule()

    # -- telling and keeping -----------------------------------------------------------------

    def _changed(self, pull: Pull) -> None:
        """Of a state: told and kept."""
        self._save()
        self._told(pull)

    def _told(self, pull: Pull) -> None:
        self._tell_waiting()
        if pull.id in self._pulls:
            self._paced.changed(pull.id)

    def _tell_waiting(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _body(self, pull_id: str) -> dict[str, Any] | None:
        pull = self._pulls.get(pull_id)
        return pull.view().model_dump(mode="json") if pull is not None else None

    def _pull(self, pull_id: str) -> Pull:
        try:
            return self._pulls[pull_id]
        except KeyError:
            known = ", ".join(self._pulls) or "none"
            raise PullUnknown(f"no pull {pull_id[:64]!r}; known: {known}") from None

    def _save(self) -> None:
        self._file.write(self._pulls.values())


async def _ended(fetcher: Fetcher) -> None:
    """End a process and wait until it is gone, even if that wait is cancelled."""
    stopping, cancelled = asyncio.ensure_future(fetcher.stop()), None
    while not stopping.done():
        try:
            await asyncio.wait([stopping])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
    stopping.result()
