"""What an rpc-server needs beside weights, cache and compute buffer, which the engine never names.

It is memory of the worker's host, also when the device is a GPU. Megabytes, not gigabytes: it
matters where a plan leaves a device little else.

Source:
    llama.cpp 0c1e570: ``ggml-rpc.cpp`` receives every message whole (``recv_msg``), ``ggml-cpu.c``
    converts activations to the type that the weights are multiplied in (``ggml_graph_plan``).
    Fitted to ten launches in memory groups (``bench/planning/memory_limits.py``): an upper bound in
    all of them, on average 3 MiB above what was used.
"""

from typing import Final

from supervisor.core.memory import F32_BYTES, MIB, Run, mask_cells
from supervisor.core.model_shape import LayerShape, ModelShape

KEPT_BYTES: Final = 32 * MIB
"""glibc keeps freed blocks up to this size (``DEFAULT_MMAP_THRESHOLD_MAX``)."""

PIECES: Final = 1.5
"""Messages grow with the context; freed smaller ones leave holes that the next does not fit in."""

QUANT_BYTES: Final = 292 / 256
"""Per activation, as ``Q8_K``: the widest of the types that quantised weights are multiplied in."""

TILE_BYTES: Final = 512 << 10
"""Of each thread (``ggml_tiled_ws_size``)."""

STATE_WIDTHS: Final = 5
"""A recurrent layer's projection is about this many times as wide as the embedding (4.2)."""

STATE_INNER_WIDTHS: Final = 2
OTHER_BYTES: Final = 3 * MIB
"""The stored graph (50 KiB per layer), page tables, what the kernel charges in advance."""

RPC_SERVER_BYTES: Final = 6 * MIB
"""Resident in an rpc-server before any client: 5.5 MiB, of which 4.7 are its program's pages."""

LLAMA_SERVER_BYTES: Final = 32 * MIB
"""What llama-server has of its own, without pages of files: 6 MiB, and the vocabulary (22 MiB for
152 000 tokens)."""


def workspace_bytes(shape: ModelShape, run: Run, largest: int, *, threads: int = 8) -> int:
    """The most that a worker needs for messages, for activations as it multiplies them, for graphs.

    Args:
        shape: The model.
        run: Context, ubatch and slots.
        largest: Bytes of the largest tensor that it receives; what is kept of that is used again.
        threads: Of the rpc-server.
    """
    serving = PIECES * _message_bytes(shape, run) + _activation_bytes(shape, run)
    needed = max(min(largest, KEPT_BYTES), round(serving) + threads * TILE_BYTES)
    return needed + OTHER_BYTES


def workspace_of_any(shape: ModelShape, run: Run) -> int:
    """The same for a worker of whatever layers."""
    largest = max((layer.largest_bytes for layer in shape.layers), default=0)
    return workspace_bytes(shape, run, largest)


def _message_bytes(shape: ModelShape, run: Run) -> int:
    """The larger of the hidden states and the attention masks of one ubatch."""
    tokens = run.batch_tokens
    hidden = F32_BYTES * shape.embedding * tokens
    masks = 2 * tokens * sum(mask_cells(shape, run))
    is_recurrent = any(layer.state_elements for layer in shape.layers)
    return max(hidden, masks, round(STATE_WIDTHS * hidden / PIECES) if is_recurrent else 0)


def _activation_bytes(shape: ModelShape, run: Run) -> int:
    widest = max((_width(shape, layer) for layer in shape.layers), default=0)
    return round(run.batch_tokens * widest * QUANT_BYTES)


def _width(shape: ModelShape, layer: LayerShape) -> int:
    """The most elements per token that one matrix of a layer is multiplied with."""
    inner = STATE_INNER_WIDTHS if layer.state_elements else 1
    routed = layer.experts_used * shape.embedding
    return max(inner * shape.embedding, layer.feed_forward, layer.attention_elements, routed)
