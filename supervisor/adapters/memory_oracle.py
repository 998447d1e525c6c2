"""The engine's own word on what a plan needs, remembered while neither changes."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from agents.contract import EngineFacts
from agents.rpc_protocol import DeviceMemory
from supervisor.adapters.fit_params import TOOL, EngineOptions, engine_memory
from supervisor.core.engine_memory import EngineMemory
from supervisor.core.entities import Plan
from supervisor.ports import Model

_REMEMBERED: Final = 64

Key = tuple[Path, int, int, EngineOptions, str, str]


class MemoryOracle:
    """Runs the engine's planner against stand-ins of the workers; no real one is touched."""

    def __init__(
        self, engine: Callable[[], EngineFacts | None], inherited: Mapping[str, str]
    ) -> None:
        """``engine``: the one of now; what another build said is not remembered for it."""
        self._engine = engine
        self._inherited = inherited
        self._known: OrderedDict[Key, EngineMemory] = OrderedDict()

    @property
    def is_there(self) -> bool:
        """Whether this engine has the tool."""
        engine = self._engine()
        return engine is not None and (Path(engine.folder) / TOOL).is_file()

    async def __call__(self, model: Model, plan: Plan) -> EngineMemory:
        """What every device and the main host need.

        Raises:
            EngineRefusedModel, EngineRefusedFlag: The launch would fail for that reason.
            EngineToolMissing, EstimateFailed: There is no figure.
        """
        engine = self._engine()
        assert engine is not None
        path = model.file
        stat, options = path.stat(), options_of(plan)
        key = path, stat.st_mtime_ns, stat.st_size, options, engine.folder, engine.build
        if key not in self._known:
            # One stand-in per device: which of them share an rpc-server does not change memory.
            workers = [
                [DeviceMemory(shard.available_bytes, shard.available_bytes)]
                for shard in plan.shards
            ]
            self._known[key] = await engine_memory(
                engine, path, workers, options, inherited=self._inherited
            )
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return self._known[key]


def options_of(plan: Plan) -> EngineOptions:
    """The options of a launch that decide about memory."""
    return EngineOptions(
        ctx_tokens=plan.ctx_tokens,
        gpu_layers=plan.gpu_layers,
        tensor_split=tuple(shard.layers for shard in plan.shards),
        ubatch=plan.ubatch,
        kv_type_k=plan.kv_type,
        kv_type_v=plan.kv_type,
        slots=plan.slots,
        overrides=plan.tensor_overrides,
        extra=() if plan.shards else ("--device", "none"),
    )
