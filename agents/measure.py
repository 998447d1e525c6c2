"""Measures a device through its own idle rpc-server, and the link to it; installs nothing there.

The numbers go into the cost model of the planner: decode time is bytes read divided by bytes per
second, plus a fixed time per operation; prefill time is operations divided by operations per
second. Only for protocol versions in ``rpc_tensors.LAYOUTS``.

Weights must be larger than the caches: 26-50 MB gave 2.5 to 3 times the true speed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from agents.attention import NOTHING, measure_attention
from agents.errors import MeasurementFailed, MeasurementUnsupported
from agents.measure_link import LinkMeasurement, measure_link
from agents.rpc_client import RpcClient, connected
from agents.weights import F32, WEIGHT_TYPES, WeightType
from agents.workbench import Product, Workbench

__all__ = [
    "DeviceMeasurement",
    "DeviceSpec",
    "LinkMeasurement",
    "measure_device",
    "measure_link",
]

DEFAULT_TYPES: Final = ("Q4_0", "Q4_K", "Q6_K", "Q8_0", "F16")
WEIGHTS_BYTES: Final = 224 << 20
LEAST_WEIGHTS_BYTES: Final = 32 << 20
MEMORY_SHARE: Final = 0.5
"""Of the available memory that a measurement takes at most."""

REPETITIONS: Final = 5
HOP_REPETITIONS: Final = 15
PREFILL_COLUMNS: Final = 512
"""Vectors at a time: the default ubatch of llama-server."""

PREFILL_RUN_S: Final = 0.1
MOST_PRODUCTS: Final = 1024
"""Of one run: a GPU of 100 TFLOP/s does some hundreds of a 7B model's in that time."""

OVERHEAD_PRODUCTS: Final = 512
OVERHEAD_WIDTH: Final = 32
WIDTH_MULTIPLE: Final = 256
"""Rows of the K-quants are multiples of this."""

VECTORS_BYTES: Final = 32 << 20
FIRST_OUTPUTS: Final = 256

Progress = Callable[[str, float], None]
"""Hears what is being done and which part of all, from 0 to 1, is done."""


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """What to measure: the types and widths of the model that will be planned.

    ``memory_available_bytes`` is what the agent measured; rpc-servers report all memory of a CPU
    as free. ``deadline_s`` is for everything. ``sustained_s`` is how long to keep the device busy
    before it is measured once more: phones throttle after some seconds, and stay there.
    ``is_processor``: attention is measured too, see ``agents/attention.py``.
    """

    types: tuple[str, ...] = DEFAULT_TYPES
    n_embd: int = 4096
    n_ff: int = 14336
    deadline_s: float = 30.0
    device: int = 0
    sustained_s: float = 0.0
    is_processor: bool = False
    memory_available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceMeasurement:
    """Speed of one device.

    ``op_overhead_s`` is the fixed time of one operation of a graph. ``hop_overhead_s`` is the fixed
    time of one token beyond ``round_trip_s`` and arithmetic (messages, waking up). The caches
    could have held the weights if ``weights_bytes`` is small. The speeds are those of a fresh
    device; under steady load it has ``sustained_factor`` of them, 1 if that was not measured.
    Attention is 0 where it was not.
    """

    rpc_protocol: str
    round_trip_s: float
    op_overhead_s: float
    hop_overhead_s: float
    weights_bytes: int
    elapsed_s: float
    decode_bytes_per_s: dict[str, float] = field(default_factory=dict)
    prefill_flop_per_s: dict[str, float] = field(default_factory=dict)
    sustained_factor: float = 1.0
    attention_flop_per_s: float = 0.0
    cache_bytes_per_s: float = 0.0
    prefill_attention_flop_per_s: float = 0.0


def _ignore(_step: str, _part: float) -> None:
    pass


async def measure_device(
    host: str, port: int, spec: DeviceSpec, *, progress: Progress = _ignore
) -> DeviceMeasurement:
    """Measure one device of an idle rpc-server; its memory is free again afterwards.

    Raises:
        MeasurementUnsupported: Another protocol version or type than we know.
        MeasurementFailed: No answer, too slow, or too little memory.
    """
    kinds = [_kind(name) for name in spec.types]
    started_s = time.monotonic()
    async with connected(host, port, deadline_s=spec.deadline_s) as client:
        progress("connect", 0.0)
        attention = await measure_attention(client, spec.device) if spec.is_processor else NOTHING
        bench = await _build(client, spec)
        await bench.check_multiplication()
        overhead_s = await _overhead_s(bench)
        hop_s = await bench.hop_overhead_s(spec.n_embd, HOP_REPETITIONS)
        decode: dict[str, float] = {}
        prefill: dict[str, float] = {}
        for number, kind in enumerate(kinds):
            progress(kind.name, number / len(kinds))
            await bench.fill(kind)
            decode[kind.name] = await _decode_bytes_per_s(bench, kind, spec, overhead_s)
            prefill[kind.name] = await _prefill_flop_per_s(bench, kind, spec)
        factor = await _sustained_factor(bench, kinds[-1], spec, decode, overhead_s, progress)
        await client.free(bench.buffer)
    progress("done", 1.0)
    return DeviceMeasurement(
        rpc_protocol=str(client.triple),
        round_trip_s=bench.round_trip_s,
        op_overhead_s=overhead_s,
        hop_overhead_s=hop_s,
        weights_bytes=bench.weights_bytes,
        elapsed_s=time.monotonic() - started_s,
        decode_bytes_per_s=decode,
        prefill_flop_per_s=prefill,
        sustained_factor=factor,
        attention_flop_per_s=attention.decode_flop_per_s,
        cache_bytes_per_s=attention.cache_bytes_per_s,
        prefill_attention_flop_per_s=attention.prefill_flop_per_s,
    )


async def _sustained_factor(
    bench: Workbench,
    kind: WeightType,
    spec: DeviceSpec,
    fresh: dict[str, float],
    overhead_s: float,
    progress: Progress,
) -> float:
    """What is left of the speed after steady work; the weights of ``kind`` are there already."""
    end_s = time.monotonic() + spec.sustained_s
    if spec.sustained_s <= 0 or kind.name not in fresh:
        return 1.0
    progress("steady load", 1.0)
    while time.monotonic() < end_s:
        await _prefill_flop_per_s(bench, kind, spec)
    now = await _decode_bytes_per_s(bench, kind, spec, overhead_s)
    return min(1.0, now / fresh[kind.name])


def _kind(name: str) -> WeightType:
    kind = WEIGHT_TYPES.get(name)
    if kind is None:
        raise MeasurementUnsupported(
            f"weights of type {name!r} cannot be measured, only {', '.join(WEIGHT_TYPES)}"
        )
    return kind


async def _build(client: RpcClient, spec: DeviceSpec) -> Workbench:
    memory = await client.memory(spec.device)
    available = min(memory.free_bytes, spec.memory_available_bytes or memory.free_bytes)
    weights_bytes = int(min(WEIGHTS_BYTES, available * MEMORY_SHARE - 2 * VECTORS_BYTES))
    if weights_bytes < LEAST_WEIGHTS_BYTES:
        raise MeasurementFailed(
            f"the device has {available >> 20} MiB available, a measurement needs "
            f"{int((LEAST_WEIGHTS_BYTES + 2 * VECTORS_BYTES) / MEMORY_SHARE) >> 20}; free some"
        )
    return await Workbench.build(client, spec.device, weights_bytes, VECTORS_BYTES)


async def _overhead_s(bench: Workbench) -> float:
    """Time of one operation that does next to nothing: dispatch, barriers of threads, launch."""
    tiny = [Product(OVERHEAD_WIDTH, OVERHEAD_WIDTH)] * OVERHEAD_PRODUCTS
    return await bench.time_s(F32, tiny, REPETITIONS) / OVERHEAD_PRODUCTS


async def _decode_bytes_per_s(
    bench: Workbench, kind: WeightType, spec: DeviceSpec, overhead_s: float
) -> float:
    """Speed of one vector through all the weights, without the fixed time per operation."""
    products = decode_products(
        kind, spec.n_embd, spec.n_ff, bench.weights_bytes, bench.step_bytes(kind)
    )
    size_bytes = sum(kind.row_bytes(p.inputs) * p.outputs for p in products)
    time_s = await bench.time_s(kind, products, REPETITIONS)
    return size_bytes / max(time_s - len(products) * overhead_s, time_s / 2)


def decode_products(
    kind: WeightType, n_embd: int, n_ff: int, weights_bytes: int, step_bytes: int
) -> list[Product]:
    """Products of the model's widths, up and down in turn, that fill the buffer but fit in it.

    Each begins at a multiple of ``step_bytes``.
    """
    narrow, wide = _width(n_embd), _width(n_ff)
    products: list[Product] = []
    left = weights_bytes
    while True:
        inputs, outputs = (narrow, wide) if len(products) % 2 == 0 else (wide, narrow)
        row_bytes = kind.row_bytes(inputs)
        # Only a matrix that alone is larger than half of the buffer is cut.
        outputs = min(outputs, max(weights_bytes // 2 // row_bytes, 1))
        size = -(-row_bytes * outputs // step_bytes) * step_bytes
        if size > left:
            return products
        products.append(Product(inputs, outputs))
        left -= size


async def _prefill_flop_per_s(bench: Workbench, kind: WeightType, spec: DeviceSpec) -> float:
    """Speed of many vectors at a time; as much work as takes about ``PREFILL_RUN_S``."""
    inputs = min(_width(spec.n_embd), VECTORS_BYTES // 4 // PREFILL_COLUMNS)
    most = min(
        _width(spec.n_ff),
        VECTORS_BYTES // 4 // PREFILL_COLUMNS,
        bench.weights_bytes // kind.row_bytes(inputs),
    )
    first = Product(inputs, min(FIRST_OUTPUTS, most), PREFILL_COLUMNS)
    wanted = PREFILL_RUN_S / await bench.time_s(kind, [first], 1) * first.outputs
    outputs = int(min(max(wanted, first.outputs), most)) // 64 * 64 or first.outputs
    product = Product(inputs, outputs, PREFILL_COLUMNS)
    # A first run that seems to take no time, as noise can make it, must not ask for millions.
    count = min(max(int(wanted / outputs), 1), MOST_PRODUCTS)
    time_s = await bench.time_s(kind, [product] * count, REPETITIONS)
    return product.operations * count / time_s


def _width(elements: int) -> int:
    return -(-elements // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
