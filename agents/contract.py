"""The messages between supervisor and agent: plain dataclasses, JSON on the wire.

Readers ignore fields that they do not know, so that old and new agents can live together.
The supervisor validates the same classes with ``pydantic.TypeAdapter``.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from agents.errors import BadMessage

AGENT_PROTOCOL = 1
"""Raised when an old peer could misread a message, never for an added field."""

JOIN_PORT = 8101
AGENT_PORT = 8102
LINK_PORT = 8103
RPC_PORTS = range(8110, 8200)
"""Below 32768, where Linux begins to hand out ports to outgoing connections."""

SUPERVISOR_NAME = "supervisor"
"""Common name of the supervisor's certificate: the one caller that an agent obeys."""


@dataclass(frozen=True, slots=True)
class GgmlDevice:
    """One compute device as ggml names it on its own host (``CPU``, ``CUDA0``, ``MTL0``)."""

    name: str
    description: str = ""
    total_bytes: int = 0
    free_bytes: int = 0

    @property
    def is_cpu(self) -> bool:
        return self.name.upper().startswith("CPU")


@dataclass(frozen=True, slots=True)
class NetworkAddress:
    """One address of a device, and what carries it.

    ``kind`` is ``ethernet``, ``wifi``, ``thunderbolt``, ``bridge``, ``usb``, ``cellular``, ``vpn``,
    ``loopback``, or empty where the platform does not tell.
    """

    address: str
    interface: str = ""
    kind: str = ""
    prefix_length: int | None = None
    speed_mbit_per_s: int | None = None
    is_default_route: bool = False
    """What leaves this device for other networks leaves through it."""
    link_port: int = 0
    """Where the far end of the link listens at this address; 0: it does not."""
    has_rdma: bool = False
    """An active port of an RDMA device has this address."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """One build of llama.cpp on this host. ``problem`` says why it cannot serve, or is empty."""

    folder: str
    source: str
    llama_server: str = ""
    rpc_server: str = ""
    version: str = ""
    build: str = ""
    rpc_protocol: str = ""
    has_rpc: bool = False
    problem: str = ""
    problem_code: str = ""
    release: str = ""
    """Name of the upstream release, such as ``b10516``, if it came from one; else empty."""
    variant: str = ""
    """Of that release's archive, such as ``ubuntu-vulkan-x64``."""
    has_rdma: bool | None = None
    """Whether its RPC was built with RDMA; None: not known."""

    @property
    def is_fixed(self) -> bool:
        """Whether somebody on that host chose it, so that nobody else replaces it."""
        return self.source in ("setting", "LLAMA_CPP_BIN")


class InstallState(StrEnum):
    """How far an engine that the main host offered is on this device."""

    FETCHING = "fetching"
    PROVING = "proving"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class EngineOffer:
    """An engine that the main host has for a device: the archive is at ``/engines/ARCHIVE``."""

    build: str
    """How operators call it: ``b10516``, or the commit of a build without a release."""
    archive: str
    sha256: str
    size_bytes: int
    variant: str = ""


@dataclass(frozen=True, slots=True)
class EngineInstall:
    """What became of the last offer. ``error_code`` and ``detail`` say why it failed."""

    build: str
    state: InstallState
    done_bytes: int = 0
    total_bytes: int = 0
    folder: str = ""
    error_code: str = ""
    detail: str = ""


class Verdict(StrEnum):
    """What a finding of the doctor means for serving a model."""

    OK = "ok"
    WARNING = "warning"
    BLOCKS = "blocks"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of the doctor: what was found, and the one thing to do if it is not well."""

    check: str
    """Stable name, such as ``engine`` or ``wake_lock``."""
    title: str
    verdict: Verdict
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device is and has now. Unknown figures are ``None``, never a guess.

    ``memory_available_bytes`` is what may really be taken (``MemAvailable``, capped by cgroup
    limits): ggml's CPU device reports its whole memory as free.
    """

    agent_id: str
    name: str
    platform: str
    machine: str = ""
    boot_id: str = ""
    cores: int = 1
    threads: int = 0
    """Of its rpc-server."""
    memory_total_bytes: int = 0
    memory_available_bytes: int = 0
    ggml_devices: list[GgmlDevice] = field(default_factory=list)
    engine: EngineFacts | None = None
    battery_percent: float | None = None
    battery_charging: bool | None = None
    temperature_c: float | None = None
    load_average: float | None = None
    """Programs that wanted to run, on average of the last minute; like ``uptime`` has it."""
    agent_version: str = ""
    agent_start: str = ""
    """Random, chosen by each agent process: tells a restarted agent from the same one."""
    fast_cores: int | None = None
    """Of ``cores``, those of the fastest kinds; None where the platform does not tell."""
    parked: str = ""
    """Why this device takes no work now, such as a low battery; empty: it does."""
    derate: float = 1.0
    """Part of its measured speed that it has now; a hot phone is slower than it was."""
    derate_reason: str = ""
    accelerators: list[str] = field(default_factory=list)
    """``cuda``, ``vulkan``, ``metal``: what an engine with the right backend could use here."""
    addresses: list[NetworkAddress] = field(default_factory=list)
    wires: list[Finding] = field(default_factory=list)
    """What is wrong or special about its networks: bridges, overlaps, RDMA ports that are down."""
    rdma: str = ""
    """Of its RDMA devices: ``active``, ``down``, or empty if there is none."""


class WorkerState(StrEnum):
    """State of a device's one rpc-server."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RpcServerSpec:
    """Desired rpc-server. ``port`` 0 lets the agent choose; ``generation`` only ever grows."""

    generation: int
    host: str
    launch: str = ""
    main_host: str = ""
    port: int = 0
    threads: int | None = None
    devices: list[str] = field(default_factory=list)
    ready_deadline_s: float = 20.0
    rdma: bool = False
    """It may agree on RDMA with llama-server; else it keeps to TCP."""


@dataclass(frozen=True, slots=True)
class RpcServerStatus:
    """Observed rpc-server; ``error_code`` and ``detail`` say why it is not ready."""

    state: WorkerState
    generation: int = 0
    main_host: str = ""
    host: str = ""
    port: int = 0
    pid: int | None = None
    argv: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    rpc_protocol: str = ""
    exit_status: int | None = None
    error_code: str = ""
    detail: str = ""
    resident_bytes: int | None = None
    peak_bytes: int | None = None
    cpu_s: float | None = None
    clients_accepted: int = 0
    clients_closed: int = 0
    is_measuring: bool = False
    oom_kills: int | None = None
    """Processes that the kernel killed for want of memory since this rpc-server started: in its
    memory group, or on its host where groups cannot be read; None: unknown."""
    process_state: str = ""
    """``R``, ``S``, ``D``, ``T``, ``t`` or ``Z``, as in ``/proc/PID/stat``; empty: unknown."""


@dataclass(frozen=True, slots=True)
class MeasurementSpec:
    """What to measure of a device: types and widths of weights; the deadline is for all of it."""

    types: list[str]
    n_embd: int = 4096
    n_ff: int = 14336
    deadline_s: float = 60.0
    sustained_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MeasurementProgress:
    """What is being measured now, and which part of all, from 0 to 1, is done."""

    step: str
    part: float
    device: str = ""


@dataclass(frozen=True, slots=True)
class MeasuredGgmlDevice:
    """Speed of one ggml device; see ``agents.measure.DeviceMeasurement`` for the figures."""

    name: str
    rpc_protocol: str
    round_trip_s: float
    op_overhead_s: float
    hop_overhead_s: float
    weights_bytes: int
    elapsed_s: float
    decode_bytes_per_s: dict[str, float]
    prefill_flop_per_s: dict[str, float]
    sustained_factor: float = 1.0
    attention_flop_per_s: float = 0.0
    cache_bytes_per_s: float = 0.0
    prefill_attention_flop_per_s: float = 0.0
    temperature_before_c: float | None = None
    temperature_after_c: float | None = None


@dataclass(frozen=True, slots=True)
class MeasurementResult:
    """Last line of a measurement that came to its end."""

    devices: list[MeasuredGgmlDevice]


@dataclass(frozen=True, slots=True)
class MeasurementProblem:
    """Last line of one that did not."""

    error_code: str
    detail: str


MeasurementUpdate = MeasurementProgress | MeasurementResult | MeasurementProblem
"""A line of the answer to a measurement: told apart by the fields that they must have."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent by the agent every few seconds; the lease by which it is believed to be alive."""

    facts: DeviceFacts
    rpc_server: RpcServerStatus
    rest_port: int
    address: str = ""
    link_port: int = 0
    link_address: str = ""
    """Where the main host finds the link, if not at ``address``."""
    engine_install: EngineInstall | None = None
    protocol: int = AGENT_PROTOCOL


@dataclass(frozen=True, slots=True)
class HeartbeatReply:
    """``next_s`` is when the next heartbeat is due."""

    next_s: float
    lease_s: float = 0.0
    """Without an answer for so long the agent stops its rpc-server; 0: never."""
    protocol: int = AGENT_PROTOCOL


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """First message of a device, sent only after the authority's fingerprint was checked."""

    token: str
    agent_id: str
    name: str
    protocol: int = AGENT_PROTOCOL


@dataclass(frozen=True, slots=True)
class JoinReply:
    """Identity of the device. Made by the authority, since a phone cannot make certificates."""

    certificate_pem: str
    key_pem: str
    authority_pem: str
    protocol: int = AGENT_PROTOCOL


T = TypeVar("T")

_PLAIN: dict[Any, tuple[type, ...]] = {float: (int, float)}
"""Types of JSON values that a field takes besides its own."""


def read(message: type[T], data: Any) -> T:
    """Build ``message`` from parsed JSON, ignoring unknown fields.

    Raises:
        BadMessage: ``data`` is no object, lacks a required field, or a field has another type.
    """
    if not isinstance(data, Mapping):
        raise BadMessage(f"{message.__name__}: expected a JSON object, got {type(data).__name__}")
    hints = get_type_hints(message)
    values: dict[str, Any] = {}
    for item in fields(message):  # type: ignore[arg-type]
        if item.name in data:
            where = f"{message.__name__}: {item.name}"
            values[item.name] = _read_value(where, hints[item.name], data[item.name])
        elif item.default is MISSING and item.default_factory is MISSING:
            raise BadMessage(f"{message.__name__}: field {item.name!r} is missing")
    return message(**values)


def _read_value(where: str, hint: Any, value: Any) -> Any:
    if isinstance(hint, UnionType):  # every union of ours is "X | None"
        return None if value is None else _read_value(where, get_args(hint)[0], value)
    if is_dataclass(hint):
        return read(hint, value)  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        try:
            return hint(value)
        except ValueError as exc:
            raise BadMessage(f"{where}: {value!r} is not known") from exc
    kind = get_origin(hint) or hint
    is_wrong = not isinstance(value, _PLAIN.get(kind, kind))
    if is_wrong or (isinstance(value, bool) and kind is not bool):
        raise BadMessage(f"{where}: expected {kind.__name__}, got {value!r}")
    if kind is list:
        return [_read_value(where, get_args(hint)[0], item) for item in value]
    if kind is dict:
        return {name: _read_value(where, get_args(hint)[1], item) for name, item in value.items()}
    return value
