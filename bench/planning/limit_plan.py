"""Plans of the cases of ``limit_cases.py``: what the supervisor's planner says that they need."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from limit_cases import Case

from agents.contract import EngineFacts
from agents.rpc_protocol import DeviceMemory
from supervisor.adapters.fit_params import engine_memory
from supervisor.adapters.gguf import read_header
from supervisor.adapters.memory_oracle import options_of
from supervisor.core.entities import AgentId, HostShare, ModelFacts, Plan, Shard
from supervisor.core.launch_plan import EXACT, with_engine_memory
from supervisor.core.memory import Platform, Run
from supervisor.core.model_shape import ModelShape, shape_of
from supervisor.core.planning import NO_OVERRIDE, DeviceOffer, HostOffer, Rules
from supervisor.core.search_sizes import Sizes
from supervisor.core.speed import DeviceSpeed, Output
from supervisor.core.workspace import workspace_bytes, workspace_of_any

ROOM = DeviceMemory(1 << 40, 1 << 40)
ANY_SPEED = DeviceSpeed(decode_bytes_per_s=1, prefill_flops=1)
THREADS = 1
"""Of each rpc-server, which has a tile of its own for each."""


@dataclass(frozen=True)
class Need:
    """What a worker needs beside its own program, in bytes; ``buffers`` as the engine says."""

    formula_bytes: int
    buffers_bytes: int
    workspace_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.buffers_bytes + self.workspace_bytes


async def planned(
    case: Case, path: Path, engine: EngineFacts, inherited: Mapping[str, str]
) -> tuple[Plan, list[Need]]:
    """The plan of a case with the engine's figures, and what each worker needs."""
    model, shape = _model_of(path)
    formula = _plan_of(case, model, shape)
    workers = [[ROOM]] * len(case.layers)
    said = await engine_memory(engine, path, workers, options_of(formula), inherited=inherited)
    plan = with_engine_memory(formula, shape, said)
    run = _run_of(case)
    usual = workspace_of_any(shape, run)  # in both figures of a plan, for any layers and 8 threads
    needs = [
        Need(
            own.peak_bytes - usual,
            shard.peak_bytes - usual,
            workspace_bytes(shape, run, _largest(shape, own), threads=THREADS),
        )
        for own, shard in zip(formula.shards, plan.shards, strict=True)
    ]
    return plan, needs


def _run_of(case: Case) -> Run:
    return Run(ctx_tokens=case.ctx_tokens, kv_type=case.kv_type, ubatch=case.ubatch)


def _largest(shape: ModelShape, shard: Shard) -> int:
    """Of the layers: the output matrix comes first, and nothing of it is kept by then."""
    layers = shape.layers[shard.first_layer : shard.first_layer + shard.layers]
    return max((layer.largest_bytes for layer in layers), default=0)


def _model_of(path: Path) -> tuple[ModelFacts, ModelShape]:
    header = read_header(path)
    found = ModelFacts(
        path=str(path),
        name=header.name,
        architecture=header.architecture,
        block_count=header.block_count,
        size_bytes=header.size_bytes,
    )
    tensors = [(t.name, t.shape, t.type_id, t.size_bytes) for t in header.tensors]
    return found, shape_of(header.metadata, tensors)


def _plan_of(case: Case, model: ModelFacts, shape: ModelShape) -> Plan:
    """The placement of a case, with what the closed forms say that it needs."""
    sizes = Sizes(shape, _run_of(case), Rules.model_validate(EXACT))
    host = HostOffer(available_bytes=ROOM.free_bytes, speed=ANY_SPEED)
    own = sizes.host_use(host, case.host_layers, with_output=case.output_on_host)
    return Plan(
        model=model,
        ctx_tokens=case.ctx_tokens,
        slots=1,
        kv_type=case.kv_type,
        ubatch=case.ubatch,
        shards=_shards(case, sizes),
        host=HostShare(layers=case.host_layers, has_output=case.output_on_host, **own.model_dump()),
        tensor_overrides=_overrides(case, shape),
    )


def _shards(case: Case, sizes: Sizes) -> tuple[Shard, ...]:
    shards, first = [], case.host_layers
    for index, layers in enumerate(case.layers):
        name, is_last = f"worker{index}", index == len(case.layers) - 1
        output = (Output.HOST if case.output_on_host else Output.LAST) if is_last else None
        offer = DeviceOffer(
            name=name, platform=Platform.CPU, available_bytes=ROOM.free_bytes, speed=ANY_SPEED
        )
        use = sizes.use(offer, first, first + layers, output)
        shards.append(
            Shard(
                agent_id=AgentId(name),
                device=name,
                ggml_device="CPU",
                host="127.0.0.1",
                layers=layers + is_last,
                first_layer=first,
                has_output=output is Output.LAST,
                **use.model_dump(),
            )
        )
        first += layers
    return tuple(shards)


def _overrides(case: Case, shape: ModelShape) -> tuple[str, ...]:
    if case.output_on_host:
        return (f"{shape.output_pattern}=CPU",)
    return (NO_OVERRIDE,) if len(case.layers) > 1 and not case.host_layers else ()
