"""Measures the way to a device's idle rpc-server: round trips and both bandwidths."""

import statistics
import time
from dataclasses import dataclass
from typing import Final

from agents.errors import MeasurementFailed
from agents.rpc_client import RpcClient, connected
from agents.rpc_tensors import RemoteTensor
from agents.weights import I8

PINGS: Final = 30
REPETITIONS: Final = 3
FIRST_BYTES: Final = 256 << 10
LEAST_BYTES: Final = 4 << 20
MOST_BYTES: Final = 8 << 20
"""More would stay in the heap of the rpc-server: glibc keeps freed blocks of 8 to 32 MiB."""

_PING_BYTES: Final = 4 << 10

TRANSFER_S: Final = 0.25
"""What one transfer should take, so that slow start and scheduling do not show."""

SHARE_OF_TIME: Final = 0.6
"""Of the time left that all transfers together may take by the first estimate."""


@dataclass(frozen=True, slots=True)
class LinkMeasurement:
    """One link as seen from here; up is towards the device.

    Round trips are those of a small question that the rpc-server itself answers, and bandwidths
    include what it takes to copy the data. Measured through a link, both include what that takes at
    either end: as a launched model sees them.
    """

    round_trip_p50_s: float
    round_trip_p90_s: float
    up_bytes_per_s: float
    down_bytes_per_s: float
    transfer_bytes: int
    elapsed_s: float


async def measure_link(host: str, port: int, *, deadline_s: float = 15.0) -> LinkMeasurement:
    """Measure the way from here to an idle rpc-server, or to the near end of a link to one.

    A link too slow to carry transfers of ``LEAST_BYTES`` in time is measured with smaller ones.

    Raises:
        MeasurementUnsupported: Another protocol version than we know.
        MeasurementFailed: No answer, too slow, or too little memory.
    """
    started_s = time.monotonic()
    async with connected(host, port, deadline_s=deadline_s) as client:
        pings = sorted(await _round_trips_s(client))
        median_s = statistics.median(pings)
        up, down = await _rates(client, FIRST_BYTES, median_s, repetitions=1)
        left_s = started_s + deadline_s - time.monotonic()
        size = transfer_bytes(up, down, left_s)
        up, down = await _rates(client, size, median_s, REPETITIONS)
    return LinkMeasurement(
        round_trip_p50_s=median_s,
        round_trip_p90_s=pings[PINGS * 9 // 10 - 1],
        up_bytes_per_s=up,
        down_bytes_per_s=down,
        transfer_bytes=size,
        elapsed_s=time.monotonic() - started_s,
    )


def transfer_bytes(up_bytes_per_s: float, down_bytes_per_s: float, left_s: float) -> int:
    """Size of the transfers, from a first estimate of both rates and the time that is left."""
    wanted = max(LEAST_BYTES, TRANSFER_S * max(up_bytes_per_s, down_bytes_per_s))
    per_byte_s = (REPETITIONS + 1) * (1 / up_bytes_per_s + 1 / down_bytes_per_s)
    affordable = SHARE_OF_TIME * max(left_s, 0.0) / per_byte_s
    return int(max(FIRST_BYTES, min(wanted, affordable, MOST_BYTES)))


async def ping_s(client: RpcClient, device: int = 0) -> float:
    """One round trip to an rpc-server on this host, by the smallest question with an answer."""
    started_s = time.perf_counter()
    await client.memory(device)
    return time.perf_counter() - started_s


async def _round_trips_s(client: RpcClient) -> list[float]:
    """Of a question that a near end cannot answer, unlike that of ``ping_s``; the first warms up.

    It touches no tensor either: that would be part of ``DeviceMeasurement.hop_overhead_s``.
    """
    buffer = await _allocated(client, _PING_BYTES)
    times = []
    for _ in range(PINGS + 1):
        started_s = time.perf_counter()
        await client.base(buffer)
        times.append(time.perf_counter() - started_s)
    await client.free(buffer)
    return times[1:]


async def _allocated(client: RpcClient, size_bytes: int) -> int:
    buffer = await client.allocate(size_bytes)
    if buffer is None:
        raise MeasurementFailed(
            f"the device has no {size_bytes >> 10} KiB to receive; free memory on it"
        )
    return buffer


async def _rates(
    client: RpcClient, size_bytes: int, round_trip_s: float, repetitions: int
) -> tuple[float, float]:
    """Bytes per second up and down; the first transfer each way warms up."""
    buffer = await _allocated(client, size_bytes)
    address = await client.base(buffer)
    target = RemoteTensor(1, I8.type_id, (size_bytes, 1), size_bytes, 1, buffer, address)
    data = bytes(size_bytes)
    ups = [await _up_s(client, target, data) for _ in range(repetitions + 1)][1:]
    downs = [await _down_s(client, target) for _ in range(repetitions + 1)][1:]
    await client.free(buffer)
    return (
        size_bytes / max(statistics.median(ups) - round_trip_s, 1e-6),
        size_bytes / max(statistics.median(downs) - round_trip_s, 1e-6),
    )


async def _up_s(client: RpcClient, target: RemoteTensor, data: bytes) -> float:
    started_s = time.perf_counter()
    await client.set_tensor(target, data)
    await client.get_tensor(target, 4)
    return time.perf_counter() - started_s


async def _down_s(client: RpcClient, target: RemoteTensor) -> float:
    started_s = time.perf_counter()
    await client.get_tensor(target, target.size_bytes)
    return time.perf_counter() - started_s
