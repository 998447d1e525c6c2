"""What the supervisor keeps of pulls, and what it needs to make them."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from agents import privatefile
from supervisor.core.entities import FrozenModel, PullView
from supervisor.core.pulling import Meter, PullPart, Step, label_of, total_bytes

log = logging.getLogger(__name__)

State = Literal["queued", "fetching", "paused", "checking", "done", "failed"]
RUNNING: Final = ("fetching", "checking")


class Files(Protocol):
    """The hub and its cache; all of it blocks."""

    def resolve(self, reference: str) -> tuple[PullPart, ...]: ...

    def path_of(self, parts: Sequence[PullPart]) -> Path | None: ...

    def find(self, text: str) -> Path | None: ...

    def done_bytes(self, parts: Sequence[PullPart]) -> list[int]: ...

    def forget(self, parts: Sequence[PullPart]) -> None: ...

    def note_main(self, parts: Sequence[PullPart]) -> None: ...


class Fetcher(Protocol):
    """A process that fetches."""

    @property
    def exit_status(self) -> int | None: ...

    @property
    def log_path(self) -> Path: ...

    def steps(self) -> AsyncIterator[Step]: ...

    async def stop(self) -> None: ...


class Fetchers(Protocol):
    """Starts them."""

    def sweep(self) -> None: ...

    async def start(self, name: str, parts: Iterable[PullPart], promised_bytes: int) -> Fetcher: ...


class KeptPull(FrozenModel):
    """A pull on disk."""

    id: str
    reference: str
    also: tuple[str, ...] = ()
    """Other references that turned out to mean the same files."""
    parts: tuple[PullPart, ...]
    state: State
    is_asked: bool = True
    path: str = ""
    error_code: str = ""
    detail: str = ""


@dataclass(slots=True)
class Pull:
    """A pull."""

    kept: KeptPull
    done: list[int]
    deployments: list[str] = field(default_factory=list)
    meter: Meter = field(default_factory=Meter)
    work: asyncio.Task[None] | None = None
    begun: int = 0
    """Which of all that began it was; the earlier have the room on the disk."""
    detail: str = ""

    @property
    def id(self) -> str:
        return self.kept.id

    @property
    def state(self) -> State:
        return self.kept.state

    def join(self, reference: str, parts: tuple[PullPart, ...], *, is_asked: bool) -> None:
        """Somebody asks for the same files, perhaps by another reference.

        The repository may have moved on with other files, and its old revision may be gone; a
        process that runs keeps the one that it began with.
        """
        names = {self.kept.reference, *self.kept.also, reference} - {self.kept.reference}
        changes: dict[str, Any] = {"also": tuple(sorted(names))}
        changes["is_asked"] = self.kept.is_asked or is_asked
        if self.kept.state not in RUNNING:
            changes["parts"] = parts
        self.kept = self.kept.model_copy(update=changes)

    def become(self, state: State, **more: Any) -> None:
        clean = {"error_code": "", "detail": "", **more}
        self.kept = self.kept.model_copy(update={"state": state, **clean})
        self.meter.clear()
        self.detail = ""

    def view(self) -> PullView:
        kept, done, total = self.kept, sum(self.done), total_bytes(self.kept.parts)
        is_running = kept.state == "fetching"
        return PullView(
            id=kept.id,
            reference=kept.reference,
            repo=kept.parts[0].repo,
            label=label_of(kept.parts),
            files=len(kept.parts),
            state=kept.state,
            done_bytes=done,
            total_bytes=total,
            bytes_per_s=self.meter.bytes_per_s if is_running else 0,
            eta_s=self.meter.eta_s(total - done) if is_running else None,
            path=kept.path,
            error_code=kept.error_code,
            detail=kept.detail or self.detail,
            deployments=tuple(self.deployments),
        )


class PullFile:
    """``pulls.json``: what is wanted, and where what was fetched lies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.last_id = 0
        self.paths: dict[str, str] = {}
        """Of what was fetched, by every reference that it was asked for as."""

    def read(self) -> list[KeptPull]:
        """What an earlier run kept; nothing if the file is not there or not readable."""
        try:
            kept = json.loads(self._path.read_text())
            pulls = [KeptPull.model_validate(each) for each in kept["pulls"]]
            self.last_id = int(kept["last_id"])
            self.paths = {str(name): str(path) for name, path in kept["paths"].items()}
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            log.warning("pulls.unreadable", extra={"file": str(self._path), "reason": str(exc)})
            return []
        return pulls

    def write(self, pulls: Iterable[Pull]) -> None:
        """A disk that is full loses nothing: they go on, and only a restart would forget them."""
        rows = [pull.kept.model_dump(mode="json") for pull in pulls]
        kept = {"last_id": self.last_id, "paths": self.paths, "pulls": rows}
        try:
            privatefile.write(self._path, json.dumps(kept))
        except OSError as exc:
            log.warning("pulls.not_kept", extra={"reason": str(exc)})
