"""The values that the project speaks in. Immutable; operator input forbids unknown fields."""

from typing import Annotated, NewType

from pydantic import BaseModel, ConfigDict, Field

from agents.contract import DeviceFacts, RpcServerStatus
from supervisor.core.lifecycle import State

AgentId = NewType("AgentId", str)
DeploymentId = NewType("DeploymentId", str)
LaunchId = NewType("LaunchId", int)

ByteCount = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
MAX_REMOTE_DEVICES = 14
"""llama.cpp's scheduler takes 16 backends, the CPU and BLAS ones among them (ggml-backend.cpp)."""


class FrozenModel(BaseModel):
    """Immutable; unknown fields are an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DeploymentSpec(FrozenModel):
    """What the operator asked for; never what is running."""

    model: str = Field(min_length=1, examples=["/models/gemma-3-1b-it-Q4_K_M.gguf"])
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]{0,62}$")
    ctx_tokens: int = Field(default=4096, ge=256, le=10_000_000)
    devices: tuple[str, ...] = Field(default=(), description="names or ids; empty means all ready")
    split: tuple[int, ...] = Field(default=(), description="layers per device, in that order")
    slots: int = Field(default=1, ge=1, le=256, description="parallel sequences")


class ModelFacts(FrozenModel):
    """What planning needs of a model's header."""

    path: str
    name: str
    architecture: str
    block_count: int = Field(ge=1)
    size_bytes: ByteCount
    ctx_train_tokens: int | None = None


class Candidate(FrozenModel):
    """One ggml device that may take layers."""

    agent_id: AgentId
    device: str = Field(description="name of the device, as its owner calls it")
    ggml_device: str
    host: str
    available_bytes: ByteCount


class Shard(FrozenModel):
    """The run of layers placed on one ggml device. The last one also holds the output layer."""

    agent_id: AgentId
    device: str
    ggml_device: str
    host: str
    layers: int = Field(ge=1, description="repeating layers, plus the output layer on the last")
    has_output: bool = False
    weight_bytes: ByteCount = 0
    available_bytes: ByteCount = 0


class Plan(FrozenModel):
    """Placement chosen for one launch."""

    model: ModelFacts
    ctx_tokens: int
    slots: int
    shards: tuple[Shard, ...]
    reasons: tuple[str, ...] = ()

    @property
    def total_layers(self) -> int:
        """Repeating layers and the output layer: what the split adds up to."""
        return self.model.block_count + 1

    @property
    def agent_ids(self) -> tuple[AgentId, ...]:
        """Workers in the order of their first shard, which is the order of ``--rpc``."""
        return tuple(dict.fromkeys(shard.agent_id for shard in self.shards))


class WorkerRecord(FrozenModel):
    """One worker of a launch as it was verified, with its own exact command."""

    agent_id: AgentId
    device: str
    host: str
    port: int
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
    timeline: tuple[Milestone, ...] = ()
    outcome: str = "starting"
    error_code: str = ""
    reason: str = ""
    ended_at: str = ""


class WorkerLoad(FrozenModel):
    """How far one worker of a launch is."""

    device: str
    layers: int
    weight_bytes: ByteCount
    loaded_bytes: ByteCount = 0


class Deployment(FrozenModel):
    """A deployment: what was asked, and its state."""

    id: DeploymentId
    spec: DeploymentSpec
    state: State = State.PENDING
    reason: str = ""
    error_code: str = ""
    phase: str = ""
    since: str = ""
    failures: int = 0
    launch_id: LaunchId | None = None
    port: int | None = None
    retry_at: str = ""
    plan: Plan | None = None
    loads: tuple[WorkerLoad, ...] = ()
    timeline: tuple[Milestone, ...] = ()
    tokens_per_second: float | None = None


class Device(FrozenModel):
    """A joined device with its last word."""

    id: AgentId
    name: str
    address: str
    rest_port: int
    state: str
    reason: str = ""
    silent_s: float
    facts: DeviceFacts | None
    rpc_server: RpcServerStatus | None
    used_by: DeploymentId | None = None
    round_trip_ms: float | None = None
