"""What the use cases work with: the outside world, passed in by the composition root."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agents.contract import EngineFacts
from supervisor.core.commands import known_flags
from supervisor.core.engine_help import EngineHelp, parse_help
from supervisor.core.engine_options import OptionFile
from supervisor.core.entities import DeploymentSpec, Device
from supervisor.core.option_memory import FileFacts
from supervisor.ports import (
    EngineProcesses,
    HeldQuestion,
    LinkStarter,
    MemoryEstimator,
    ModelFetcher,
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

    help: EngineHelp = field(default_factory=EngineHelp)
    """What the engine says of its options."""

    def take(self, engine: EngineFacts | None, help_text: str) -> None:
        """From now on launches use that engine, whose llama-server has this ``--help``."""
        self.engine, self.known_flags = engine, known_flags(help_text)
        self.help = parse_help(help_text)

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
    held: HeldQuestion | None = None
    """Asks devices which weights they hold; None: nobody helps a launch."""
    read_option_files: Callable[[Sequence[OptionFile], str], FileFacts] | None = None
    """Checks the files that model options name; the model's architecture, if it is known."""
    name_model: Callable[[DeploymentSpec], DeploymentSpec] | None = None
    """The spec with a path in place of a name of a model on this host. Blocks."""
    projector_of: Callable[[str], str] | None = None
    """The projector file beside a model; empty: there is none."""
    names_of: Callable[[str], tuple[str, ...]] | None = None
    """Path and references of a model of this host, by any of its names; empty: unknown. Blocks."""
    fetch_model: ModelFetcher | None = None
    """Brings a model of the hub to this host."""
    engine_key: str = field(default="", repr=False)
    """What our llama-servers ask for: ``Authorization: Bearer``."""
