"""Names of models on a hub: what a reference means, and which of a repository's files it names.

OWNER/REPO                  the Q4_K_M of that repository, or what comes nearest
OWNER/REPO:QUANT            that quantisation, in capitals or not
OWNER/REPO/FOLDER/X.gguf    that file; of a split model any part
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

from pydantic import Field

from supervisor.core.entities import ByteCount, FrozenModel
from supervisor.core.units import gib
from supervisor.errors import ModelAmbiguous, ModelMissing

PREFERRED: Final = "Q4_K_M"
LEAST_BITS: Final = 4
"""Below four bits per weight answers suffer so much that the user should have asked for it."""

SHOWN: Final = 24
"""Choices that an error lists."""

_PROJECTORS: Final = ("F16", "BF16", "Q8_0")
"""The best first: F32 is twice as large and no better, others lose detail."""

_WORD: Final = r"\w(?:[\w.-]{0,94}\w)?"  # of a repository's name: huggingface_hub's own rule
_REFERENCE: Final = re.compile(
    rf"(?P<repo>{_WORD}/{_WORD})"
    r"(?::(?P<quant>[\w.-]{1,64})|/(?P<file>[^\0-\x1f]{1,512}\.gguf))?",
    re.ASCII | re.IGNORECASE,
)
_PART: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})", re.DOTALL)
_LABEL: Final = re.compile(
    r"(?<![a-z0-9])(?:ud-)?(?:i?q(?P<bits>\d)|tq\d|(?P<four>mxfp4|nvfp4)|(?P<float>bf|fp?)(?:16|32))"
    r"(?:_[a-z0-9]{1,4})*(?![a-z0-9])",
    re.IGNORECASE,
)


class Reference(FrozenModel):
    """A model on a hub; at most one of ``quant`` and ``file`` is given."""

    repo: str
    quant: str = ""
    file: str = ""


class RepoFile(FrozenModel):
    """A file of a repository."""

    path: str
    size_bytes: ByteCount


class RepoModel(FrozenModel):
    """A model of a repository: its path without part number and suffix, its parts in order."""

    stem: str
    parts: tuple[RepoFile, ...]
    missing: tuple[int, ...] = Field(default=(), description="numbers of parts that are not there")

    @property
    def size_bytes(self) -> int:
        return sum(part.size_bytes for part in self.parts)

    @property
    def label(self) -> str:
        """The quantisation that its name tells, in capitals; empty if none."""
        found = self._label()
        return found[0].upper() if found else ""

    @property
    def is_companion(self) -> bool:
        """Whether it is none, but lies beside one: a projector, statistics for quantising."""
        name = self.stem.rsplit("/", 1)[-1].lower()
        return "mmproj" in name or ("imatrix" in name and not self.label)

    @property
    def bits(self) -> int:
        """Bits per weight that the name tells, roughly; 0 if it tells none."""
        found = self._label()
        if found is None:
            return 0
        if found["float"]:
            return 16
        return 4 if found["four"] else int(found["bits"] or 2)

    @property
    def folder(self) -> str:
        """Where it is in its repository; empty: at the top."""
        return self.stem.rpartition("/")[0]

    @property
    def base(self) -> str:
        """The name without the quantisation, to see whether two are the same model."""
        name = self.stem.rsplit("/", 1)[-1]
        return _LABEL.sub("", name).strip("-._").casefold()

    def _label(self) -> re.Match[str] | None:
        """The last one in the file's name, or else in its folder's."""
        for name in reversed(self.stem.split("/")):
            if found := list(_LABEL.finditer(name)):
                return found[-1]
        return None


class OfferedModel(FrozenModel):
    """A model of a repository that can be chosen."""

    reference: str = Field(description="what the model of a deployment may be")
    label: str = Field(description="its quantisation, or its file's name where that tells more")
    size_bytes: ByteCount
    parts: int = Field(ge=1, description="files that it consists of")


class FoundRepo(FrozenModel):
    """A repository that a search found."""

    repo: str
    downloads: int = Field(ge=0, description="within the last month")
    likes: int = Field(ge=0)
    updated_at: str = Field(description="when its files last changed; empty: unknown")
    is_gated: bool = Field(description="only those may read it who accepted its terms")


def parse_reference(text: str) -> Reference | None:
    """Read a reference; ``None`` if it is none. ``FOLDER/X.gguf`` is a path."""
    match = _REFERENCE.fullmatch(text)
    if match is None or "--" in match["repo"] or ".." in text:
        return None
    if match["repo"].lower().endswith(".gguf") and not match["quant"]:
        return None
    return Reference(repo=match["repo"], quant=match["quant"] or "", file=match["file"] or "")


def choose(files: Iterable[RepoFile], reference: Reference) -> tuple[RepoFile, ...]:
    """The files of the one model that is meant, in order.

    Raises:
        ModelMissing: There is no such model, or a part of it is missing; lists what there is.
        ModelAmbiguous: Several models are meant; lists them.
    """
    models = _models(files)
    proper = [model for model in models if not model.is_companion]
    if not proper:
        raise ModelMissing(
            f"{reference.repo} has no GGUF model; look for a repository of the same model with"
            " GGUF in its name"
        )
    if reference.file:
        chosen = _with_file(models, proper, reference)
    elif reference.quant:
        chosen = _with_quant(proper, reference)
    else:
        chosen = _preferred(proper, reference)
    if chosen.missing:
        numbers = ", ".join(map(str, chosen.missing[:SHOWN]))
        raise ModelMissing(
            f"{reference.repo} has not all parts of {chosen.stem}: {numbers} missing of"
            f" {len(chosen.parts) + len(chosen.missing)}; choose another, {_offer(proper)}"
        )
    return chosen.parts


def projector(files: Iterable[RepoFile], parts: Sequence[RepoFile]) -> RepoFile | None:
    """What a model needs to see images, if its repository has it.

    Args:
        files: Of the repository.
        parts: Of the model.
    """
    models = _models(files)
    (model,) = (each for each in models if each.parts[0] == parts[0])
    bases = {each.base for each in models if not each.is_companion}
    found = [
        each
        for each in models
        if "mmproj" in each.base
        and each.folder in (model.folder, "")
        and (len(bases) == 1 or model.base in each.base.replace("mmproj", ""))
        and len(each.parts) == 1
        and not each.missing
    ]
    best = min(found, key=lambda each: (each.folder != model.folder, *_rank(each)), default=None)
    return best.parts[0] if best else None


def _rank(found: RepoModel) -> tuple[int, int]:
    """Of a projector; the least is the best."""
    if found.label in _PROJECTORS:
        return _PROJECTORS.index(found.label), 0
    return len(_PROJECTORS) + (found.label == "F32"), -found.size_bytes


def offered(files: Iterable[RepoFile], repo: str) -> tuple[OfferedModel, ...]:
    """All models of a repository that ``choose`` would find, the smallest first.

    Those of which a part is missing are left out, and so is what only lies beside a model.
    """
    proper = [model for model in _models(files) if not model.is_companion]
    labels = Counter(model.label for model in proper)
    found = []
    for model in proper:
        is_only = bool(model.label) and labels[model.label] == 1
        reference = f"{repo}:{model.label}" if is_only else f"{repo}/{model.parts[0].path}"
        if model.missing or parse_reference(reference) is None:
            continue
        found.append(
            OfferedModel(
                reference=reference,
                label=model.label if is_only else model.stem,
                size_bytes=model.size_bytes,
                parts=len(model.parts),
            )
        )
    return tuple(found)


def _models(files: Iterable[RepoFile]) -> list[RepoModel]:
    """The models, the smallest first."""
    parts: dict[tuple[str, int], dict[int, RepoFile]] = defaultdict(dict)
    for file in files:
        name, _, suffix = file.path.rpartition(".")
        if suffix.lower() != "gguf":
            continue
        match = _PART.fullmatch(name)
        if match is None:
            parts[name, 1][1] = file
        else:
            parts[match["stem"], int(match["count"])][int(match["number"])] = file
    models = [_model(stem, count, found) for (stem, count), found in parts.items()]
    return sorted(models, key=lambda model: (model.size_bytes, model.stem))


def _model(stem: str, count: int, found: dict[int, RepoFile]) -> RepoModel:
    return RepoModel(
        stem=stem,
        parts=tuple(found[number] for number in sorted(found)),
        missing=tuple(number for number in range(1, count + 1) if number not in found),
    )


def _with_file(
    models: Sequence[RepoModel], proper: Sequence[RepoModel], reference: Reference
) -> RepoModel:
    for model in models:
        if any(part.path == reference.file for part in model.parts):
            return model
    raise ModelMissing(f"{reference.repo} has no file {reference.file}; {_offer(proper)}")


def _with_quant(models: Sequence[RepoModel], reference: Reference) -> RepoModel:
    exact = [model for model in models if model.label == reference.quant.upper()]
    word = re.compile(
        rf"(?<![a-z0-9]){re.escape(reference.quant)}(?![a-z0-9_])", re.ASCII | re.IGNORECASE
    )
    found = exact or [model for model in models if word.search(model.stem)]
    if not found:
        raise ModelMissing(f"{reference.repo} has no {reference.quant}; {_offer(models)}")
    return _only(found, reference, f"{reference.repo}:{reference.quant}")


def _preferred(models: Sequence[RepoModel], reference: Reference) -> RepoModel:
    if len(models) == 1:
        return models[0]
    preferred = [model for model in models if model.label == PREFERRED]
    if preferred:
        return _only(preferred, reference, reference.repo)
    enough = [model for model in models if model.bits >= LEAST_BITS]
    if not enough:
        raise ModelAmbiguous(
            f"{reference.repo} has nothing that its name shows to have {LEAST_BITS} bits per"
            f" weight or more; say which you want: {_offer(models)}"
        )
    if len({model.base for model in enough}) > 1:
        return _only(enough, reference, reference.repo)
    return enough[0]


def _only(found: Sequence[RepoModel], reference: Reference, asked: str) -> RepoModel:
    if len(found) == 1:
        return found[0]
    raise ModelAmbiguous(
        f"{asked} may be any of {len(found)} models; give one file as {reference.repo}/FILE:"
        f" {_listed([(model.parts[0].path, model) for model in found])}"
    )


def _offer(models: Sequence[RepoModel]) -> str:
    """What there is, by quantisation where that tells all of them apart, else by file."""
    labels = [model.label for model in models]
    is_clear = all(labels) and len(set(labels)) == len(labels)
    names = labels if is_clear else [model.parts[0].path for model in models]
    return f"it has {_listed(list(zip(names, models, strict=True)))}"


def _listed(named: Sequence[tuple[str, RepoModel]]) -> str:
    shown = ", ".join(f"{name} ({gib(model.size_bytes)})" for name, model in named[:SHOWN])
    more = len(named) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
