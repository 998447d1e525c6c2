"""Models on this host: what is known of each, and which one a name means; pure."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from pydantic import Field

from supervisor.core.entities import ByteCount, DeploymentSpec, FrozenModel
from supervisor.core.model_reference import PREFERRED, parse_reference
from supervisor.core.units import gib
from supervisor.errors import ModelAmbiguous, ModelMissing

Source = Literal["hub", "llama.cpp", "lm studio", "ollama", "exo", "folder"]

SHOWN: Final = 12
"""Choices that an error lists."""

_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")
_MAX_ALIAS: Final = 200
_MOST_COMPARED: Final = 1000
"""Names that one that nothing has is compared with."""


class LibraryModel(FrozenModel):
    """A model on this host; ``path`` is what a launch takes."""

    path: str = Field(description="of its first file")
    name: str = Field(description="what its tool calls it, or the name of its file")
    title: str = Field(default="", description="general.name of its header")
    source: Source = Field(description="whose folder it is in")
    reference: str = Field(
        default="", description="OWNER/REPO:QUANT, or NAME:TAG of Ollama; empty: unknown"
    )
    repo: str = Field(default="", description="of the hub; empty: unknown")
    repo_files: tuple[str, ...] = Field(default=(), description="its files as the hub names them")
    architecture: str = ""
    parameters: int | None = Field(default=None, description="None: its header cannot be read")
    quantisation: str = ""
    size_bytes: ByteCount = 0
    ctx_train_tokens: int | None = None
    parts: tuple[str, ...] = Field(default=(), description="paths of all its files, in order")
    also: tuple[str, ...] = Field(default=(), description="other names and paths of the same files")
    changed_at: float = Field(default=0.0, description="seconds since 1970")
    is_companion: bool = Field(default=False, description="lies beside a model, and is none")
    kind: str = "model"
    projector: str = Field(default="", description="path of the mmproj beside it")
    is_read: bool = Field(default=True, description="False: the first look at it is not over")
    problem: str = Field(default="", description="why it cannot be launched, a whole sentence")
    problem_code: str = ""
    remedy: str = ""
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """All models of this host, as one scan found them."""

    models: tuple[LibraryModel, ...] = ()
    skipped: tuple[str, ...] = ()
    """What could not be looked at, each with the reason."""
    unread: int = 0
    """Models whose headers are yet to be read."""


class NameIndex:
    """Finds models by their names; made once per listing."""

    def __init__(self, models: Iterable[LibraryModel]) -> None:
        everything = list(models)
        self._by_path = {path: m for m in reversed(everything) for path in (*m.also, *m.parts)}
        self._proper = _by_name(model for model in everything if not model.is_companion)
        self._companions = _by_name(model for model in everything if model.is_companion)

    def find(self, text: str) -> LibraryModel:
        """The model that a name means; the surest kind of name that fits decides.

        By path, reference, Ollama name, file name with or without part and suffix, repository, and
        at last ``general.name``; in capitals or not.

        Raises:
            ModelMissing: None; names those that come near.
            ModelAmbiguous: Several; lists them.
        """
        if (model := self._by_path.get(text)) is not None and ("/" in text or "\\" in text):
            return model
        wanted = text.casefold()
        for proper, companions in zip(self._proper, self._companions, strict=True):
            if found := proper.get(wanted) or companions.get(wanted):
                return _only(found, text)
        raise ModelMissing(f"{text} is not on this host{self._near(wanted)}")

    def _near(self, wanted: str) -> str:
        references, stems, *_ = self._proper
        names = [*islice(references, _MOST_COMPARED), *islice(stems, _MOST_COMPARED)]
        close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.6)
        found = [(references.get(name) or stems[name])[0] for name in close]
        if near := dict.fromkeys(model.reference or model.name for model in found):
            return f"; did you mean {' or '.join(near)}?"
        return "; 'supervisor models' lists those that are"


def _by_name(models: Iterable[LibraryModel]) -> tuple[dict[str, list[LibraryModel]], ...]:
    """By each of their names, for each tier."""
    tiers: tuple[dict[str, list[LibraryModel]], ...] = tuple({} for _ in _TIERS)
    for model in models:
        for tier, names_of in zip(tiers, _TIERS, strict=True):
            for name in names_of(model):
                tier.setdefault(name, []).append(model)
    return tiers


def _references(model: LibraryModel) -> set[str]:
    names = {model.reference, *(f"{model.repo}/{file}" for file in model.repo_files if model.repo)}
    if model.source == "ollama":
        names |= _ollama(model.name) | {n for name in model.also for n in _ollama(name)}
    return {name.casefold() for name in names if name}


def _ollama(name: str) -> set[str]:
    """``NAME`` alone is ``NAME:latest`` there."""
    return {name, name.removesuffix(":latest")}


def _stems(model: LibraryModel) -> set[str]:
    paths = [model.path, *model.parts, *(name for name in model.also if name.endswith(".gguf"))]
    found: set[str] = {model.name.casefold()}
    for path in paths:
        name = path.replace("\\", "/").rpartition("/")[2].casefold()
        stem = name.removesuffix(".gguf")
        found |= {name, stem, _PART.sub("", stem)}
    return found


def _repos(model: LibraryModel) -> set[str]:
    return {model.repo.casefold()} if model.repo else set()


def _short_repos(model: LibraryModel) -> set[str]:
    short = model.repo.rpartition("/")[2].casefold()
    return {short, short.removesuffix("-gguf")} if short else set()


def _titles(model: LibraryModel) -> set[str]:
    return {model.title.casefold()} if model.title else set()


_TIERS: Final[tuple[Callable[[LibraryModel], set[str]], ...]] = (
    _references,
    _stems,
    _repos,
    _short_repos,
    _titles,
)


def _only(found: Sequence[LibraryModel], text: str) -> LibraryModel:
    """Of copies the best one; of quantisations of one repository the usual one."""
    usable = [model for model in found if not model.problem] or list(found)
    if _are_copies(usable):
        return max(usable, key=_worth)
    preferred = [model for model in usable if model.quantisation == PREFERRED]
    if len(preferred) == 1 and len({model.repo for model in usable}) == 1 and preferred[0].repo:
        return preferred[0]
    references = {model.reference for model in usable}
    if len(references) == 1 and "" not in references:
        return max(usable, key=_worth)  # revisions of one file
    shown = ", ".join(
        f"{model.reference or model.path} ({model.quantisation or '?'}, {gib(model.size_bytes)})"
        for model in usable[:SHOWN]
    )
    more = f" and {len(usable) - SHOWN} more" if len(usable) > SHOWN else ""
    raise ModelAmbiguous(
        f"{text} may be any of {len(usable)} models on this host; give one of {shown}{more}"
    )


def _are_copies(models: Sequence[LibraryModel]) -> bool:
    """Whether tools keep the same; in folders of one's own nothing tells that."""
    own = sum(model.source == "folder" for model in models)
    repos = {model.repo for model in models if model.repo}
    return own <= 1 and len(repos) <= 1 and len({_content(model) for model in models}) == 1


def _content(model: LibraryModel) -> tuple[object, ...]:
    known = (model.size_bytes, model.parameters, model.architecture)
    return (*known, model.quantisation, model.title)


_ORDER: Final[tuple[Source, ...]] = ("folder", "exo", "ollama", "lm studio", "llama.cpp", "hub")


def _worth(model: LibraryModel) -> tuple[int, float]:
    return _ORDER.index(model.source), model.changed_at


def named_spec(spec: DeploymentSpec, model: LibraryModel) -> DeploymentSpec:
    """A spec with the model's path in place of a name of it, which stays good for requests.

    A reference stays as it is: its model may be fetched again where it is gone.
    """
    if spec.model == model.path or is_hub_reference(spec.model, model):
        return spec
    return requested_spec(spec, model, spec.model)


def requested_spec(spec: DeploymentSpec, model: LibraryModel, asked: str) -> DeploymentSpec:
    """A spec of a model that answers to the name by which it was asked for."""
    names = [*spec.aliases]
    if asked.strip() and len(asked) <= _MAX_ALIAS and asked not in names and len(names) < 16:
        names.append(asked)
    name = spec.name or deployment_name(model.name)
    return spec.model_copy(update={"model": model.path, "name": name, "aliases": tuple(names)})


def is_hub_reference(text: str, model: LibraryModel) -> bool:
    """Whether ``text`` names the model on the hub, and not only here."""
    reference = parse_reference(text)
    return reference is not None and reference.repo.casefold() == model.repo.casefold()


def deployment_name(model_name: str) -> str:
    """A model's name, made safe for the name of a deployment."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in model_name).strip("-_.")
    return safe[:63].strip("-_.") or "model"
