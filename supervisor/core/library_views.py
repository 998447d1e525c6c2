"""What the library answers about one model besides the list."""

from typing import Literal

from pydantic import Field

from supervisor.core.entities import ByteCount, FrozenModel

Verdict = Literal["good", "wrong", "unproven"]


class VerifyProgress(FrozenModel):
    """How far the check of all files has come."""

    path: str
    done_bytes: ByteCount
    total_bytes: ByteCount


class VerifiedFile(FrozenModel):
    """One file; ``unproven``: its structure is right, and nothing tells what it should contain."""

    path: str
    verdict: Verdict
    detail: str = Field(description="how it was checked, or what is wrong with it")


class VerifiedModel(FrozenModel):
    """A model; its verdict is the worst of its files."""

    path: str
    name: str
    verdict: Verdict
    files: tuple[VerifiedFile, ...]


class Removal(FrozenModel):
    """What the removal of a model deletes, and who else has to do with it."""

    path: str
    name: str
    deletes: tuple[str, ...] = Field(description="paths that go")
    keeps: tuple[str, ...] = Field(default=(), description="what stays, and why")
    freed_bytes: ByteCount = 0
    deployments: tuple[str, ...] = Field(default=(), description="stopped ones that name it")
    is_done: bool = False


class PartPlace(FrozenModel):
    """A file of a model."""

    path: str
    size_bytes: ByteCount
    disk_bytes: ByteCount = Field(description="what it takes; less for a sparse file")
    content: str = Field(default="", description="where a link leads")


class ModelPlaces(FrozenModel):
    """Where a model is on this host."""

    path: str
    name: str
    source: str
    parts: tuple[PartPlace, ...]
    also: tuple[str, ...] = ()
    projector: str = ""
    deployments: tuple[str, ...] = Field(default=(), description="those that name it")


class PlaceView(FrozenModel):
    """A folder in which models are looked for."""

    source: str
    path: str
    is_there: bool
    models: int = 0
