"""What the use cases work with: the outside world, passed in by the composition root."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agents.contract import EngineFacts
from supervisor.ports import (
    EngineProcesses,
    LinkStarter,
    MemoryEstimator,
    ModelReader,
    ServerClient,
    StorePort,
    WorkerProbe,
)
from supervisor.service.journal import Journal
from supervisor.service.registry import Registry
from supervisor.settings import Settings


@dataclass(frozen=True, slots=True)
class MainHost:
    """What a launch needs to know of the host it runs on."""

    name: str
    boot_id: str
    platform: str
    cores: int
    engine: EngineFacts | None
    known_flags: frozenset[str]
    inherited: Mapping[str, str]
    folder: Path

    @property
    def key_file(self) -> Path:
        """Holds the key that our llama-servers ask for; their commands name it, so in full."""
        return (self.folder / "engine.key").absolute()


@dataclass(frozen=True, slots=True)
class Identity:
    """Files by which the supervisor proves to agents who it is."""

    certificate: Path
    key: Path
    authority: Path


@dataclass(frozen=True, slots=True)
class Tools:
    """The outside world, passed in by the composition root."""

    settings: Settings
    registry: Registry
    store: StorePort
    read_model: ModelReader
    """Of a file on this host."""
    read_any_model: ModelReader
    """Or of one that is not downloaded yet, by its header alone."""
    estimate_memory: MemoryEstimator
    host_available_bytes: Callable[[], int]
    probe: WorkerProbe
    engines: EngineProcesses
    connect_engine: Callable[[int], ServerClient]
    links: LinkStarter
    identity: Identity
    main_host: MainHost
    journal: Journal
    engine_key: str = field(default="", repr=False)
    """What our llama-servers ask for: ``Authorization: Bearer``."""
