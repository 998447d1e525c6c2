"""What planning needs of a model, per layer, from the header of its GGUF file alone."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from typing import Final

from pydantic import Field

from supervisor.core.attention_layout import (
    AttentionLayout,
    is_recurrent,
    layout_of,
    number,
    per_layer,
    state_elements,
)
from supervisor.core.entities import ByteCount, FrozenModel
from supervisor.core.ggml_types import TYPE_SIZES
from supervisor.errors import ModelBroken

Tensor = tuple[str, tuple[int, ...], int, int]
"""Name, shape (GGUF order, rows first), ``enum ggml_type``, bytes."""

BLOCK: Final = re.compile(r"(?:blk|enc\.blk|dec\.blk)\.(\d+)\.(.+)")
EXPERTS: Final = re.compile(r"_(?:ch)?exps\b")
INPUT: Final = ("token_embd.", "position_embd.", "token_types.", "per_layer_token_embd.")
NOT_COUNTED: Final = ("rope_freqs", "rope_factors")  # tiny, and on every device
EMBEDDINGS: Final = "token_embd.weight"
OUTPUT_MATRIX: Final = "output.weight"


class Weights(FrozenModel):
    """A group of tensors that are placed together."""

    size_bytes: ByteCount = 0
    reads: tuple[tuple[str, int], ...] = Field(
        default=(), description="bytes read per token, by ggml type; of experts only those used"
    )
    active_elements: int = Field(default=0, description="multiplied per token")
    largest_bytes: ByteCount = 0

    @property
    def read_bytes(self) -> int:
        return sum(count for _, count in self.reads)

    @property
    def main_type(self) -> str:
        """The type of most of the bytes that are read."""
        return max(self.reads, key=lambda item: item[1])[0] if self.reads else "F32"


class LayerShape(Weights):
    """One repeating block: its weights, and what it keeps of each token or sequence."""

    key_elements: int = Field(default=0, description="cached per token; 0 without attention")
    value_elements: int = 0
    window_tokens: int | None = Field(default=None, description="of sliding attention")
    state_elements: int = Field(default=0, description="recurrent state per sequence, f32")
    attention_elements: int = Field(default=0, description="query heads times their length")
    feed_forward: int = Field(default=0, description="of the dense feed-forward part")
    experts_used: int = 0

    @property
    def has_cache(self) -> bool:
        return self.key_elements > 0


class ModelShape(FrozenModel):
    """A model as the planner sees it."""

    architecture: str
    layers: tuple[LayerShape, ...]
    embedding: int
    heads: int
    head_length: int
    vocabulary: int
    output: Weights
    output_matrix_bytes: ByteCount
    input_bytes: ByteCount
    is_tied: bool = Field(description="the output matrix is a copy of the embeddings")
    ctx_train_tokens: int | None = None
    last_cut: int = Field(description="no device boundary between this layer and the last")
    notes: tuple[str, ...] = Field(default=(), description="what could not be modelled exactly")

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are placed: tied embeddings count twice."""
        return sum(layer.size_bytes for layer in self.layers) + (
            self.output.size_bytes + self.input_bytes
        )

    @property
    def output_pattern(self) -> str:
        """For ``-ot``: the output matrix and nothing else.

        Anchored, because it would match ``attn_output.weight`` otherwise. A copy of the
        embeddings keeps their name: ``llama_model_loader::create_tensor`` compares that.
        """
        return r"^token_embd\.weight" if self.is_tied else r"^output\.weight"

    def cut_is_allowed(self, layer: int) -> bool:
        """Whether a device may begin with this layer (``n_layers``: with the output)."""
        return layer <= self.last_cut or layer >= self.n_layers


def shape_of(metadata: Mapping[str, object], tensors: Iterable[Tensor]) -> ModelShape:
    """Read a model's shape from its header.

    Args:
        metadata: Of the first part. Arrays that were not kept need a ``count``.
        tensors: Of all parts: name, shape, type id, bytes.

    Raises:
        ModelBroken: The header contradicts itself.

    Source:
        llama.cpp 0c1e570: ``src/llama-model.cpp`` ``load_hparams``, ``load_tensors``;
        ``src/llama-arch.cpp`` ``LLM_TENSOR_INFOS`` for what belongs to input and output.
    """
    layout = layout_of(metadata)
    groups = _grouped(tensors, layout)
    experts = number(metadata, f"{layout.architecture}.expert_count")
    used = per_layer(metadata, layout, "expert_used_count", 0)
    layers = tuple(
        _layer(index, groups[str(index)], layout, _used(experts, used[index]))
        for index in range(layout.n_layers)
    )
    vocabulary = _vocabulary(metadata, layout, groups["input"])
    tied = all(name != OUTPUT_MATRIX for name, *_ in groups["output"])
    matrix = [t for t in groups["input"] if t[0] == EMBEDDINGS] if tied else []
    output = [*groups["output"], *matrix]
    return ModelShape(
        architecture=layout.architecture,
        layers=layers,
        embedding=layout.embedding,
        heads=max(layout.heads),
        head_length=layout.key_length,
        vocabulary=vocabulary,
        output=_weights(output, (0, 0)),
        output_matrix_bytes=sum(t[3] for t in output if t[0] in {OUTPUT_MATRIX, EMBEDDINGS}),
        input_bytes=sum(size for *_, size in groups["input"]),
        is_tied=tied,
        ctx_train_tokens=number(metadata, f"{layout.architecture}.context_length") or None,
        last_cut=layout.last_cut,
        notes=layout.notes,
    )


def _grouped(tensors: Iterable[Tensor], layout: AttentionLayout) -> dict[str, list[Tensor]]:
    """By layer number, ``input`` or ``output``."""
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[_group(tensor[0], layout.n_layers)].append(tensor)
    return groups


def _group(name: str, n_layers: int) -> str:
    if match := BLOCK.fullmatch(name):
        if int(match[1]) >= n_layers:
            raise ModelBroken(f"tensor {name!r} belongs to none of the {n_layers} layers")
        return match[1].lstrip("0") or "0"
    if name.startswith(NOT_COUNTED):
        return "everywhere"
    if name.startswith("token_embd_norm."):
        return "0"
    return "input" if name.startswith(INPUT) else "output"


def _used(experts: int, used: int) -> tuple[int, int]:
    return (used, experts) if experts and used else (0, 0)


def _layer(
    index: int, tensors: list[Tensor], layout: AttentionLayout, used: tuple[int, int]
) -> LayerShape:
    if index >= layout.n_run:  # blocks for drafting: in the count, but not loaded
        return LayerShape()
    names = [name for name, *_ in tensors]
    has_experts = any(EXPERTS.search(name) for name in names)
    weights = _weights(tensors, used)
    recurrent = is_recurrent(layout, index, names)
    keys, values = layout.cached(index, recurrent=recurrent)
    return LayerShape(
        size_bytes=weights.size_bytes,
        reads=weights.reads,
        active_elements=weights.active_elements,
        largest_bytes=weights.largest_bytes,
        key_elements=keys,
        value_elements=values,
        window_tokens=layout.window_tokens if layout.sliding[index] else None,
        state_elements=state_elements(layout) if recurrent else 0,
        attention_elements=layout.heads[index] * layout.key_length if keys else 0,
        feed_forward=0 if has_experts else layout.feed_forward[index],
        experts_used=used[0] if has_experts else 0,
    )


def _weights(tensors: list[Tensor], used: tuple[int, int]) -> Weights:
    reads: dict[str, float] = defaultdict(float)
    active = 0.0
    for name, shape, type_id, size_bytes in tensors:
        share = _share(name, shape, used)
        reads[_type_name(type_id)] += share * size_bytes
        active += share * prod(shape) if len(shape) > 1 else 0
    return Weights(
        size_bytes=sum(size for *_, size in tensors),
        reads=tuple((name, round(count)) for name, count in sorted(reads.items())),
        active_elements=round(active),
        largest_bytes=max((size for *_, size in tensors), default=0),
    )


def _share(name: str, shape: tuple[int, ...], used: tuple[int, int]) -> float:
    """How much of a tensor one token needs."""
    if used[1] and EXPERTS.search(name) and shape and shape[-1] == used[1]:
        return used[0] / used[1]
    return 1.0


def _type_name(type_id: int) -> str:
    known = TYPE_SIZES.get(type_id)
    return known.name if known else str(type_id)


def _vocabulary(
    metadata: Mapping[str, object], layout: AttentionLayout, embeddings: list[Tensor]
) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    count = len(tokens) if isinstance(tokens, tuple | list) else getattr(tokens, "count", None)
    if isinstance(count, int) and count > 0:
        return count
    rows = [shape[-1] for name, shape, *_ in embeddings if name == EMBEDDINGS and shape]
    return rows[0] if rows else number(metadata, f"{layout.architecture}.vocab_size")
