"""A believable home of invented devices and models, planned by the real planner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final

from planning_world import layer, model
from pydantic import BaseModel

from agents.contract import DeviceFacts, EngineFacts, GgmlDevice, RpcServerStatus, WorkerState
from supervisor.api.views import PlanView, ShellCommand
from supervisor.core import launch_plan
from supervisor.core.commands import FLAGS, planned_commands, shell_command
from supervisor.core.entities import (
    AgentId,
    DeploymentId,
    DeploymentSpec,
    Device,
    ModelFacts,
    Plan,
)
from supervisor.core.explain import explain
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.core.memory import GIB
from supervisor.core.model_shape import ModelShape
from supervisor.core.obeying import Lessons, with_reasons
from supervisor.core.offers import (
    HostFacts,
    Measurements,
    Place,
    device_offers,
    host_offer,
    is_host_itself,
    places_of,
)
from supervisor.core.planning import NoFit, PlanRequest
from supervisor.core.search import plan as search
from supervisor.core.what_if import what_if
from supervisor.errors import InsufficientMemory, ModelMissing

MAIN_HOST: Final = "desk"
BUILD, RPC_PROTOCOL, VERSION = "0c1e570", "7.0.0", "0.5.0"
KNOWN_FLAGS: Final = frozenset(each[0] for flag in FLAGS for each in flag.spellings[:1])
_BESIDE_CARD_BYTES: Final = 640 << 20
KEY_FILE: Final = "/home/ada/.local/share/supervisor/engine.key"


def dumped(entity: BaseModel, **more: Any) -> dict[str, Any]:
    """JSON of an entity, as the server sends it; ``more`` are fields of it, as JSON."""
    kind, body = type(entity), entity.model_dump(mode="json")
    checked: dict[str, Any] = kind.model_validate({**body, **more}).model_dump(mode="json")
    return checked


# -- models ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A model of the model folder, or of the hub."""

    path: str
    name: str
    size_gb: float
    layers: int
    embedding: int
    vocabulary: int = 128_256
    kv_elements: int = 1024
    ctx_train_tokens: int = 131_072
    architecture: str = "llama"

    @property
    def size_bytes(self) -> int:
        return int(self.size_gb * 1e9)

    @cached_property
    def shape(self) -> ModelShape:
        matrices = self.embedding * self.vocabulary * (210 + 144) // 256
        each = max(self.size_bytes - matrices, self.size_bytes // 3) // self.layers
        block = layer(each, embedding=self.embedding, kv_elements=self.kv_elements)
        made = model([block] * self.layers, embedding=self.embedding, vocabulary=self.vocabulary)
        return made.model_copy(update={"architecture": self.architecture})

    @property
    def facts(self) -> ModelFacts:
        return ModelFacts(
            path=self.path,
            name=self.name,
            architecture=self.shape.architecture,
            block_count=self.layers,
            size_bytes=self.size_bytes,
            ctx_train_tokens=self.ctx_train_tokens,
        )


LARGE: Final = Model(
    "/models/Qwen2.5-14B-Instruct-Q8_0.gguf",
    "Qwen2.5 14B Instruct",
    15.70,
    48,
    5120,
    152_064,
    ctx_train_tokens=32_768,
    architecture="qwen2",
)
MEDIUM: Final = Model(
    "/models/Llama-3.1-8B-Instruct-Q4_K_M.gguf", "Llama 3.1 8B Instruct", 4.92, 32, 4096
)
SMALL: Final = Model(
    "/models/Llama-3.2-3B-Instruct-Q4_K_M.gguf", "Llama 3.2 3B Instruct", 2.02, 28, 3072
)
TOO_LARGE: Final = Model(
    "/models/Llama-3.3-70B-Instruct-Q4_K_M.gguf", "Llama 3.3 70B Instruct", 42.52, 80, 8192
)
MODELS: Final = (LARGE, MEDIUM, SMALL, TOO_LARGE)


def model_of(reference: str) -> Model:
    """The model that a spec names.

    Raises:
        ModelMissing: There is none.
    """
    for each in MODELS:
        if reference in (each.path, each.name):
            return each
    if "/" in reference and not reference.startswith("/"):  # of the hub
        return Model(reference, reference.rsplit("/", 1)[-1], 4.68, 36, 4096, 151_936)
    raise ModelMissing(f"{reference} does not exist on the main host; check the path")


# -- devices -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A device of the home: figures in GiB, GB/s, MB/s and ms."""

    name: str
    address: str
    platform: str
    machine: str
    cores: int
    total_gib: float
    free_gib: float
    ggml: tuple[tuple[str, str, float, float], ...] = ()
    """Name, description, total and free GiB of what there is beside the CPU."""
    cpu: str = ""
    decode_gb_per_s: float = 20.0
    prefill_tflops: float = 0.4
    rtt_ms: float = 0.6
    up_mb_per_s: float = 108.0
    battery_percent: float | None = None
    battery_charging: bool | None = None
    temperature_c: float | None = None

    @property
    def has_own_card(self) -> bool:
        return bool(self.ggml) and self.platform == "linux"

    @property
    def id(self) -> AgentId:
        return AgentId(f"a-{self.name}")


DESK: Final = Kind(
    "desk", "127.0.0.1", "linux", "x86_64", 12, 32, 22.4, cpu="AMD Ryzen 9 5900X",
    decode_gb_per_s=38, prefill_tflops=0.7, rtt_ms=0.1, up_mb_per_s=4000, temperature_c=52,
)  # fmt: skip
MAC: Final = Kind(
    "mac-mini", "192.168.1.21", "macos", "arm64", 8, 16, 11.3, (("MTL0", "Apple M2", 10.7, 10.4),),
    cpu="Apple M2", decode_gb_per_s=88, prefill_tflops=3.1, rtt_ms=0.7,
)  # fmt: skip
PIXEL: Final = Kind(
    "pixel-8", "192.168.1.34", "android", "aarch64", 9, 7.6, 4.1, cpu="Google Tensor G3",
    decode_gb_per_s=17, prefill_tflops=0.14, rtt_ms=5.8, up_mb_per_s=38,
    battery_percent=64, battery_charging=False, temperature_c=37,
)  # fmt: skip
OLD_PHONE: Final = Kind(
    "old-phone", "192.168.1.35", "android", "aarch64", 8, 3.7, 1.9, cpu="Snapdragon 835",
    decode_gb_per_s=7, prefill_tflops=0.05, rtt_ms=9.4, up_mb_per_s=14,
    battery_percent=18, battery_charging=False, temperature_c=44,
)  # fmt: skip
ATTIC: Final = Kind(
    "attic-pc", "192.168.1.40", "linux", "x86_64", 8, 15.5, 9.8,
    (("CUDA0", "NVIDIA GeForce RTX 3060", 12, 10.9),), cpu="Intel Core i7-7700",
    decode_gb_per_s=285, prefill_tflops=21, rtt_ms=0.5, up_mb_per_s=111, temperature_c=41,
)  # fmt: skip
HOME: Final = (DESK, MAC, PIXEL, OLD_PHONE, ATTIC)


def engine(**changes: Any) -> EngineFacts:
    """The llama.cpp build that all have."""
    folder = "/usr/local/bin"
    known = {
        "folder": folder,
        "source": "path",
        "llama_server": f"{folder}/llama-server",
        "rpc_server": f"{folder}/ggml-rpc-server",
        "version": VERSION,
        "build": BUILD,
        "rpc_protocol": RPC_PROTOCOL,
        "has_rpc": True,
    }
    return EngineFacts(**{**known, **changes})


def device(kind: Kind, *, held_bytes: int = 0, **changes: Any) -> Device:
    """A device as the registry knows it, ready and idle unless ``changes`` say otherwise.

    ``held_bytes`` are held by its rpc-server, and so no longer available: in a card's own memory,
    if it has one, or in the one that programs have.
    """
    resident = min(held_bytes, _BESIDE_CARD_BYTES) if kind.has_own_card else held_bytes
    cpu = (("CPU", kind.cpu, kind.total_gib, kind.total_gib),)
    facts = DeviceFacts(
        agent_id=kind.id,
        name=kind.name,
        platform=kind.platform,
        machine=kind.machine,
        boot_id=f"boot-of-{kind.name}",
        cores=kind.cores,
        threads=max(kind.cores // 2, 1) if kind.platform == "android" else kind.cores,
        memory_total_bytes=int(kind.total_gib * GIB),
        memory_available_bytes=max(int(kind.free_gib * GIB) - resident, GIB // 4),
        ggml_devices=[
            GgmlDevice(name, text, int(total * GIB), max(int(free * GIB) - held_bytes, 0))
            for name, text, total, free in (*kind.ggml, *cpu)
        ],
        engine=engine(),
        battery_percent=kind.battery_percent,
        battery_charging=kind.battery_charging,
        temperature_c=kind.temperature_c,
        load_average=0.3,
        agent_version="0.1.0",
        agent_start="f00d",
    )
    state = WorkerState.READY if held_bytes else WorkerState.STOPPED
    server = RpcServerStatus(state=state, generation=1, rpc_protocol=RPC_PROTOCOL)
    if held_bytes:
        server = RpcServerStatus(
            state=state,
            generation=4,
            main_host=MAIN_HOST,
            host="127.0.0.1",
            port=8110,
            pid=4711,
            rpc_protocol=RPC_PROTOCOL,
            resident_bytes=resident,
            peak_bytes=resident,
            cpu_s=81.4,
            clients_accepted=1,
        )
    known: dict[str, Any] = {
        "id": kind.id,
        "name": kind.name,
        "address": kind.address,
        "rest_port": 8102,
        "link_address": kind.address,
        "link_port": 8103,
        "state": "ready",
        "silent_s": 1.2,
        "facts": facts,
        "rpc_server": server,
        "round_trip_ms": kind.rtt_ms,
    }
    return Device(**{**known, **changes})


def speed_of(kind: Kind, now: datetime, *, stale: str = "") -> dict[str, Any]:
    """``speed`` of a device: a summary of what was measured."""
    return {
        "decode_bytes_per_s": kind.decode_gb_per_s * 1e9,
        "up_bytes_per_s": kind.up_mb_per_s * 1e6,
        "down_bytes_per_s": kind.up_mb_per_s * 0.9e6,
        "round_trip_ms": kind.rtt_ms,
        "taken_at": (now - timedelta(days=2, hours=3)).isoformat(timespec="milliseconds"),
        "stale": stale,
    }


def device_json(
    kind: Kind,
    now: datetime,
    *,
    held_bytes: int = 0,
    excluded: bool = False,
    doing: str = "",
    is_measured: bool = True,
    stale: str = "",
    **changes: Any,
) -> dict[str, Any]:
    """A device as JSON, with what the operator decided, what it does, and how fast it is."""
    return dumped(
        device(kind, held_bytes=held_bytes, **changes),
        excluded=excluded,
        doing=doing,
        speed=speed_of(kind, now, stale=stale) if is_measured else None,
    )


def crowd(count: int) -> tuple[Kind, ...]:
    """That many devices besides the main host, of all kinds."""
    return tuple(
        Kind(
            f"{kind.name}-{number:03}",
            f"10.0.{number // 250}.{number % 250 + 1}",
            *(kind.platform, kind.machine, kind.cores),
            *(kind.total_gib, kind.free_gib * (0.85 + number % 7 / 45)),
            kind.ggml,
            kind.cpu,
            decode_gb_per_s=kind.decode_gb_per_s * (0.8 + number % 5 / 10),
            rtt_ms=kind.rtt_ms * (0.8 + number % 9 / 10),
            battery_percent=None if kind.battery_percent is None else float(20 + number % 80),
            battery_charging=kind.battery_charging,
            temperature_c=kind.temperature_c,
        )
        for number in range(count)
        for kind in [HOME[1 + number % 4]]
    )


# -- plans -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Home:
    """What the planner plans with: the devices that are there, idle, all measured."""

    kinds: tuple[Kind, ...] = HOME
    now: datetime = field(default_factory=datetime.now)

    @cached_property
    def devices(self) -> Mapping[str, Device]:
        return {kind.name: device(kind) for kind in self.kinds}

    def kind(self, name: str) -> Kind:
        return next(kind for kind in self.kinds if kind.name == name)

    def answer(self, spec: DeploymentSpec) -> PlanView:
        """What ``POST /api/plan`` answers.

        Raises:
            ProjectError: As the real planner does: there is no such model, or it does not fit.
        """
        wanted = model_of(spec.model)
        places, request = self._world(spec, wanted)
        by_name = {place.name: place for place in places}
        found = search(request)
        if isinstance(found, NoFit):
            text = " ".join(explain(request, found))
            raise InsufficientMemory(text, found.model_dump(mode="json"))
        found = found.model_copy(update={"left_out": with_reasons(found, by_name, Lessons())})
        changes = what_if(request, found.best)
        made = launch_plan.launch_plan(wanted.facts, spec, request, found.best, by_name)
        plan = made.model_copy(
            update={
                "left_out": found.left_out,
                "reasons": tuple(explain(request, found, changes)),
                "memory_from": "engine",
            }
        )
        return PlanView(plan=plan, what_ifs=changes, commands=self.commands(plan, spec))

    def plan(self, model: Model, **spec: Any) -> Plan:
        """The plan for a model."""
        return self.answer(DeploymentSpec(model=model.path, **spec)).plan

    def commands(self, plan: Plan, spec: DeploymentSpec) -> tuple[ShellCommand, ...]:
        """Those that a launch of it would run."""
        facts = {d.id: d.facts for d in self.devices.values() if d.facts is not None}
        commands = planned_commands(
            plan,
            facts,
            engine().llama_server,
            known=KNOWN_FLAGS,
            alias=spec.name or plan.model.name,
            key_file=KEY_FILE,
            direct=spec.transport == "direct",
        )
        return tuple(
            ShellCommand(host=where or MAIN_HOST, command=shell_command(argv))
            for where, argv in commands
        )

    def _world(self, spec: DeploymentSpec, wanted: Model) -> tuple[list[Place], PlanRequest]:
        desk = self.kinds[0]
        host = HostFacts(
            f"boot-of-{desk.name}", desk.platform, desk.cores, int(desk.free_gib * GIB), True
        )
        everywhere = [place for d in self.devices.values() for place in places_of(d)]
        places = [place for place in everywhere if not is_host_itself(place, host)]
        measured = self._measured(everywhere)
        joined = {name for d in self.devices.values() for name in (d.name, d.id)}
        request = PlanRequest(
            shape=wanted.shape,
            devices=device_offers(places, host, measured, wanted.shape),
            host=host_offer(host, everywhere, measured, wanted.shape),
            wanted=launch_plan.wanted(spec),
            goal=launch_plan.goal(spec),
            overrides=launch_plan.overrides(spec, places, joined),
        )
        return places, request

    def _measured(self, places: Sequence[Place]) -> Measurements:
        kinds = {kind.id: kind for kind in self.kinds}
        return Measurements(
            {(p.device.id, p.ggml.name): self._of_device(p, kinds[p.device.id]) for p in places},
            {p.device.id: self._of_link(kinds[p.device.id]) for p in places},
        )

    def _of_device(self, place: Place, kind: Kind) -> DeviceMeasured:
        is_beside = place.ggml.is_cpu and bool(kind.ggml)
        rate = 24e9 if is_beside else kind.decode_gb_per_s * 1e9
        flops = 0.25e12 if is_beside else kind.prefill_tflops * 1e12
        return DeviceMeasured(
            agent_id=kind.id,
            ggml_device=place.ggml.name,
            taken_at=self.now.isoformat(),
            rpc_protocol=RPC_PROTOCOL,
            engine_build=BUILD,
            decode_bytes_per_s={"Q4_K": rate, "Q6_K": rate * 0.8, "Q8_0": rate * 1.1},
            prefill_flop_per_s={"Q4_K": flops, "Q6_K": flops * 0.9, "Q8_0": flops},
            op_overhead_s=2e-6,
            hop_overhead_s=0.3e-3,
        )

    @staticmethod
    def _of_link(kind: Kind) -> LinkMeasured:
        return LinkMeasured(
            agent_id=kind.id,
            taken_at="2026-01-01T00:00:00+00:00",
            rtt_p50_s=kind.rtt_ms / 1e3,
            rtt_p90_s=kind.rtt_ms * 2.2e-3,
            up_bytes_per_s=kind.up_mb_per_s * 1e6,
            down_bytes_per_s=kind.up_mb_per_s * 0.9e6,
        )


def deployment_id(name: str) -> DeploymentId:
    return DeploymentId(name)
