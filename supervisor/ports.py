"""What the use cases need of the outside world, as types. ``adapters`` provide it."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, runtime_checkable

from agents.chunks import ChunkName
from agents.contract import (
    DeviceFacts,
    EngineFacts,
    EngineInstall,
    EngineOffer,
    Finding,
    MeasurementProgress,
    MeasurementResult,
    MeasurementSpec,
    NetworkAddress,
    RpcServerSpec,
    RpcServerStatus,
)
from agents.peer_messages import FetchOrder, FetchStatus, PeerGrant
from agents.process import Running
from agents.rpc_protocol import ProbeResult, Triple
from supervisor.core.engine_builds import Asset, Release, StoredArchive
from supervisor.core.engine_memory import EngineMemory
from supervisor.core.entities import (
    AgentId,
    Deployment,
    DeploymentId,
    Device,
    EventRecord,
    LaunchId,
    LaunchRecord,
    ModelFacts,
    Plan,
    PullView,
)
from supervisor.core.keys import ApiKey
from supervisor.core.lessons import Lesson
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.core.model_settings import ModelSettings
from supervisor.core.model_shape import ModelShape
from supervisor.core.request_record import RequestRecord
from supervisor.core.seeding import FileTensor
from supervisor.core.slots import SlotState
from supervisor.core.wires import Measured, Pair
from supervisor.link.job import LinkJob, LinkStats, WorkerJob


class AgentPort(Protocol):
    """One device's agent.

    Every method raises ``AgentUnreachable`` or ``AgentRefused``.
    """

    async def facts(self) -> DeviceFacts: ...

    async def start_rpc_server(self, spec: RpcServerSpec, *, wait_s: float) -> RpcServerStatus: ...

    async def rpc_server(self, *, wait_s: float = 0.0) -> RpcServerStatus: ...

    async def stop_rpc_server(self, generation: int) -> RpcServerStatus: ...

    async def log(self, offset: int) -> Mapping[str, object]: ...

    def measure(
        self, spec: MeasurementSpec
    ) -> AsyncGenerator[MeasurementProgress | MeasurementResult, None]:
        """Progress, then the result. Closing it early ends the measurement."""
        ...

    async def examine(self) -> list[Finding]:
        """What it finds of its own device, within half a minute."""
        ...

    async def offer_engine(self, offer: EngineOffer) -> EngineInstall:
        """It fetches and proves it beside the engine in use; offered again it changes nothing."""
        ...

    async def engine_install(self) -> EngineInstall | None:
        """What became of the last offer since the agent began."""
        ...

    async def use_engine(self, build: str) -> EngineFacts:
        """Take another engine that is READY there; raises ``AgentRefused`` while one serves."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class PeerPort(Protocol):
    """An agent that gives chunks to other devices, and gets them from there.

    Every method raises ``AgentUnreachable`` or ``AgentRefused``.
    """

    async def grant(self, grant: PeerGrant) -> None:
        """Another device may read there now, or no longer."""
        ...

    async def fetch(self, order: FetchOrder) -> FetchStatus:
        """Begin to get chunks from another device, or add to what is ordered."""
        ...

    async def fetch_status(self, fetch_id: str) -> FetchStatus: ...

    async def end_fetch(self, fetch_id: str) -> FetchStatus: ...


class HeldQuestion(Protocol):
    """Asks a device which of these chunks it holds; raises ``ProjectError``."""

    async def __call__(
        self, job: LinkJob, worker: WorkerJob, chunks: Sequence[tuple[ChunkName, int]]
    ) -> set[ChunkName]: ...


class Shelf(Protocol):
    """Engines that this main host has for its devices, and for itself."""

    def builds(self) -> tuple[str, ...]:
        """Newest first."""
        ...

    def offer(self, build: str, facts: DeviceFacts) -> EngineOffer:
        """The archive for a device.

        Raises ``ReleaseUnknown``: nothing for its platform; its sentence says what to do.
        """
        ...

    def folder(self, build: str) -> Path | None:
        """This host's own programs of that build, unpacked and proven."""
        ...

    def pack(self, engine: EngineFacts) -> str:
        """Pack this host's own programs, for devices of the same platform and machine.

        Returns:
            The build's name, which is ``engine.build``. Cheap if done before.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole archive of a release; ``is_verified``: with the digest that the site told."""

    path: Path
    sha256: str
    is_verified: bool


class ReleaseSource(Protocol):
    """Where releases of llama.cpp come from."""

    async def release(self, build: str | None) -> Release:
        """Raises ``ReleaseUnknown``, ``ReleaseSiteUnreachable``."""
        ...

    async def fetch(
        self, asset: Asset, folder: Path, tell: Callable[[int, int], None], *, spare_bytes: int = 0
    ) -> Fetched:
        """Raises those, ``EngineDigestWrong`` and ``DiskFull``; resumes what was cut off."""
        ...


class EngineStock(Shelf, Protocol):
    """The shelf, as whoever fills it sees it."""

    @property
    def incoming(self) -> Path:
        """The folder for archives that are fetched."""
        ...

    def begin(self) -> None:
        """Make the folders, and remove what an earlier run of us left half done."""
        ...

    def archives(self) -> tuple[StoredArchive, ...]: ...

    def has(self, asset: Asset) -> bool:
        """Whether it is there, and of this host's own programs also unpacked."""
        ...

    async def take(self, asset: Asset, fetched: Fetched, runtime: Fetched | None) -> StoredArchive:
        """Prove an archive and keep it; raises ``AgentError``, and then nothing of it is left."""
        ...

    def own_facts(self) -> DeviceFacts:
        """Of this host, as far as they tell which engine suits it."""
        ...

    def remove(self, build: str) -> tuple[str, ...]:
        """Returns the archives that are gone; raises ``ReleaseUnknown``."""
        ...


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its header describes it."""

    facts: ModelFacts
    shape: ModelShape
    stand_in: Path | None = None
    """A sparse file in place of one that is not here; the engine can plan with it, not run it."""
    tensors: tuple[FileTensor, ...] = ()
    """Where they are on this host, if they are."""
    is_estimate: bool = False
    """Its shape was made up from its parameters; there is no file, nor a stand-in."""

    @property
    def file(self) -> Path:
        """What the engine can plan with."""
        return self.stand_in or Path(self.facts.path)


class ModelFetcher(Protocol):
    """Brings a model of the hub to this host."""

    async def __call__(
        self, deployment: str, reference: str, tell: Callable[[PullView], None]
    ) -> Path:
        """Wait until it is there; returns the path of its first file.

        Raises:
            ProjectError: It cannot be had; says why, and what to do.
        """
        ...


class ModelReader(Protocol):
    """Reads what planning needs of a model file."""

    def __call__(self, path: str) -> Model: ...


class OwnNetworks(Protocol):
    """The main host's own networks, as they were half a minute ago at most."""

    async def addresses(self) -> list[NetworkAddress]: ...

    async def rdma(self) -> str:
        """Of its RDMA devices: ``active``, ``down``, or empty if there is none."""
        ...


class WireMeter(Protocol):
    """Measures one wire to an idle device.

    Raises ``WorkerBusy`` if the device does not want that now.
    """

    async def __call__(self, device: Device, pair: Pair, serial: str) -> Measured: ...


class WorkerProbe(Protocol):
    """Asks one idle rpc-server who it is."""

    async def __call__(
        self, host: str, port: int, *, deadline_s: float, expected: Triple | None = None
    ) -> ProbeResult: ...


class EngineProcesses(Protocol):
    """Starts llama-server, and finds one again that an earlier run of us started."""

    async def start(
        self, argv: Sequence[str], environment: Mapping[str, str], log_path: Path
    ) -> Running: ...

    def adopt(self, record: LaunchRecord) -> Running | None: ...

    def sweep(self, unfinished: Iterable[LaunchRecord]) -> None:
        """End what was left of these launches and not adopted."""
        ...


class Links(Protocol):
    """The near ends of a launch, in their process."""

    @property
    def pid(self) -> int: ...

    @property
    def log_path(self) -> Path: ...

    @property
    def is_alive(self) -> bool: ...

    @property
    def silent_s(self) -> float:
        """Since its last word; it repeats itself twice a second."""
        ...

    async def ready(self, agents: int, deadline_s: float) -> Mapping[AgentId, LinkStats]: ...

    def stats(self) -> Mapping[AgentId, LinkStats]: ...

    async def fresh(self) -> None:
        """Make ``stats`` as of now, if that is possible at once."""
        ...

    async def changed(self) -> None: ...

    def raise_if_lost(self) -> None:
        """Raises ``ProjectError``, whose text names worker, phase and last command."""
        ...

    async def stop(self) -> None: ...


@runtime_checkable
class LendingLinks(Protocol):
    """Links that push, and leave out what other devices bring."""

    async def lend(
        self, agent_id: AgentId, names: Sequence[ChunkName]
    ) -> tuple[ChunkName, ...]: ...

    def settle(
        self, agent_id: AgentId, arrived: Mapping[ChunkName, int], back: Iterable[ChunkName]
    ) -> None: ...

    def stored(self) -> Mapping[AgentId, Sequence[ChunkName]]: ...

    def limit(self, bytes_per_s: int) -> None:
        """Send no more than that from now on, over all links together; 0: any."""
        ...

    def leave(self, agent_id: AgentId, reason: str) -> None:
        """End the push to one device; what has arrived there stays."""
        ...


class LinkStarter(Protocol):
    """Starts the links of a launch; ready they are a moment later."""

    async def start(self, job: LinkJob) -> Links: ...

    async def adopt(self, pid: int) -> Links | None:
        """Those of a launch that an earlier run of us started, if they still stand."""
        ...

    def sweep(self) -> None:
        """End what an earlier run of us left and nobody adopted."""
        ...


class Health(StrEnum):
    """Expected outcomes of a health probe are values, not exceptions."""

    READY = "ready"
    LOADING = "loading"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion: how many tokens, and the engine's own speed."""

    tokens: int
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Generated:
    """All that a llama-server has generated: tokens, the time they took, and its last speed."""

    tokens: int
    seconds: float
    tokens_per_second: float | None


class ServerClient(Protocol):
    """HTTP interface of one llama-server."""

    async def health(self, timeout_s: float) -> Health: ...

    async def refuses_us(self, timeout_s: float) -> bool: ...

    async def first_completion(self, timeout_s: float) -> Answer: ...

    async def generated(self) -> Generated | None: ...

    async def slots(self, timeout_s: float) -> tuple[SlotState, ...] | None: ...

    async def close(self) -> None: ...


class EngineCut(Exception):
    """llama-server went away before it had answered; what becomes of the request is ours to say."""


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """What an engine answers: head, and body in the pieces in which it comes."""

    status: int
    headers: Sequence[tuple[str, str]]
    chunks: AsyncIterator[bytes]
    """Raises ``EngineCut``."""


class EnginePassage(Protocol):
    """Passes requests on to the engines of this host."""

    def opened(
        self, port: int, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> contextlib.AbstractAsyncContextManager[UpstreamAnswer]:
        """Raises ``EngineCut``. Leaving the block hangs up."""
        ...


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key, and its serial number as hexadecimal text."""

    certificate_pem: str
    key_pem: str
    serial: str


class IssuerPort(Protocol):
    """The cluster's authority."""

    @property
    def certificate_pem(self) -> str: ...

    def issue(self, name: str) -> Issued: ...


class MemoryEstimator(Protocol):
    """Asks the engine itself what a plan needs.

    Raises ``EngineRefusedModel`` or ``EngineRefusedFlag`` when the launch would fail for that
    reason, ``EngineToolMissing`` or ``EstimateFailed`` when there is no figure.
    """

    @property
    def is_there(self) -> bool: ...

    async def __call__(self, model: Model, plan: Plan) -> EngineMemory: ...


class StorePort(Protocol):
    """What must survive a crash. Every method raises ``StoreUnusable``."""

    def save_deployment(self, deployment: Deployment) -> None: ...

    def delete_deployment(self, deployment: DeploymentId) -> None: ...

    def deployments(self) -> list[Deployment]: ...

    def next_launch_id(self) -> LaunchId: ...

    def save_launch(self, record: LaunchRecord) -> None: ...

    def launches(self, limit: int = 100) -> list[LaunchRecord]: ...

    def launch(self, launch_id: LaunchId) -> LaunchRecord: ...

    def events(
        self,
        after_id: int | None = None,
        limit: int = 100,
        subject: str | None = None,
        launch_id: LaunchId | None = None,
    ) -> list[EventRecord]: ...

    def last_event_id(self) -> int: ...

    def save_together(
        self,
        deployments: Mapping[DeploymentId, Deployment | None],
        launches: Sequence[LaunchRecord],
        events: Sequence[EventRecord],
    ) -> None:
        """All of it, or nothing. A deployment that is None is deleted; events are numbered."""
        ...

    def save_measurement(self, measured: DeviceMeasured | LinkMeasured) -> None: ...

    def device_measurements(self) -> list[DeviceMeasured]: ...

    def link_measurements(self) -> list[LinkMeasured]: ...

    def save_model_settings(self, settings: ModelSettings) -> None: ...

    def model_settings(self) -> list[ModelSettings]: ...

    def delete_model_settings(self, model: str) -> None: ...

    def save_lesson(self, lesson: Lesson) -> None: ...

    def lessons(self) -> list[Lesson]: ...

    def save_key(self, key_hash: str, key: ApiKey) -> None: ...

    def api_keys(self) -> list[tuple[str, ApiKey]]: ...

    def delete_key(self, key_hash: str) -> None: ...

    def save_key_usage(self, keys: Mapping[str, ApiKey]) -> None:
        """All of it, or nothing. A key that is gone stays gone."""
        ...

    def save_requests(self, records: Sequence[RequestRecord]) -> None:
        """All of them, or none; only the newest are kept."""
        ...

    def requests(
        self, limit: int = 100, deployment: str | None = None, caller: str | None = None
    ) -> list[RequestRecord]:
        """Newest first."""
        ...
