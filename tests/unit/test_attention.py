"""Attention on a worker: what is asked of it, and that another operation is not taken for it."""

import struct
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from agents import attention
from agents.attention import FAR, NEAR, PROMPT, Problem, measure_attention
from agents.errors import MeasurementFailed, MeasurementUnsupported
from agents.rpc_protocol import DeviceMemory, Triple
from agents.rpc_tensors import LAYOUTS, RemoteTensor, pack_tensor

TRIPLE = Triple(7, 0, 0)
LAYOUT = LAYOUTS[TRIPLE]


@dataclass
class Worker:
    """Answers every question for four bytes with the same ones; keeps the graphs it was sent."""

    answer: bytes = struct.pack("<f", attention.AVERAGE)
    room_bytes: int = 1 << 40
    layout: object = LAYOUT
    triple: Triple = TRIPLE
    graphs: list[tuple[list[int], list[RemoteTensor]]] = field(default_factory=list)
    held: int = 0

    async def allocate(self, size_bytes: int, _device: int) -> int | None:
        self.held += 1
        return 77 if size_bytes <= self.room_bytes else None

    async def free(self, _buffer: int) -> None:
        self.held -= 1

    async def base(self, _buffer: int) -> int:
        return 4096

    async def clear(self, _buffer: int, value: int) -> None:
        assert value == attention.FILLING

    async def memory(self, _device: int) -> DeviceMemory:
        return DeviceMemory(1, 1)

    async def compute(self, nodes: list[int], tensors: list[RemoteTensor], _device: int) -> None:
        self.graphs.append((nodes, tensors))

    async def recompute(self, _device: int) -> None: ...

    async def get_tensor(self, _tensor: RemoteTensor, _size_bytes: int) -> bytes:
        return self.answer


async def measure(worker: Worker) -> attention.Attention:
    return await measure_attention(worker)  # type: ignore[arg-type]


async def test_every_tensor_lies_in_its_buffer_and_every_source_is_there() -> None:
    worker = Worker()
    await measure(worker)
    assert worker.held == 0, "all memory is given back"
    for (nodes, tensors), problem in zip(worker.graphs, (NEAR, FAR, PROMPT), strict=True):
        ids = [tensor.id for tensor in tensors]
        assert len(set(ids)) == len(ids)
        assert set(nodes) <= set(ids)
        for tensor in tensors:
            begin = tensor.address - 4096
            assert 0 <= begin < begin + extent(tensor) <= problem.size_bytes
            assert set(tensor.sources) <= set(ids)
            assert len(pack_tensor(tensor, LAYOUT)) == 296


def extent(tensor: RemoteTensor) -> int:
    """Bytes from the first element to the end of the last."""
    steps = zip(tensor.shape, tensor.strides, strict=False)
    return sum((count - 1) * stride for count, stride in steps) + tensor.element_bytes


async def test_layers_have_caches_of_their_own() -> None:
    worker = Worker()
    await measure(worker)
    _, tensors = worker.graphs[1]
    caches = sorted(t.address for t in tensors if t.type_id == 1 and t.shape[2] > 1)
    assert len(caches) == 2 * FAR.layers
    gaps = [b - a for a, b in pairwise(caches)]
    assert set(gaps) == {FAR.cache_bytes}


async def test_another_operation_is_not_taken_for_attention() -> None:
    with pytest.raises(MeasurementUnsupported, match="operation 74 is no attention"):
        await measure(Worker(answer=struct.pack("<f", 2.0)))


async def test_a_device_without_room_says_how_much_it_needs() -> None:
    with pytest.raises(MeasurementFailed, match="MiB to measure attention"):
        await measure(Worker(room_bytes=1 << 20))


def test_work_is_counted_as_the_formula_counts_it() -> None:
    one = Problem(tokens=3, depth=100, layers=1)
    assert one.operations == 4 * 8 * 128 * 3 * 100
    assert replace(one, layers=5).operations == 5 * one.operations
    assert one.read_bytes == 2 * 2 * 8 * 128 * 100
