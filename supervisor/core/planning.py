"""What the planner is asked and what it answers; values only."""

from math import inf

from pydantic import Field

from supervisor.core.entities import ByteCount, FrozenModel, LeftOut, MemoryUse, Preset
from supervisor.core.memory import MIB, Platform, Run
from supervisor.core.model_shape import ModelShape
from supervisor.core.speed import DeviceSpeed, LinkSpeed, Output, Times, Workload

HOST = "main host"
NO_OVERRIDE = "zzz=CPU"
"""Matches no tensor; any ``-ot`` turns off llama.cpp's four input copies (planning.md 1.5)."""

LEAST_S = 1e-6
"""Of a model whose blocks have no weights, which is none, though a header may say so."""


class GpuLimit(FrozenModel):
    """A Mac's limit on what its GPU may use, where that binds before memory does."""

    limit_bytes: ByteCount
    memory_bytes: ByteCount = Field(description="of the whole Mac")
    free_bytes: ByteCount = Field(description="of it")
    raised_mib: int = Field(description="what it may safely be raised to")


class DeviceOffer(FrozenModel):
    """One device that may take layers; a link of zeros means that it is the main host's own."""

    name: str
    platform: Platform
    available_bytes: ByteCount = Field(description="as its agent reports, never as RPC does")
    speed: DeviceSpeed
    link: LinkSpeed = LinkSpeed()
    is_reliable: bool = Field(default=True, description="mains power, wired, cool")
    cached_layers: frozenset[int] = Field(
        default=frozenset(), description="layers whose weights it has already; n_layers: output"
    )
    ubatch_cap: int | None = Field(
        default=None, ge=1, description="it failed with more; only an override may exceed it"
    )
    is_small_mac: bool = Field(default=False, description="its GPU is given less at once")
    gpu_limit: GpuLimit | None = None


class HostOffer(FrozenModel):
    """The main host's own processor: embeddings always, the first layers and the output maybe."""

    available_bytes: ByteCount
    speed: DeviceSpeed
    platform: Platform = Platform.CPU
    may_hold_layers: bool = True
    token_overhead_s: float = Field(default=0.0, ge=0, description="sampling, per token")
    disk_bytes_per_s: float = Field(default=0.0, ge=0, description="0: no limit")


class Goal(FrozenModel):
    """What a placement is judged by: seconds per request, loading included."""

    workload: Workload = Workload()
    requests_per_load: float = Field(default=50, gt=0, description="a load is shared by these")
    fewest_devices: bool = False
    unreliable_factor: float = Field(default=1.1, ge=1, description="each must gain this much")

    @classmethod
    def preset(cls, preset: Preset, workload: Workload | None = None) -> "Goal":
        work = workload or Workload()
        if preset is Preset.LATENCY:
            return cls(workload=work, requests_per_load=inf)
        if preset is Preset.THROUGHPUT:
            users = work.users if work.users > 1 else 8
            batched = work.model_copy(update={"users": users})
            return cls(workload=batched, requests_per_load=inf)
        return cls(workload=work, fewest_devices=preset is Preset.FEWEST_DEVICES)


class Rules(FrozenModel):
    """How careful the planner is."""

    margin_floor_bytes: ByteCount = 0
    compute_factor: float = Field(default=1.15, ge=1, description="graphs differ from llama's")
    compute_extra_bytes: ByteCount = 64 * MIB
    allow_sampling_on_devices: bool = False
    max_rtt_p90_s: float = Field(default=0.1, gt=0, description="beyond, a link is unreliable")
    work_limit: int = Field(default=15_000, ge=1, description="steps before a search settles")


class Wanted(FrozenModel):
    """What the server shall offer; the planner takes the first of each that fits."""

    ctx_tokens: int = Field(default=4096, ge=1)
    min_ctx_tokens: int | None = Field(default=None, ge=1, description="None: no smaller")
    kv_types: tuple[str, ...] = ("f16", "q8_0")
    ubatches: tuple[int, ...] = (512, 256, 128)
    slots: int = Field(default=1, ge=1)
    is_unified: bool = True


class Overrides(FrozenModel):
    """What the operator decided; empty means that the planner decides."""

    devices: tuple[str, ...] = Field(default=(), description="these and no others, all of them")
    exclude: tuple[str, ...] = ()
    order: tuple[str, ...] = Field(default=(), description="these, all of them, in this order")
    split: tuple[int, ...] = Field(
        default=(), description="layers of each of ``order`` or ``devices``, the output included"
    )
    ctx_tokens: int | None = Field(default=None, ge=1)
    kv_type: str | None = None
    ubatch: int | None = Field(default=None, ge=1)
    pin_output: str | None = Field(default=None, description=f"a device, or '{HOST}'")

    @property
    def is_empty(self) -> bool:
        return self == Overrides()


class PlanRequest(FrozenModel):
    """Everything that a plan follows from."""

    shape: ModelShape
    devices: tuple[DeviceOffer, ...]
    host: HostOffer
    wanted: Wanted = Wanted()
    goal: Goal = Goal()
    rules: Rules = Rules()
    overrides: Overrides = Overrides()


class PlacedDevice(FrozenModel):
    """The run of layers on one device."""

    name: str
    first_layer: int
    layers: int = Field(description="repeating layers only")
    memory: MemoryUse


class Placement(FrozenModel):
    """Where everything is, and what that is predicted to need and to give."""

    devices: tuple[PlacedDevice, ...] = Field(description="in the order of --device")
    host: PlacedDevice
    output: Output
    output_pattern: str
    run: Run
    prompt_tokens: int
    users: int
    times: Times = Field(description="stages: the host's layers first, if there are any")
    cost_s: float = Field(description="per request, with its share of loading")

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second of all users together."""
        return self.users / self.times.token_s

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.prompt_tokens / max(self.times.prompt_s, LEAST_S)

    @property
    def output_device(self) -> str:
        return HOST if self.output is Output.HOST else self.devices[-1].name

    @property
    def n_layers(self) -> int:
        return self.host.layers + sum(device.layers for device in self.devices)

    @property
    def gpu_layers(self) -> int:
        """For ``-ngl``: all but the host's layers, the output counted as one more."""
        return self.n_layers + 1 - self.host.layers if self.devices else 0

    @property
    def tensor_split(self) -> tuple[int, ...]:
        """Layers per device; the last one's output counts, wherever it is computed."""
        counts = [device.layers for device in self.devices]
        return (*counts[:-1], counts[-1] + 1) if counts else ()

    @property
    def tensor_overrides(self) -> tuple[str, ...]:
        """For ``-ot``."""
        if self.output is Output.HOST and self.devices:
            return (f"{self.output_pattern}=CPU",)
        return (NO_OVERRIDE,) if len(self.devices) > 1 and not self.host.layers else ()


class Planned(FrozenModel):
    """The answer: the best placement, and what it was compared with."""

    best: Placement
    runners_up: tuple[Placement, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    unrestricted: Placement | None = Field(default=None, description="without the overrides")
    is_proven: bool = Field(default=True, description="nothing better exists in this model")
    shrunk: tuple[str, ...] = Field(default=(), description="wishes that did not fit")


class WhatIf(FrozenModel):
    """What a change to the cluster or the model would give."""

    change: str
    tokens_per_s: float
    cost_s: float


class Shortfall(FrozenModel):
    """What one device could hold of the model."""

    name: str
    available_bytes: ByteCount
    budget_bytes: ByteCount
    layers: int
    needs_bytes: ByteCount = Field(description="for one more layer than it can hold")


class NoFit(FrozenModel):
    """The model fits nowhere: by how much, and what would fit."""

    needed_bytes: ByteCount
    budget_bytes: ByteCount
    missing_bytes: ByteCount = Field(description="for the layers that found no place")
    missing_layers: int
    run: Run = Field(description="the smallest settings that were tried")
    devices: tuple[Shortfall, ...]
    nearest: Run | None = Field(default=None, description="smaller settings that fit")
