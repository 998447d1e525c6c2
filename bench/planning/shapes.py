"""Headers of made-up models in real shapes, to plan without a download: no weights.

The tensors are those that llama.cpp's loader asks for (``src/models/*.cpp``), or it refuses them.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from supervisor.adapters.sparse_model import PartStart
from supervisor.core.ggml_types import F32, Q8_0, tensor_bytes

Q4_K = 12
ALIGNMENT = 32
Entry = tuple[str, tuple[int, ...], int]
"""Name, shape and type of a tensor."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; ``keys`` are further metadata, without the architecture's name."""

    name: str
    architecture: str
    layers: int
    n_embd: int
    n_ff: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    is_tied: bool = False
    experts: int = 0
    expert_ff: int = 0
    keys: dict[str, float | int | Sequence[int]] = field(default_factory=dict)


MAMBA = {
    "ssm.conv_kernel": 4,
    "ssm.inner_size": 4096,
    "ssm.state_size": 128,
    "ssm.time_step_rank": 64,
    "ssm.group_count": 1,
}
ATTENTION_EVERY = 10
"""Of the hybrid's layers, every tenth has attention; the others are recurrent."""

SHAPES = (
    Shape("dense 7B (no GQA)", "llama", 32, 4096, 11008, 32, 32, 128, 32000),
    Shape("dense 8B (GQA, 128k vocabulary)", "llama", 32, 4096, 14336, 32, 8, 128, 128256),
    Shape("dense 70B (GQA)", "llama", 80, 8192, 28672, 64, 8, 128, 128256),
    Shape("tiny body, 152k vocabulary", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, is_tied=True),
    Shape(
        "MoE 30B-A3B",
        "qwen3moe",
        48,
        2048,
        6144,
        32,
        4,
        128,
        151936,
        experts=128,
        expert_ff=768,
        keys={"expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 768},
    ),
    Shape(
        "SWA 12B (gemma 3)",
        "gemma3",
        48,
        3840,
        15360,
        16,
        8,
        256,
        262144,
        is_tied=True,
        keys={"attention.sliding_window": 1024},
    ),
    Shape(
        "hybrid 3B (granite 4, Mamba-2)",
        "granitehybrid",
        40,
        2048,
        8192,
        32,
        8,
        64,
        100352,
        is_tied=True,
        keys=dict(MAMBA),
    ),
    Shape(
        "MLA and MoE 16B (deepseek 2 lite)",
        "deepseek2",
        27,
        2048,
        10944,
        16,
        1,
        576,
        102400,
        experts=64,
        expert_ff=1408,
        keys={
            "expert_count": 64,
            "expert_used_count": 6,
            "expert_shared_count": 2,
            "expert_feed_forward_length": 1408,
            "leading_dense_block_count": 1,
            "attention.kv_lora_rank": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "rope.dimension_count": 64,
        },
    ),
)


def header(shape: Shape, tokenizer: Mapping[str, bytes] | None = None) -> PartStart:
    """The file that such a model would have, up to its weights.

    ``tokenizer``: its encoded metadata; without it, llama-server cannot use the model.
    """
    entries = list(_tensors(shape))
    metadata = {**_metadata(shape), **(tokenizer or {"tokenizer.ggml.model": text("no_vocab")})}
    start = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(metadata)))
    for key, value in metadata.items():
        start += string(key) + value
    offset = 0
    for name, dimensions, type_id in entries:
        layout = f"<I{len(dimensions)}QIQ"
        start += string(name) + struct.pack(layout, len(dimensions), *dimensions, type_id, offset)
        offset += -(-tensor_bytes(type_id, dimensions) // ALIGNMENT) * ALIGNMENT
    start += bytes(-len(start) % ALIGNMENT)
    file_name = "".join(c if c.isalnum() else "-" for c in shape.name) + ".gguf"
    return PartStart(file_name, bytes(start), len(start) + offset)


def has_attention(shape: Shape, layer: int) -> bool:
    return shape.architecture != "granitehybrid" or layer % ATTENTION_EVERY == ATTENTION_EVERY // 2


def _metadata(shape: Shape) -> dict[str, bytes]:
    kv_heads = [shape.kv_heads * has_attention(shape, i) for i in range(shape.layers)]
    value_size = 512 if shape.architecture == "deepseek2" else shape.head_size
    numbers: dict[str, float | int | Sequence[int]] = {
        "context_length": 131072,
        "embedding_length": shape.n_embd,
        "block_count": shape.layers,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": kv_heads if 0 in kv_heads else shape.kv_heads,
        "attention.key_length": shape.head_size,
        "attention.value_length": value_size,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": shape.head_size,
        "vocab_size": shape.vocabulary,
        **shape.keys,
    }
    named = {f"{shape.architecture}.{key}": _number(value) for key, value in numbers.items()}
    return {
        "general.architecture": text(shape.architecture),
        "general.name": text(shape.name),
        **named,
    }


def _tensors(shape: Shape) -> Iterator[Entry]:
    yield _matrix("token_embd.weight", shape.n_embd, shape.vocabulary)
    yield _vector("output_norm.weight", shape.n_embd)
    if not shape.is_tied:
        yield _matrix("output.weight", shape.n_embd, shape.vocabulary)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield _vector(f"{block}.attn_norm.weight", shape.n_embd)
        yield _vector(f"{block}.ffn_norm.weight", shape.n_embd)
        if shape.architecture == "deepseek2":
            yield from _latent_attention(shape, block)
        elif has_attention(shape, layer):
            yield from _attention(shape, block)
        else:
            yield from _mamba(shape, block)
        dense = layer < int(str(shape.keys.get("leading_dense_block_count", 0)))
        yield from _feed_forward(shape, block, has_experts=bool(shape.experts) and not dense)


def _attention(shape: Shape, block: str) -> Iterator[Entry]:
    width, kv_width = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    yield _matrix(f"{block}.attn_q.weight", shape.n_embd, width)
    yield _matrix(f"{block}.attn_k.weight", shape.n_embd, kv_width)
    yield _matrix(f"{block}.attn_v.weight", shape.n_embd, kv_width)
    yield _matrix(f"{block}.attn_output.weight", width, shape.n_embd)
    if shape.architecture == "qwen2":
        for name, size in (("q", width), ("k", kv_width), ("v", kv_width)):
            yield _vector(f"{block}.attn_{name}.bias", size)
    if shape.architecture in ("qwen3moe", "gemma3"):
        yield _vector(f"{block}.attn_q_norm.weight", shape.head_size)
        yield _vector(f"{block}.attn_k_norm.weight", shape.head_size)
    if shape.architecture == "gemma3":
        yield _vector(f"{block}.post_attention_norm.weight", shape.n_embd)
        yield _vector(f"{block}.post_ffw_norm.weight", shape.n_embd)


def _latent_attention(shape: Shape, block: str) -> Iterator[Entry]:
    rank, rope, key, value = 512, 64, 192, 128
    yield _matrix(f"{block}.attn_q.weight", shape.n_embd, shape.heads * key)
    yield _matrix(f"{block}.attn_kv_a_mqa.weight", shape.n_embd, rank + rope)
    yield _vector(f"{block}.attn_kv_a_norm.weight", rank)
    yield _matrix(f"{block}.attn_k_b.weight", key - rope, rank, shape.heads)
    yield _matrix(f"{block}.attn_v_b.weight", rank, value, shape.heads)
    yield _matrix(f"{block}.attn_output.weight", shape.heads * value, shape.n_embd)


def _mamba(shape: Shape, block: str) -> Iterator[Entry]:
    inner, state = MAMBA["ssm.inner_size"], MAMBA["ssm.state_size"]
    heads, groups = MAMBA["ssm.time_step_rank"], MAMBA["ssm.group_count"]
    mixed = inner + 2 * groups * state
    yield _matrix(f"{block}.ssm_in.weight", shape.n_embd, mixed + inner + heads)
    yield (f"{block}.ssm_conv1d.weight", (MAMBA["ssm.conv_kernel"], mixed), F32)
    yield _vector(f"{block}.ssm_conv1d.bias", mixed)
    yield _vector(f"{block}.ssm_dt.bias", heads)
    yield (f"{block}.ssm_a", (1, heads), F32)
    yield (f"{block}.ssm_d", (1, heads), F32)
    yield (f"{block}.ssm_norm.weight", (inner // groups, groups), F32)
    yield _matrix(f"{block}.ssm_out.weight", inner, shape.n_embd)


def _feed_forward(shape: Shape, block: str, *, has_experts: bool) -> Iterator[Entry]:
    if not has_experts:
        yield from _gated(f"{block}.ffn", shape.n_embd, shape.n_ff)
        return
    yield (f"{block}.ffn_gate_inp.weight", (shape.n_embd, shape.experts), F32)
    for entry in _gated(f"{block}.ffn", shape.n_embd, shape.expert_ff):
        name, dimensions, type_id = entry
        yield name.replace(".weight", "_exps.weight"), (*dimensions, shape.experts), type_id
    if shared := int(str(shape.keys.get("expert_shared_count", 0))):
        for name, dimensions, type_id in _gated("", shape.n_embd, shape.expert_ff * shared):
            yield f"{block}.ffn{name.replace('.weight', '_shexp.weight')}", dimensions, type_id


def _gated(prefix: str, n_embd: int, n_ff: int) -> Iterator[Entry]:
    yield _matrix(f"{prefix}_gate.weight", n_embd, n_ff)
    yield _matrix(f"{prefix}_up.weight", n_embd, n_ff)
    yield _matrix(f"{prefix}_down.weight", n_ff, n_embd)


def _matrix(name: str, *dimensions: int) -> Entry:
    return name, dimensions, Q8_0 if dimensions[0] % 256 else Q4_K


def _vector(name: str, size: int) -> Entry:
    return name, (size,), F32


def string(value: str) -> bytes:
    """Its length and its characters, as GGUF has them."""
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def text(value: str) -> bytes:
    """A string as the value of a key."""
    return struct.pack("<I", 8) + string(value)


def _number(value: float | int | Sequence[int]) -> bytes:
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    return struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
