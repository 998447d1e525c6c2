"""What the use cases work with: the outside world, passed in by the composition root."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agents.contract import EngineFacts
from supervisor.core.entities import Device
from supervisor.ports import (
    EngineProcesses,
    LinkStarter,
    MemoryEstimator,
    ModelReader,
    OwnNetworks,
    ServerClient,
    StorePort,
    WorkerProbe,
)
from supervisor.service.journal import Journal
from supervisor.service.registry import Registry
from supervisor.settings import Settings


@dataclass(slots=True)
class MainHost:
    """What a launch needs to know of the host it runs on.

    The engine may change while we run (``service/engine_change.py``): ask here each time.
    """

    name: str
    boot_id: str
    platform: str
    cores: int
    engine: EngineFacts | None
    known_flags: frozenset[str]
    inherited: Mapping[str, str]
    folder: Path

    def take(self, engine: EngineFacts | None, known: frozenset[str]) -> None:
        """From now on launches use that engine, which knows these options."""
        self.engine, self.known_flags = engine, known

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
    reaches: Callable[[Device], Awaitable[bool]] | None = None
    """Whether the far end of a device's link answers, within seconds."""
    own_networks: OwnNetworks | None = None
    engine_key: str = field(default="", repr=False)
    """What our llama-servers ask for: ``Authorization: Bearer``."""
