"""The values that the project speaks in. Immutable; operator input forbids unknown fields."""

from enum import StrEnum
from typing import Annotated, Literal, NewType

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from agents.contract import DeviceFacts, EngineInstall, RpcServerStatus
from supervisor.core.lifecycle import State
from supervisor.core.model_options import ModelOptions

AgentId = NewType("AgentId", str)
DeploymentId = NewType("DeploymentId", str)
LaunchId = NewType("LaunchId", int)

ByteCount = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Alias = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
MAX_REMOTE_DEVICES = 14
"""llama.cpp's scheduler takes 16 backends, the CPU and BLAS ones among them (ggml-backend.cpp)."""


class FrozenModel(BaseModel):
    """Immutable; unknown fields are an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Preset(StrEnum):
    """What to optimise for."""

    BALANCED = "balanced"
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    FEWEST_DEVICES = "fewest devices"


class DeploymentSpec(ModelOptions):
    """What the operator asked for; never what is running."""

    model: str = Field(min_length=1, examples=["/models/gemma-3-1b-it-Q4_K_M.gguf"])
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]{0,62}$")
    ctx_tokens: int = Field(default=4096, ge=256, le=10_000_000)
    min_ctx_tokens: int | None = Field(
        default=None, ge=256, description="shrink the context down to this if need be"
    )
    slots: int = Field(default=1, ge=1, le=256, description="parallel sequences")
    devices: tuple[str, ...] = Field(
        default=(), description="use all of these and no others; empty: the planner chooses"
    )
    exclude: tuple[str, ...] = Field(default=(), description="never use these")
    order: tuple[str, ...] = Field(default=(), description="use all of these, in this order")
    split: tuple[int, ...] = Field(
        default=(), description="layers of each of the named devices, the output included"
    )
    kv_type: str | None = Field(default=None, examples=["f16", "q8_0"])
    ubatch: int | None = Field(default=None, ge=32, le=8192, description="tokens at once")
    pin_output: str | None = Field(default=None, description="device of the output layer")
    goal: Preset = Preset.BALANCED
    transport: Literal["link", "direct"] = Field(
        default="link", description="direct: rpc-server itself on the network, without a key"
    )
    prompt_tokens: int = Field(default=1000, ge=1, description="of a usual request")
    generated_tokens: int = Field(default=300, ge=0, description="of a usual request")
    users: int = Field(default=1, ge=1, le=256, description="served at once")
    on_demand: bool = Field(
        default=False, description="a request for it starts it when it is stopped"
    )
    ttl_s: Seconds | None = Field(
        default=None, gt=0, description="stopped after this long without a request; None: never"
    )
    aliases: tuple[Alias, ...] = Field(
        default=(), max_length=16, description="other names that requests may use"
    )


class ModelFacts(FrozenModel):
    """What planning needs of a model's header."""

    path: str
    name: str
    architecture: str
    block_count: int = Field(ge=1)
    size_bytes: ByteCount
    ctx_train_tokens: int | None = None


class MemoryUse(FrozenModel):
    """Predicted bytes in one place with the whole context in use."""

    weight_bytes: ByteCount = 0
    kv_bytes: ByteCount = 0
    compute_bytes: ByteCount = 0
    peak_bytes: ByteCount = Field(default=0, description="the most at any time, loading included")
    budget_bytes: ByteCount = Field(default=0, description="available, without the head-room")
    available_bytes: ByteCount = 0


class Shard(MemoryUse):
    """The run of layers placed on one ggml device. The last one also holds the output layer."""

    agent_id: AgentId
    device: str
    ggml_device: str
    host: str
    layers: int = Field(ge=1, description="repeating layers, plus the output layer on the last")
    first_layer: int = 0
    has_output: bool = Field(default=False, description="and computes it")


class HostShare(MemoryUse):
    """What llama-server holds itself: the embeddings, and perhaps the first layers."""

    layers: int = 0
    has_output: bool = False
    option_bytes: ByteCount = Field(
        default=0, description="of files that its options name, such as a projector"
    )


class StagePrediction(FrozenModel):
    """Where the time of one token goes, for one place."""

    device: str
    compute_s: Seconds
    network_s: Seconds


class Prediction(FrozenModel):
    """What a placement is expected to give."""

    decode_tokens_per_s: float = Field(description="of all users together")
    prefill_tokens_per_s: float
    load_s: Seconds
    prompt_tokens: int
    users: int = 1
    output_s: Seconds = Field(description="of a token: the output layer")
    stages: tuple[StagePrediction, ...] = Field(description="in order, the main host's first")
    is_guess: bool = Field(description="some device or link was never measured")


class LeftOut(FrozenModel):
    """A device that the best placement does without, and what it would give to use it."""

    name: str
    reason: str
    tokens_per_s: float | None = Field(default=None, description="None: it cannot take part")
    cost_s: float | None = None


class Plan(FrozenModel):
    """Placement chosen for one launch."""

    model: ModelFacts
    ctx_tokens: int
    slots: int
    kv_type: str = "f16"
    ubatch: int = 512
    shards: tuple[Shard, ...] = Field(description="in the order of --device; none: the host alone")
    host: HostShare = HostShare()
    tensor_overrides: tuple[str, ...] = Field(default=(), description="for -ot")
    samples_on_device: bool = Field(default=False, description="--backend-sampling")
    cache_ram_mib: int = Field(
        default=0, ge=0, description="--cache-ram: for prompts of earlier conversations"
    )
    ctx_checkpoints: int | None = Field(
        default=None, ge=0, description="--ctx-checkpoints; None: the engine's own default"
    )
    option_words: tuple[str, ...] = Field(
        default=(), description="model options as llama-server is told them"
    )
    prediction: Prediction | None = None
    reasons: tuple[str, ...] = Field(default=(), description="why, in sentences")
    left_out: tuple[LeftOut, ...] = ()
    memory_from: Literal["formulas", "engine"] = "formulas"

    @property
    def gpu_layers(self) -> int:
        """For ``-ngl``: what is not the main host's; the split adds up to this."""
        return self.model.block_count + 1 - self.host.layers if self.shards else 0

    @property
    def agent_ids(self) -> tuple[AgentId, ...]:
        """Workers in the order of their first shard, which is the order of ``--rpc``."""
        return tuple(dict.fromkeys(shard.agent_id for shard in self.shards))


class WorkerRecord(FrozenModel):
    """One worker of a launch as it was verified, with its own exact command."""

    agent_id: AgentId
    device: str
    host: str = Field(description="where llama-server finds it: loopback, if there is a link")
    port: int
    link: str = Field(default="", description="far end of its link; empty: none, transport direct")
    wire: str = Field(default="", description="why its tensors go that way; empty: no choice")
    rdma: str = Field(default="", description="whether it may use RDMA, and why not; empty: no")
    address: str = Field(default="", description="of the device")
    rpc_protocol: str
    engine_build: str
    round_trip_ms: float
    argv: tuple[str, ...]
    environment: dict[str, str]

    @property
    def endpoint(self) -> str:
        return f"{self.host}:{self.port}"


class Milestone(FrozenModel):
    """A point of a launch: seconds since it was asked for, and since the one before."""

    name: str
    at_s: Seconds
    took_s: Seconds


class EngineRecord(FrozenModel):
    """The llama-server that was started."""

    path: str
    version: str
    build: str
    rpc_protocol: str


class MemorySample(FrozenModel):
    """Memory of one process at one moment; what the platform does not tell is None."""

    resident_bytes: ByteCount | None = Field(
        default=None, description="now; without file_bytes, where those are known"
    )
    peak_bytes: ByteCount | None = Field(
        default=None, description="the most ever resident, pages of files among them"
    )
    file_bytes: ByteCount | None = Field(
        default=None, description="pages of files, as a mapped model, which can be taken back"
    )


class ProcessMemory(FrozenModel):
    """What one process of a launch was predicted to need, and what it was seen to use."""

    process: str = Field(description="llama-server, or the device whose rpc-server it is")
    predicted_bytes: ByteCount = Field(description="the most at any time; 0: unknown")
    budget_bytes: ByteCount
    has_gpu: bool = Field(default=False, description="part of it is a GPU's and not seen here")
    measured_bytes: ByteCount | None = Field(
        default=None, description="the most it was seen to use and could not give back"
    )
    loading: MemorySample | None = Field(default=None, description="the most while it loaded")
    ready: MemorySample | None = None
    ended: MemorySample | None = Field(default=None, description="just before it was stopped")


class LinkView(FrozenModel):
    """One link of a launch. Bytes are counted since the launch began."""

    device: str
    state: str
    phase: str = ""
    round_trip_ms: float | None = None
    weight_bytes: ByteCount = Field(default=0, description="of weights that the worker has")
    saved_bytes: ByteCount = Field(default=0, description="of them that it had already")
    seeded_bytes: ByteCount = Field(default=0, description="sent ahead of llama-server")
    remaining_bytes: ByteCount = Field(default=0, description="of weights, while they load")
    sent_bytes: ByteCount = Field(default=0, description="on the wire, of everything")
    received_bytes: ByteCount = 0
    bytes_per_s: ByteCount = Field(default=0, description="of weights, lately")
    eta_s: Seconds | None = None
    wire_share: float | None = Field(
        default=None, description="of the time that llama-server waited for this worker"
    )
    wire_s: Seconds = 0.0
    compute_s: Seconds = 0.0
    last_command: str = ""
    waiting_s: Seconds = Field(default=0.0, description="for the answer that is missing")
    detail: str = ""


class PushView(FrozenModel):
    """How far the weights for one device are, outside any launch."""

    device: str
    state: str
    total_bytes: ByteCount = 0
    done_bytes: ByteCount = Field(default=0, description="there, whether sent now or before")
    sent_bytes: ByteCount = Field(default=0, description="now, by the main host")
    from_peers_bytes: ByteCount = Field(default=0, description="now, by other devices")
    bytes_per_s: ByteCount = 0
    eta_s: Seconds | None = None
    problem: str = Field(default="", description="why it got no more")
    note: str = Field(default="", description="why other devices could not help")


class PullView(FrozenModel):
    """How far a model is that is fetched from the hub."""

    id: str
    reference: str = Field(description="as it was asked for first")
    repo: str
    label: str = Field(description="its quantisation, or its file's name where there is none")
    files: int = Field(ge=1)
    state: Literal["queued", "fetching", "paused", "checking", "done", "failed"]
    done_bytes: ByteCount = Field(default=0, description="there, whether of now or of before")
    total_bytes: ByteCount = 0
    bytes_per_s: ByteCount = Field(default=0, description="lately")
    eta_s: Seconds | None = None
    path: str = Field(default="", description="of its first file; empty until it is done")
    error_code: str = ""
    detail: str = Field(default="", description="why it failed, or what it waits for")
    deployments: tuple[str, ...] = Field(default=(), description="that wait for it")


class Action(StrEnum):
    """What a repair changes before it tries again."""

    RETRY = "retry"
    SMALLER_UBATCH = "smaller ubatch"
    SMALLER_SHARE = "smaller share"
    EXCLUDE = "exclude"
    GIVE_UP = "give up"


class Cause(FrozenModel):
    """Why something ended or cannot begin: for people, for programs, and for the repair."""

    code: str = Field(description="of an error; docs/errors.md has a section for each")
    sentence: str = Field(description="what happened, with the numbers")
    evidence: tuple[str, ...] = Field(default=(), description="lines that show it, best first")
    remedy: str = Field(default="", description="what to do, or what is being done")
    action: Action = Action.RETRY
    agent_id: str = Field(default="", description="of the device that it is about")
    device: str = Field(default="", description="name of that device")

    @property
    def text(self) -> str:
        """Both sentences in one line."""
        return f"{self.sentence}; {self.remedy}" if self.remedy else self.sentence


class EventRecord(FrozenModel):
    """Something that happened, kept: a change of state with time and reason."""

    id: int = Field(default=0, description="counts up; 0: not stored yet")
    at: str = Field(description="UTC, ISO 8601 with milliseconds")
    kind: Literal["deployment", "device", "supervisor"]
    subject: str = Field(description="name of what changed")
    change: str = Field(description="such as 'ready -> degraded'")
    launch_id: LaunchId | None = None
    code: str = ""
    text: str = Field(default="", description="the reason, one line")


class LaunchRecord(FrozenModel):
    """One attempt to run a deployment: everything needed to repeat it by hand."""

    id: LaunchId
    deployment: DeploymentId
    started_at: str
    plan: Plan
    main_host: str
    engine: EngineRecord
    workers: tuple[WorkerRecord, ...] = ()
    argv: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    log_path: str = ""
    pid: int | None = None
    port: int = Field(default=0, description="of llama-server, on loopback")
    model_files: dict[str, str] = Field(
        default_factory=dict, description="what tells each file from a later one of that name"
    )
    timeline: tuple[Milestone, ...] = ()
    memory: tuple[ProcessMemory, ...] = ()
    links: tuple[LinkView, ...] = ()
    link_pid: int | None = Field(default=None, description="of the process that holds the links")
    link_log_path: str = ""
    outcome: str = "starting"
    error_code: str = ""
    reason: str = ""
    cause: Cause | None = None
    transitions: tuple[EventRecord, ...] = Field(
        default=(), description="of its deployment while this was its launch"
    )
    ended_at: str = ""


class WorkerLoad(FrozenModel):
    """How far one worker of a launch is."""

    device: str
    layers: int
    weight_bytes: ByteCount
    loaded_bytes: ByteCount = 0


class WorkerTime(FrozenModel):
    """What one worker takes of a generated token. Milliseconds."""

    device: str
    compute_ms: float = Field(ge=0)
    wire_ms: float = Field(ge=0, description="to it and back; the link's own work is in it")


class TokenTime(FrozenModel):
    """Where the time of one generated token went lately. With several slots, of one of them all."""

    at: str = Field(description="when this was seen last; UTC, ISO 8601 with milliseconds")
    tokens: int = Field(ge=1, description="that it is the mean of")
    host_ms: float = Field(ge=0, description="all the rest, which the main host needs itself")
    workers: tuple[WorkerTime, ...] = Field(default=(), description="in the order of --rpc")


class Deployment(FrozenModel):
    """A deployment: what was asked, and its state."""

    id: DeploymentId
    spec: DeploymentSpec
    warnings: tuple[str, ...] = Field(default=(), description="what such a launch exposes")
    state: State = State.PENDING
    reason: str = ""
    error_code: str = ""
    cause: Cause | None = Field(default=None, description="of the last failure, until READY again")
    phase: str = ""
    pull: PullView | None = Field(default=None, description="of its model, while that is fetched")
    since: str = ""
    failures: int = 0
    launch_id: LaunchId | None = None
    port: int | None = None
    retry_at: str = ""
    plan: Plan | None = None
    loads: tuple[WorkerLoad, ...] = ()
    links: tuple[LinkView, ...] = ()
    timeline: tuple[Milestone, ...] = ()
    tokens_per_second: float | None = None
    generated_tokens: int | None = Field(
        default=None, description="by the llama-server of this launch, as it said last"
    )
    generated_s: Seconds | None = Field(default=None, description="the time that this took")
    token_time: TokenTime | None = Field(
        default=None, description="of this launch, while or when it generated last; None: not yet"
    )
    slow: str = Field(default="", description="if it is slower than it normally was: how, and who")


class MeasuredSpeed(FrozenModel):
    """What was measured of a device and of the link to it, in short. Plans know more."""

    decode_bytes_per_s: float = Field(
        description="of weights, for one token: the fastest type of its fastest ggml device, "
        "times what is left of that under steady load (sustained_factor)"
    )
    up_bytes_per_s: float = Field(description="from the main host to the device")
    down_bytes_per_s: float = Field(description="from the device to the main host")
    round_trip_ms: float = Field(description="half of all are shorter")
    taken_at: str = Field(description="ISO 8601 with time zone")
    stale: str = Field(default="", description="why it no longer counts; empty: it does")


class Wire(FrozenModel):
    """One way from the main host to a device: a pair of addresses, and what was measured of it."""

    near: str = Field(description="address of the main host")
    far: str = Field(description="address of the device")
    kind: str = Field(default="", description="of the slower end, as in NetworkAddress")
    interface: str = Field(default="", description="of the device")
    round_trip_ms: float | None = None
    up_bytes_per_s: float | None = Field(default=None, description="to the device")
    in_use: bool = Field(default=False, description="tensors go this way")
    problem: str = Field(default="", description="why it cannot be used; empty: it can")


class DeviceChoice(FrozenModel):
    """What the operator decided about a device; it outlives our restarts and a new joining."""

    agent_id: AgentId
    name: str = Field(default="", description="empty: as it called itself when it joined")
    excluded: bool = False
    wire: str = Field(default="", description="far address for tensors; empty: the fastest")


class Device(FrozenModel):
    """A joined device with its last word."""

    id: AgentId
    name: str
    address: str
    rest_port: int
    link_address: str = ""
    link_port: int = 0
    state: str
    reason: str = ""
    silent_s: float
    facts: DeviceFacts | None
    rpc_server: RpcServerStatus | None
    used_by: DeploymentId | None = None
    round_trip_ms: float | None = None
    excluded: bool = Field(default=False, description="the operator wants no plan with it")
    doing: str = Field(default="", description="what it does now, in few words; empty: nothing")
    speed: MeasuredSpeed | None = Field(default=None, description="None: never measured")
    wires: tuple[Wire, ...] = Field(default=(), description="ways to it, the one in use first")
    wire: str = Field(default="", description="far address that the operator chose; empty: none")
    engine_install: EngineInstall | None = Field(
        default=None, description="of an engine that it gets from us; None: nothing was offered"
    )

    @property
    def link_endpoint(self) -> str:
        """Where its far end is, for people."""
        host = f"[{self.link_address}]" if ":" in self.link_address else self.link_address
        return f"{host}:{self.link_port}"
