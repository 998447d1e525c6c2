"""What model options cost in memory, beside the model itself.

A projector is kept on the main host (``--no-mmproj-offload``): llama.cpp would put it on the first
device of ``--device``, which may be a phone. An adapter's tensors lie where the weights lie that
they change, so each device holds its layers' part of it.

Source:
    llama.cpp ``src/llama-adapter.cpp`` ``llama_adapter_lora_init_impl``: the buffer type of the
    base model's tensor; ``tools/mtmd/clip.cpp``: ``use_gpu``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from supervisor.core.engine_options import OptionFile
from supervisor.core.entities import Plan, Shard
from supervisor.core.memory import MIB
from supervisor.core.model_shape import LayerShape, ModelShape, Weights

IMAGE_WORKSPACE_BYTES: Final = 256 * MIB
"""For the graph that turns an image into tokens, beside the projector's weights."""

_READ_AS: Final = "F16"


@dataclass(frozen=True, slots=True)
class OptionMemory:
    """Bytes on the main host, and of adapters by layer, at the input and at the output."""

    host_bytes: int = 0
    layers: Mapping[int, int] = field(default_factory=dict)
    input_bytes: int = 0
    output_bytes: int = 0

    @property
    def has_adapters(self) -> bool:
        return bool(self.layers) or self.input_bytes > 0 or self.output_bytes > 0


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The files that the options of one launch name: what they need of memory, and their sizes."""

    memory: OptionMemory = field(default_factory=OptionMemory)
    sizes: tuple[tuple[OptionFile, int], ...] = ()


def with_adapters(shape: ModelShape, memory: OptionMemory) -> ModelShape:
    """The model as the planner sees it, adapters among its weights."""
    if not memory.has_adapters:
        return shape
    layers = [
        _heavier_layer(layer, memory.layers.get(index, 0))
        for index, layer in enumerate(shape.layers)
    ]
    return shape.model_copy(
        update={
            "layers": tuple(layers),
            "output": shape.output.model_copy(update=_heavier(shape.output, memory.output_bytes)),
            "input_bytes": shape.input_bytes + memory.input_bytes,
        }
    )


def _heavier_layer(layer: LayerShape, size_bytes: int) -> LayerShape:
    return layer.model_copy(update=_heavier(layer, size_bytes)) if size_bytes else layer


def _heavier(weights: Weights, size_bytes: int) -> dict[str, object]:
    if not size_bytes:
        return {}
    return {
        "size_bytes": weights.size_bytes + size_bytes,
        "reads": (*weights.reads, (_READ_AS, size_bytes)),
    }


def with_adapter_bytes(plan: Plan, memory: OptionMemory) -> Plan:
    """A plan whose figures are the engine's, which knows of no adapters, with theirs."""
    if not memory.has_adapters:
        return plan
    own = sum(memory.layers.get(layer, 0) for layer in range(plan.host.layers))
    own += memory.input_bytes + (memory.output_bytes if plan.host.has_output else 0)
    host = plan.host.model_copy(
        update={
            "weight_bytes": plan.host.weight_bytes + own,
            "peak_bytes": plan.host.peak_bytes + own,
        }
    )
    shards = tuple(_with_bytes(shard, memory) for shard in plan.shards)
    return plan.model_copy(update={"shards": shards, "host": host})


def _with_bytes(shard: Shard, memory: OptionMemory) -> Shard:
    layers = range(shard.first_layer, shard.first_layer + shard.layers)
    more = sum(memory.layers.get(layer, 0) for layer in layers)
    more += memory.output_bytes if shard.has_output else 0
    update = {"weight_bytes": shard.weight_bytes + more, "peak_bytes": shard.peak_bytes + more}
    return shard.model_copy(update=update)


def with_host_options(plan: Plan, memory: OptionMemory) -> Plan:
    """A plan that was made with that much less on the main host, with what lies there."""
    if not memory.host_bytes:
        return plan
    host, more = plan.host, memory.host_bytes
    update = {
        "option_bytes": more,
        "peak_bytes": host.peak_bytes + more,
        "budget_bytes": host.budget_bytes + more,
        "available_bytes": host.available_bytes + more,
    }
    return plan.model_copy(update={"host": host.model_copy(update=update)})
