"""Measures attention on a worker's processor, where it is no plain reading of the cache.

ggml's kernel for processors walks over all positions once for each query head, so heads that share
their keys still cost a step each, and the rows of one head lie apart. So one token has two rates:
steps over a cache that stays near, and reading one that is too large for that. GPUs read the cache
like weights, and an operation that a GPU lacks would end its rpc-server: they are not asked.

Source:
    llama.cpp 0c1e570 ``ggml/src/ggml-cpu/ops.cpp``,
    ``ggml_compute_forward_flash_attn_ext_f16_one_chunk`` (one token) and ``..._tiled`` (a prompt).
"""

import statistics
import struct
import time
from dataclasses import dataclass, replace
from typing import Final

from agents.errors import MeasurementFailed, MeasurementUnsupported
from agents.measure_link import ping_s
from agents.rpc_client import RpcClient
from agents.rpc_tensors import FLAG_COMPUTE, RemoteTensor
from agents.weights import I8

F32_TYPE, F16_TYPE = 0, 1
F32_BYTES, F16_BYTES = 4, 2
HEADS, KV_HEADS, HEAD_LENGTH = 8, 8, 128
REPETITIONS: Final = 9

FILLING: Final = 0x3C
"""Every byte of the buffer: as f16 that is 1.0586, and an average of equal values is that value."""

AVERAGE: Final = struct.unpack("<e", bytes([FILLING, FILLING]))[0]
TOLERANCE: Final = 1e-3

_QUERY, _MASK, _FIRST_LAYER = 1, 2, 1000
_LAYER_IDS, _AGAIN = 3, 10_000


@dataclass(frozen=True, slots=True)
class Attention:
    """Operations per second (a multiplication and an addition are two), and bytes per second."""

    decode_flop_per_s: float
    cache_bytes_per_s: float
    prefill_flop_per_s: float


NOTHING: Final = Attention(0.0, 0.0, 0.0)
"""Not measured."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Attention of ``tokens`` new tokens to ``depth`` positions; each layer has its own cache."""

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
        """Queries, or results."""
        return F32_BYTES * HEADS * HEAD_LENGTH * self.tokens

    @property
    def mask_bytes(self) -> int:
        return F16_BYTES * self.depth * self.tokens

    @property
    def size_bytes(self) -> int:
        return 2 * self.hidden_bytes + self.mask_bytes + self.read_bytes


NEAR: Final = Problem(tokens=1, depth=128, layers=1)
NEAR_TIMES: Final = 256
FAR: Final = Problem(tokens=1, depth=4096, layers=6)
PROMPT: Final = Problem(tokens=256, depth=1024, layers=2)


async def measure_attention(client: RpcClient, device: int = 0) -> Attention:
    """Measure a processor through its idle rpc-server; its memory is free again afterwards.

    Raises:
        MeasurementUnsupported: Our number of the operation means another one there.
        MeasurementFailed: Too little memory, or no answer.
    """
    near_s = await _time_s(client, device, NEAR, NEAR_TIMES) / NEAR_TIMES
    far_s = await _time_s(client, device, FAR, 1)
    prompt_s = await _time_s(client, device, PROMPT, 1)
    flop_per_s = NEAR.operations / near_s
    # Steps and reading overlap in part; what steps alone would take is not all of it.
    reading_s = max(far_s - FAR.operations / flop_per_s, far_s / 10)
    return Attention(flop_per_s, FAR.read_bytes / reading_s, PROMPT.operations / prompt_s)


async def _time_s(client: RpcClient, device: int, problem: Problem, times: int) -> float:
    """Median time of the problem's graph with its nodes ``times`` over."""
    buffer = await client.allocate(problem.size_bytes, device)
    if buffer is None:
        raise MeasurementFailed(
            f"the device has no {problem.size_bytes >> 20} MiB to measure attention; free some"
        )
    base = await client.base(buffer)
    await client.clear(buffer, FILLING)
    round_trip_s = statistics.median([await ping_s(client, device) for _ in range(11)])
    tensors, results = _tensors(client, problem, buffer, base)
    again = [
        replace(result, id=_AGAIN * (number + 1) + result.id)
        for number in range(times - 1)
        for result in results
    ]
    nodes = [tensor.id for tensor in (*results, *again)]
    await client.compute(nodes, [*tensors, *again], device)
    if problem is NEAR:
        await _check(client, results[-1])
    answer = RemoteTensor(1, I8.type_id, (4, 1), 4, 1, buffer, base)
    found = []
    for _ in range(REPETITIONS):
        started_s = time.perf_counter()
        await client.recompute(device)
        await client.get_tensor(answer, 4)
        found.append(time.perf_counter() - started_s)
    await client.free(buffer)
    return max(statistics.median(found) - round_trip_s, 1e-9)


async def _check(client: RpcClient, result: RemoteTensor) -> None:
    """Only of few positions: they are added up in f16, which stops growing after some 2000."""
    answer = RemoteTensor(1, I8.type_id, (4, 1), 4, 1, result.buffer, result.address)
    (found,) = struct.unpack("<f", await client.get_tensor(answer, 4))
    if not abs(found - AVERAGE) < TOLERANCE:
        raise MeasurementUnsupported(
            f"its operation {client.layout.attention} is no attention although it speaks RPC "
            f"{client.triple}: another fork of llama.cpp?"
        )


def _tensors(
    client: RpcClient, problem: Problem, buffer: int, base: int
) -> tuple[list[RemoteTensor], list[RemoteTensor]]:
    """All tensors, and of them the results: queries, result, mask, then each layer's cache."""
    width, head = F32_BYTES * HEADS * HEAD_LENGTH, F32_BYTES * HEAD_LENGTH
    row = F16_BYTES * problem.depth
    at = _At(buffer, base)
    query = at.tensor(
        _QUERY, F32_TYPE, (HEAD_LENGTH, problem.tokens, HEADS), (F32_BYTES, width, head), 0
    )
    mask_shape, mask_strides = (problem.depth, problem.tokens, 1), (F16_BYTES, row, row)
    mask = at.tensor(_MASK, F16_TYPE, mask_shape, mask_strides, 2 * problem.hidden_bytes)
    caches, results = [], []
    offset = 2 * problem.hidden_bytes + problem.mask_bytes
    for layer in range(problem.layers):
        first = _FIRST_LAYER + _LAYER_IDS * layer
        for number in range(2):  # keys, then values
            place = offset + number * problem.cache_bytes
            caches.append(_cache(at, first + number, problem.depth, place))
        results.append(
            replace(
                at.tensor(
                    first + 2,
                    F32_TYPE,
                    (HEAD_LENGTH, HEADS, problem.tokens),
                    (F32_BYTES, head, width),
                    problem.hidden_bytes,
                ),
                operation=client.layout.attention,
                sources=(_QUERY, first, first + 1, _MASK),
                flags=FLAG_COMPUTE,
            )
        )
        offset += 2 * problem.cache_bytes
    return [query, mask, *caches, *results], results


def _cache(at: "_At", id_: int, depth: int, offset: int) -> RemoteTensor:
    """Rows of one head lie as far apart as all heads are wide, as in the engine's own cache."""
    row = F16_BYTES * HEAD_LENGTH
    shape, strides = (HEAD_LENGTH, depth, KV_HEADS), (F16_BYTES, row * KV_HEADS, row)
    return at.tensor(id_, F16_TYPE, shape, strides, offset)


@dataclass(frozen=True, slots=True)
class _At:
    """Where the tensors are."""

    buffer: int
    base: int

    def tensor(
        self,
        id_: int,
        type_id: int,
        shape: tuple[int, int, int],
        strides: tuple[int, int, int],
        offset: int,
    ) -> RemoteTensor:
        return RemoteTensor(
            id=id_,
            type_id=type_id,
            shape=shape,
            row_bytes=strides[1],
            element_bytes=strides[0],
            buffer=self.buffer,
            address=self.base + offset,
            strides=(*strides, strides[2] * shape[2]),
        )
