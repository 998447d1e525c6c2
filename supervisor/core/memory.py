"""What a placement needs in memory, in closed form; the engine itself has the last word.

Source:
    planning.md 2.1-2.3: read in llama.cpp 0c1e570 (``llama-kv-cache*.cpp``,
    ``llama-memory-recurrent.cpp``, ``llama-context.cpp``); compute buffers fitted to its real
    allocator with flash attention on.
"""

from enum import StrEnum
from typing import Final

from pydantic import Field

from supervisor.core.entities import FrozenModel
from supervisor.core.ggml_types import TYPE_SIZES
from supervisor.core.model_shape import LayerShape, ModelShape

CELLS: Final = 256
"""llama.cpp pads the context, and so every cache, to this many tokens."""

MIB: Final = 1 << 20
GIB: Final = 1 << 30
F32_BYTES: Final = 4
KV_TYPES: Final = {
    size.name.lower(): size.block_bytes / size.block_elements
    for size in TYPE_SIZES.values()
    if size.name in {"F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL"}
}
"""Bytes per element of the types that ``-ctk`` and ``-ctv`` take."""


class Platform(StrEnum):
    """How a device's memory behaves when it runs out."""

    GPU = "gpu"
    CPU = "cpu"
    ANDROID = "android"


class Position(StrEnum):
    """Where in the chain of devices a compute buffer belongs."""

    FIRST = "first"
    MIDDLE = "middle"
    OUTPUT = "output"
    HOST = "host"
    HOST_WITH_LAYERS = "host with layers"


class Run(FrozenModel):
    """The settings of llama-server that decide about memory."""

    ctx_tokens: int = Field(ge=1)
    kv_type: str = "f16"
    ubatch: int = Field(default=512, ge=1)
    slots: int = Field(default=1, ge=1)
    is_unified: bool = Field(default=True, description="one cache for all slots (-kvu)")

    @property
    def cells(self) -> int:
        """Tokens that one stream of the cache holds."""
        tokens = self.ctx_tokens if self.is_unified else self.ctx_tokens // self.slots
        return padded(max(tokens, 1))

    @property
    def streams(self) -> int:
        return 1 if self.is_unified else self.slots

    @property
    def batch_tokens(self) -> int:
        """Tokens that are computed at once while a prompt is read."""
        return min(padded(self.ctx_tokens), self.ubatch)


def padded(tokens: int) -> int:
    """The next multiple of ``CELLS``."""
    return -(-tokens // CELLS) * CELLS


def kv_token_bytes(layer: LayerShape, kv_type: str) -> float:
    """Bytes that a layer keeps per cached token."""
    return (layer.key_elements + layer.value_elements) * KV_TYPES[kv_type]


def kv_cells(layer: LayerShape, run: Run) -> int:
    """Cells of a layer's cache, per stream; sliding windows need few."""
    if layer.window_tokens is None:
        return run.cells
    window = layer.window_tokens * (run.slots if run.is_unified else 1) + run.ubatch
    return padded(min(run.cells, window))


def kv_bytes(layer: LayerShape, run: Run) -> int:
    """Bytes of a layer's cache, and of its recurrent state, with the whole context in use."""
    cache = kv_token_bytes(layer, run.kv_type) * kv_cells(layer, run) * run.streams
    return round(cache) + F32_BYTES * layer.state_elements * run.slots


def mask_cells(shape: ModelShape, run: Run) -> tuple[int, ...]:
    """Width of each attention mask: models with sliding windows have a second one."""
    sliding = {kv_cells(layer, run) for layer in shape.layers if layer.window_tokens}
    return (run.cells, *sliding)


def feed_forward_bytes(shape: ModelShape, layer: LayerShape, run: Run) -> int:
    """The part of a compute buffer that a layer's own kind decides."""
    tokens = run.batch_tokens
    if layer.experts_used:
        routed = F32_BYTES * shape.embedding * layer.experts_used * tokens
        return 2 * routed + 3 * F32_BYTES * shape.embedding * tokens
    return 3 * F32_BYTES * layer.feed_forward * tokens


def compute_bytes(
    shape: ModelShape, run: Run, position: Position, feed_forward: int, *, copies: bool = False
) -> int:
    """Bytes of one device's compute buffer, with flash attention.

    Args:
        shape: The model.
        run: Context, ubatch and slots.
        position: Which of the table's rows.
        feed_forward: The largest ``feed_forward_bytes`` of its layers.
        copies: llama.cpp's pipeline parallelism, which keeps four copies of the inputs. Any
            ``-ot`` turns it off, and so does a layer on the host.

    Source:
        planning.md 2.3, fitted within 0.1 MiB to 8B, 70B, Qwen3-4B and Qwen3-30B-A3B shapes.
    """
    tokens = run.batch_tokens
    hidden = F32_BYTES * shape.embedding * tokens
    mask = 2 * tokens * sum(mask_cells(shape, run))
    queries = max((layer.attention_elements for layer in shape.layers), default=0)
    extra = max(0, F32_BYTES * queries * tokens - hidden)
    logits = F32_BYTES * shape.vocabulary * min(tokens, run.slots)
    rows: dict[Position, tuple[int, int]] = {
        Position.FIRST: (mask + 2 * hidden + feed_forward, 4 * mask + 7 * hidden + feed_forward),
        Position.MIDDLE: (mask + 2 * hidden + feed_forward, 4 * mask + 11 * hidden + feed_forward),
        Position.OUTPUT: (
            max(mask + 2 * hidden + feed_forward, logits + hidden),
            max(4 * mask + 7 * hidden + feed_forward, 4 * mask + 9 * hidden + logits),
        ),
        Position.HOST: (mask + 2 * hidden, 4 * mask + 5 * hidden),
        Position.HOST_WITH_LAYERS: (mask + 4 * hidden + feed_forward,) * 2,
    }
    return rows[position][copies] + (0 if position is Position.HOST else extra)


def load_peak_bytes(weights: int, largest: int, kv: int, compute: int) -> int:
    """The most that a worker holds: it receives each tensor whole before KV and buffers exist."""
    return weights + max(largest, kv + compute)


def logits_bytes(shape: ModelShape, run: Run) -> int:
    """The main host's own copy of the logits."""
    return F32_BYTES * shape.vocabulary * run.slots


def margin_bytes(platform: Platform, available_bytes: int, floor_bytes: int = 0) -> int:
    """Memory that stays free on a device.

    Never less than a tenth and a settable floor: field reports say that 16 GB Macs and phones
    die of growing contexts before the arithmetic says so.
    """
    share = available_bytes // 10
    if platform == Platform.GPU:
        wanted = max(512 * MIB, available_bytes // 20)
    elif platform == Platform.CPU:
        wanted = GIB
    else:
        wanted = available_bytes * 275 // 1000  # below that, Android kills processes
    return max(wanted, share, floor_bytes)
