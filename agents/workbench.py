"""One buffer on an rpc-server, filled with weights, and timed multiplications over it.

The multiplications of a run share their input and output: they are ordered by what they write, and
no value can grow from one to the next.
"""

import asyncio
import math
import statistics
import struct
import time
from dataclasses import dataclass
from typing import Final

from agents.errors import MeasurementFailed, MeasurementUnsupported
from agents.measure_link import ping_s
from agents.rpc_client import RpcClient
from agents.rpc_tensors import FLAG_COMPUTE, RemoteTensor
from agents.weights import F32, I8, SCALE_BYTE, WeightType, random_blocks

SEED_BYTES: Final = 1 << 20
"""Sent over the network; the rest of a buffer is copied from it on the device."""

SLACK_BYTES: Final = 64 << 10
"""After the last tensor: CUDA reads rows up to a multiple of 512 elements."""

_STEADY_S: Final = 0.25
_MOST_RUNS: Final = 4
_CHECK_WIDTH: Final = 32
_TOKEN_MESSAGES: Final = (4, 8, 8, 512)
"""Bytes of position, KV indices and mask of one token at a small depth."""

_TOKEN_PAUSE_S: Final = 0.01
_FIRST_ID: Final = 1000


@dataclass(frozen=True, slots=True)
class Product:
    """``outputs`` rows of weights, ``inputs`` wide, times ``columns`` vectors."""

    inputs: int
    outputs: int
    columns: int = 1

    @property
    def operations(self) -> int:
        """Floating point operations; a multiplication and an addition are two."""
        return 2 * self.inputs * self.outputs * self.columns


@dataclass(frozen=True, slots=True)
class Workbench:
    """A buffer in three parts: weights, input and output vectors."""

    client: RpcClient
    device: int
    buffer: int
    base: int
    alignment: int
    weights_bytes: int
    vectors_bytes: int
    round_trip_s: float

    @classmethod
    async def build(
        cls, client: RpcClient, device: int, weights_bytes: int, vectors_bytes: int
    ) -> "Workbench":
        """Allocate; ``vectors_bytes`` is the size of the input, and of the output.

        Raises:
            MeasurementFailed: The device has no memory for it.
        """
        alignment = max(await client.alignment(device), 256)
        weights_bytes = _up(weights_bytes, alignment)
        vectors_bytes = _up(vectors_bytes, alignment)
        size_bytes = weights_bytes + 2 * vectors_bytes + SLACK_BYTES
        buffer = await client.allocate(size_bytes, device)
        if buffer is None:
            raise MeasurementFailed(
                f"the device has no {size_bytes >> 20} MiB for a measurement; free memory on it"
            )
        bench = cls(
            client,
            device,
            buffer,
            await client.base(buffer),
            alignment,
            weights_bytes,
            vectors_bytes,
            await _round_trip_s(client, device),
        )
        await client.clear(buffer, 0)
        return bench

    async def check_multiplication(self) -> None:
        """Make sure that our number of the operation means a multiplication to this server.

        Raises:
            MeasurementUnsupported: It computed something else.
        """
        product = Product(_CHECK_WIDTH, 2)
        weights, vector, result, node = self._multiplication(F32, product, 0, 0)
        await self.client.set_tensor(weights, _floats(2.0, 2 * _CHECK_WIDTH))
        await self.client.set_tensor(vector, _floats(3.0, _CHECK_WIDTH))
        await self.client.compute([node], [weights, vector, result], self.device)
        if await self.client.get_tensor(result, 8) != _floats(2.0 * 3.0 * _CHECK_WIDTH, 2):
            raise MeasurementUnsupported(
                f"its operation {self.client.layout.multiply} is no multiplication although it "
                f"speaks RPC {self.client.triple}: another fork of llama.cpp?"
            )

    def step_bytes(self, kind: WeightType) -> int:
        """Weights begin at multiples of this: aligned, and where a block of the filling begins."""
        return math.lcm(self.alignment, kind.block_bytes)

    async def fill(self, kind: WeightType) -> None:
        """Random weights of that type, and random input vectors."""
        await self._spread(0, self.weights_bytes, kind)
        await self._spread(self.weights_bytes, self.vectors_bytes, F32)

    async def time_s(self, kind: WeightType, products: list[Product], repetitions: int) -> float:
        """Median time of one run over ``products``, after one more to warm up.

        Quick runs are repeated for ``_STEADY_S`` in all, so that a short disturbance is outvoted.
        The weights of one product follow those of the one before it, from the start again when
        the buffer ends.
        """
        tensors: list[RemoteTensor] = []
        nodes: list[int] = []
        offset = 0
        for number, product in enumerate(products):
            size = kind.row_bytes(product.inputs) * product.outputs
            if offset + size > self.weights_bytes:
                offset = 0
            *parts, node = self._multiplication(kind, product, offset, number)
            tensors += parts
            nodes.append(node)
            offset = _up(offset + size, self.step_bytes(kind))
        last = tensors[-1]
        await self.client.compute(nodes, tensors, self.device)
        await self.client.get_tensor(last, 4)
        times: list[float] = []
        while len(times) < repetitions or (
            sum(times) < _STEADY_S and len(times) < _MOST_RUNS * repetitions
        ):
            times.append(await self._rerun_s(last))
        return max(statistics.median(times) - self.round_trip_s, 1e-9)

    async def hop_overhead_s(self, n_embd: int, repetitions: int) -> float:
        """What one token costs a sleeping worker beyond its round trip and its arithmetic.

        The messages are those of llama-server for one token: activation, position, two indices of
        the KV cache, mask; the graph again; one question. Workers sleep while others compute, and
        waking up is most of it: without the pause it is half as much.
        """
        await self.time_s(F32, [Product(_CHECK_WIDTH, _CHECK_WIDTH)], 1)
        sizes = (4 * n_embd, *_TOKEN_MESSAGES)
        inputs = [self._tensor(1, I8, (size, 1), 0) for size in sizes]
        times = []
        for _ in range(repetitions):
            await asyncio.sleep(_TOKEN_PAUSE_S)
            started_s = time.perf_counter()
            for tensor in inputs:
                await self.client.set_tensor(tensor, bytes(tensor.size_bytes))
            await self._rerun_s(inputs[0], inputs[0].size_bytes)
            times.append(time.perf_counter() - started_s)
        return max(statistics.median(times) - self.round_trip_s, 0.0)

    async def _rerun_s(self, last: RemoteTensor, answer_bytes: int = 4) -> float:
        started_s = time.perf_counter()
        await self.client.recompute(self.device)
        await self.client.get_tensor(last, answer_bytes)
        return time.perf_counter() - started_s

    def _multiplication(
        self, kind: WeightType, product: Product, offset: int, number: int
    ) -> tuple[RemoteTensor, RemoteTensor, RemoteTensor, int]:
        """Weights, input and output of a product, and the id of its node."""
        first_id = _FIRST_ID + 3 * number
        weights = self._tensor(first_id, kind, (product.inputs, product.outputs), offset)
        vector = self._tensor(
            first_id + 1, F32, (product.inputs, product.columns), self.weights_bytes
        )
        result = self._tensor(
            first_id + 2,
            F32,
            (product.outputs, product.columns),
            self.weights_bytes + self.vectors_bytes,
            operation=self.client.layout.multiply,
            sources=(first_id, first_id + 1),
            flags=FLAG_COMPUTE,
        )
        return weights, vector, result, first_id + 2

    def _tensor(
        self,
        id_: int,
        kind: WeightType,
        shape: tuple[int, int],
        offset: int,
        operation: int = 0,
        sources: tuple[int, ...] = (),
        flags: int = 0,
    ) -> RemoteTensor:
        return RemoteTensor(
            id=id_,
            type_id=kind.type_id,
            shape=shape,
            row_bytes=kind.row_bytes(shape[0]),
            element_bytes=kind.block_bytes,
            buffer=self.buffer,
            address=self.base + offset,
            operation=operation,
            sources=sources,
            flags=flags,
        )

    async def _spread(self, offset: int, size_bytes: int, kind: WeightType) -> None:
        """Send a seed and let the device double it until the part is full."""
        seed = await asyncio.to_thread(random_blocks, kind, min(SEED_BYTES, size_bytes))
        await self.client.set_tensor(self._tensor(1, I8, (len(seed), 1), offset), seed)
        filled = len(seed)
        while filled < size_bytes:
            size = min(filled, size_bytes - filled)
            source = self._tensor(1, I8, (size, 1), offset)
            target = self._tensor(2, I8, (size, 1), offset + filled)
            if not await self.client.copy(source, target):
                await self.client.clear(self.buffer, SCALE_BYTE)
                return
            filled += size


async def _round_trip_s(client: RpcClient, device: int) -> float:
    return statistics.median([await ping_s(client, device) for _ in range(11)])


def _up(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _floats(value: float, count: int) -> bytes:
    return struct.pack("<f", value) * count
