"""Measures attention on an idle rpc-server: what ``agents/measure.py`` does not measure yet.

On a processor, one token's attention is no plain reading of the cache. ggml's kernel walks over all
positions once for each query head, so heads that share their keys still cost a step each, and it
reads rows of one head, which lie apart, at a quarter of the speed of weights. So there are two
rates: steps over a cache small enough to stay near, and reading one that is too large for that.

Source:
    llama.cpp 0c1e570 ``ggml/src/ggml-cpu/ops.cpp``,
    ``ggml_compute_forward_flash_attn_ext_f16_one_chunk`` (one token) and ``..._tiled`` (a prompt).
"""

import statistics
import struct
import time
from dataclasses import dataclass

from agents.measure_link import ping_s
from agents.rpc_client import RpcClient, connected
from agents.rpc_protocol import Command, encode_request
from agents.rpc_tensors import FLAG_COMPUTE, RemoteTensor
from agents.weights import I8

FLASH_ATTENTION = 74
"""``GGML_OP_FLASH_ATTN_EXT`` in ``enum ggml_op`` of that build."""

F32, F16 = 0, 1
F32_BYTES, F16_BYTES = 4, 2
HEADS, KV_HEADS, HEAD_LENGTH = 8, 8, 128
REPETITIONS = 9
TENSOR = struct.Struct("<QIQ4I4II64si10QQQQ64si")
ALIGNMENT = 256


@dataclass(frozen=True, slots=True)
class Attention:
    """Operations per second (a multiplication and an addition are two), and bytes per second."""

    decode_flops: float
    cache_bytes_per_s: float
    prefill_flops: float


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor with strides of its own, as the engine's views of its cache have them."""

    id: int
    kind: int
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]
    offset: int
    sources: tuple[int, ...] = ()

    def packed(self, buffer: int, base: int) -> bytes:
        return TENSOR.pack(
            self.id,
            self.kind,
            buffer,
            *self.shape,
            1,
            *self.strides,
            self.strides[2] * self.shape[2],
            FLASH_ATTENTION if self.sources else 0,
            bytes(64),
            FLAG_COMPUTE if self.sources else 0,
            *(*self.sources, *[0] * 10)[:10],
            0,
            0,
            base + self.offset,
            b"",
            0,
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """Attention of new tokens to ``depth`` others, ``layers`` times, each with its own cache."""

    tokens: int
    depth: int
    layers: int

    @property
    def operations(self) -> int:
        return 4 * HEADS * HEAD_LENGTH * self.tokens * self.depth * self.layers

    @property
    def cache_bytes(self) -> int:
        """Keys or values of one layer."""
        return F16_BYTES * KV_HEADS * HEAD_LENGTH * self.depth

    @property
    def read_bytes(self) -> int:
        return 2 * self.cache_bytes * self.layers

    @property
    def hidden_bytes(self) -> int:
        return F32_BYTES * HEADS * HEAD_LENGTH * self.tokens

    @property
    def mask_bytes(self) -> int:
        return F16_BYTES * self.depth * self.tokens

    @property
    def size_bytes(self) -> int:
        return 2 * self.hidden_bytes + self.mask_bytes + self.read_bytes

    def pieces(self) -> list[Piece]:
        """Queries, mask, then keys, values and result of each layer; all sizes are aligned."""
        width = F32_BYTES * HEADS * HEAD_LENGTH
        head = F32_BYTES * HEAD_LENGTH
        row = F16_BYTES * self.depth
        shape, strides = (HEAD_LENGTH, self.tokens, HEADS), (F32_BYTES, width, head)
        query = Piece(1, F32, shape, strides, 0)
        result_at = self.hidden_bytes
        shape, strides = (self.depth, self.tokens, 1), (F16_BYTES, row, row * self.tokens)
        mask = Piece(2, F16, shape, strides, 2 * self.hidden_bytes)
        found = [query, mask]
        offset = 2 * self.hidden_bytes + self.mask_bytes
        for layer in range(self.layers):
            found += self._layer(10 * (layer + 1), offset, result_at)
            offset += 2 * self.cache_bytes
        return found

    def _layer(self, first_id: int, offset: int, result_at: int) -> list[Piece]:
        row = F16_BYTES * HEAD_LENGTH
        shape, strides = (HEAD_LENGTH, self.depth, KV_HEADS), (F16_BYTES, row * KV_HEADS, row)
        keys = Piece(first_id, F16, shape, strides, offset)
        values = Piece(first_id + 1, F16, shape, strides, offset + self.cache_bytes)
        head = F32_BYTES * HEAD_LENGTH
        result = Piece(
            first_id + 2,
            F32,
            (HEAD_LENGTH, HEADS, self.tokens),
            (F32_BYTES, head, head * HEADS),
            result_at,
            sources=(1, first_id, first_id + 1, 2),
        )
        return [keys, values, result]


NEAR = Problem(tokens=1, depth=128, layers=1)
NEAR_TIMES = 256
FAR = Problem(tokens=1, depth=4096, layers=6)
PROMPT = Problem(tokens=256, depth=1024, layers=2)


async def measure_attention(host: str, port: int, *, deadline_s: float = 60.0) -> Attention:
    """Measure device 0; nothing is masked, since the buffer is cleared."""
    async with connected(host, port, deadline_s=deadline_s) as client:
        near_s = await _time_s(client, NEAR, NEAR_TIMES) / NEAR_TIMES
        far_s = await _time_s(client, FAR, 1)
        prompt_s = await _time_s(client, PROMPT, 1)
    flops = NEAR.operations / near_s
    reading_s = max(far_s - FAR.operations / flops, far_s / 10)
    return Attention(flops, FAR.read_bytes / reading_s, PROMPT.operations / prompt_s)


async def _time_s(client: RpcClient, problem: Problem, times: int) -> float:
    """Median time of the problem's graph with its nodes ``times`` over."""
    buffer = await client.allocate(problem.size_bytes)
    assert buffer is not None, f"no {problem.size_bytes >> 20} MiB"
    base = await client.base(buffer)
    await client.clear(buffer, 0)
    ping = statistics.median([await ping_s(client) for _ in range(11)])
    await _send(client, problem, buffer, base, times)
    answer = RemoteTensor(1, I8.type_id, (4, 1), 4, 1, buffer, base)
    await client.get_tensor(answer, 4)
    found = []
    for _ in range(REPETITIONS):
        started_s = time.perf_counter()
        await client.recompute()
        await client.get_tensor(answer, 4)
        found.append(time.perf_counter() - started_s)
    await client.free(buffer)
    return max(statistics.median(found) - ping, 1e-9)


async def _send(client: RpcClient, problem: Problem, buffer: int, base: int, times: int) -> None:
    """Compute the graph once; the server keeps it. Each repetition is a node of its own."""
    pieces = problem.pieces()
    results = [piece for piece in pieces if piece.sources]
    copies = [
        Piece(10_000 + n, one.kind, one.shape, one.strides, one.offset, one.sources)
        for n in range(times - 1)
        for one in results
    ]
    nodes = [piece.id for piece in (*results, *copies)]
    everything = [*pieces, *copies]
    body = struct.pack(f"<II{len(nodes)}QI", 0, len(nodes), *nodes, len(everything))
    body += b"".join(piece.packed(buffer, base) for piece in everything)
    client._writer.write(encode_request(Command.GRAPH_COMPUTE, body))
    await client._drain()
