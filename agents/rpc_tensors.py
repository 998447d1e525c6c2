"""Tensors and graphs as they travel to an rpc-server, for the protocol versions that we know.

Operations and tensor types travel as bare numbers of the build that made the server.

Source:
    llama.cpp ``ggml/src/ggml-rpc/ggml-rpc.cpp`` (``rpc_tensor``, ``rpc_server::graph_compute``),
    ``ggml/include/ggml.h``, as vendored by llama-cpp-python 0.3.36.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agents.rpc_protocol import Triple

MAX_DIMENSIONS: Final = 4
MAX_SOURCES: Final = 10
TENSOR_BYTES: Final = 296
FLAG_COMPUTE: Final = 16
"""``GGML_TENSOR_FLAG_COMPUTE``; without it CPU and Metal skip the node."""

_GRAPH = struct.Struct("<II")
_OPERATION_PARAMETERS = bytes(64)
_TENSOR = struct.Struct("<Q I Q 4I 4I I 64s i 10Q Q Q Q 64s i".replace(" ", ""))
assert _TENSOR.size == TENSOR_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between versions in the commands used here, and the numbers of operations."""

    multiply: int
    """``GGML_OP_MUL_MAT`` in ``enum ggml_op`` of ``ggml/include/ggml.h``."""
    attention: int
    """``GGML_OP_FLASH_ATTN_EXT`` there."""
    has_cache_flag: bool
    """SET_TENSOR carries a byte that allows the server to cache the data; since 7.0."""
    has_use_count: bool
    """rpc_tensor ends in a count of uses, before 5.1 in padding."""
    has_empty_replies: bool
    """FREE_BUFFER and BUFFER_CLEAR are answered with a length of 0; until 6.0."""


LAYOUTS: Final[dict[Triple, Layout]] = {
    Triple(7, 0, 0): Layout(
        multiply=29, attention=74, has_cache_flag=True, has_use_count=True, has_empty_replies=False
    ),
}
"""Versions whose source was read. Add one only with its ``ggml.h`` at hand: forks of llama.cpp
publish equal triples with other enums (Mesh-LLM's 4.0.3 has 104 operations, upstream's 101)."""


@dataclass(frozen=True, slots=True)
class RemoteTensor:
    """One tensor in a remote buffer. ``row_bytes`` is the size of ``shape[0]`` elements."""

    id: int
    type_id: int
    shape: tuple[int, ...]
    row_bytes: int
    element_bytes: int
    buffer: int
    address: int
    operation: int = 0
    sources: tuple[int, ...] = ()
    flags: int = 0
    uses: int = 0
    strides: tuple[int, ...] = ()
    """Bytes from one to the next, by dimension; as they follow from the shape if not given."""

    @property
    def size_bytes(self) -> int:
        rows = 1
        for count in self.shape[1:]:
            rows *= count
        return self.row_bytes * rows


def pack_tensor(tensor: RemoteTensor, layout: Layout) -> bytes:
    """``struct rpc_tensor``: 296 bytes in every version."""
    shape = (*tensor.shape, 1, 1, 1)[:MAX_DIMENSIONS]
    strides = list(tensor.strides) or [tensor.element_bytes, tensor.row_bytes]
    for count in shape[len(strides) - 1 : -1]:
        strides.append(strides[-1] * count)
    sources = (*tensor.sources, *[0] * MAX_SOURCES)[:MAX_SOURCES]
    return _TENSOR.pack(
        tensor.id,
        tensor.type_id,
        tensor.buffer,
        *shape,
        *strides,
        tensor.operation,
        _OPERATION_PARAMETERS,
        tensor.flags,
        *sources,
        0,
        0,
        tensor.address,
        b"",
        tensor.uses if layout.has_use_count else 0,
    )


def pack_graph(
    device: int, nodes: Sequence[int], tensors: Sequence[RemoteTensor], layout: Layout
) -> bytes:
    """Body of GRAPH_COMPUTE: device, the ids to compute in order, every tensor once."""
    body = bytearray(_GRAPH.pack(device, len(nodes)))
    body += struct.pack(f"<{len(nodes)}QI", *nodes, len(tensors))
    for tensor in tensors:
        body += pack_tensor(tensor, layout)
    return bytes(body)
