"""The client that measures, byte for byte, and against servers of every kind."""

import asyncio
import socket
import struct
import time
from typing import cast

import pytest
from measured_server import BASE, MeasuredServer, measured_server
from peers import hang_up, peer, reset, says, script

from agents import measure
from agents.errors import MeasurementFailed, MeasurementUnsupported
from agents.measure import DeviceSpec, decode_products, measure_device
from agents.measure_link import LEAST_BYTES, MOST_BYTES, measure_link, transfer_bytes
from agents.rpc_client import connected
from agents.rpc_protocol import Triple
from agents.rpc_tensors import FLAG_COMPUTE, LAYOUTS, Layout, RemoteTensor, pack_graph, pack_tensor
from agents.weights import F32, SCALE_BYTE, WEIGHT_TYPES, WeightType, random_blocks
from agents.workbench import Product, Workbench
from supervisor.core.ggml_types import TYPE_SIZES

SEVEN = LAYOUTS[Triple(7, 0, 0)]
OLDER = Layout(
    multiply=29, attention=74, has_cache_flag=False, has_use_count=False, has_empty_replies=True
)
MATRIX = RemoteTensor(
    id=5,
    type_id=8,
    shape=(64, 3, 2),
    row_bytes=68,
    element_bytes=34,
    buffer=7,
    address=BASE + 256,
    operation=29,
    sources=(1, 2),
    flags=FLAG_COMPUTE,
    uses=4,
)
SMALL = DeviceSpec(types=("Q8_0",), n_embd=256, n_ff=512, deadline_s=20)
HELLO_REPLY = struct.pack("<Q", 28) + bytes([7, 0, 0, 0]) + bytes(24)

# -- packing -------------------------------------------------------------------------------------


def test_a_tensor_is_the_documented_struct() -> None:
    packed = pack_tensor(MATRIX, SEVEN)
    assert len(packed) == 296
    assert struct.unpack_from("<QIQ", packed) == (5, 8, 7)
    assert struct.unpack_from("<4I", packed, 20) == (64, 3, 2, 1)
    assert struct.unpack_from("<4I", packed, 36) == (34, 68, 204, 408)
    assert struct.unpack_from("<I", packed, 52) == (29,)
    assert struct.unpack_from("<i", packed, 120) == (16,)
    assert struct.unpack_from("<10Q", packed, 124) == (1, 2, *[0] * 8)
    assert struct.unpack_from("<QQQ", packed, 204) == (0, 0, BASE + 256)
    assert struct.unpack_from("<i", packed, 292) == (4,)
    assert MATRIX.size_bytes == 408


def test_before_5_1_the_last_bytes_are_padding() -> None:
    assert pack_tensor(MATRIX, OLDER) == pack_tensor(MATRIX, SEVEN)[:292] + bytes(4)


def test_a_graph_is_device_nodes_and_tensors() -> None:
    packed = pack_graph(2, [5, 9], [MATRIX], SEVEN)
    assert struct.unpack_from("<IIQQI", packed) == (2, 2, 5, 9, 1)
    assert packed[28:] == pack_tensor(MATRIX, SEVEN)


@pytest.mark.parametrize("kind", WEIGHT_TYPES.values(), ids=lambda kind: kind.name)
def test_the_types_are_those_of_the_supervisor(kind: object) -> None:
    assert kind in WEIGHT_TYPES.values()
    made = WEIGHT_TYPES[getattr(kind, "name", "")]
    size = TYPE_SIZES[made.type_id]
    assert (size.name, size.block_elements, size.block_bytes) == (
        made.name,
        made.block_elements,
        made.block_bytes,
    )


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "Q8_0", "Q2_K"])
def test_random_blocks_have_sane_scales(name: str) -> None:
    kind = WEIGHT_TYPES[name]
    data = random_blocks(kind, 10 * kind.block_bytes + 3)
    assert len(data) == 10 * kind.block_bytes
    for block in range(10):
        for place in kind.scales_at:
            at = block * kind.block_bytes + place
            assert data[at : at + 2] == bytes([SCALE_BYTE] * 2)
    assert struct.unpack("<e", bytes([SCALE_BYTE] * 2))[0] == pytest.approx(0.004, rel=0.1)


@pytest.mark.parametrize(("name", "code"), [("F32", "f"), ("F16", "e")])
def test_random_floats_are_neither_tiny_nor_huge(name: str, code: str) -> None:
    data = random_blocks(WEIGHT_TYPES[name], 4096)
    values = struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data)
    assert all(0.05 < abs(value) < 2.5 for value in values)
    assert min(values) < 0 < max(values)


def test_products_fill_the_buffer_and_fit_in_it() -> None:
    kind = WEIGHT_TYPES["Q8_0"]
    products = decode_products(kind, 1024, 2816, 100 << 20, 4352)
    sizes = [kind.row_bytes(product.inputs) * product.outputs for product in products]
    assert 96 << 20 < sum(sizes) <= 100 << 20
    assert {(product.inputs, product.outputs) for product in products} == {
        (1024, 2816),
        (2816, 1024),
    }


def test_a_matrix_larger_than_the_buffer_is_cut() -> None:
    kind = WEIGHT_TYPES["F16"]
    products = decode_products(kind, 8192, 28672, 100 << 20, 256)
    assert len(products) >= 2
    assert sum(kind.row_bytes(p.inputs) * p.outputs for p in products) <= 100 << 20


# -- client --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "flag"), [(SEVEN, b"\0"), (OLDER, b"")])
async def test_set_tensor_carries_a_cache_flag_only_since_7(layout: Layout, flag: bytes) -> None:
    async with (
        measured_server(MeasuredServer()) as server,
        connected("127.0.0.1", server.port, deadline_s=5) as client,
    ):
        client.layout = layout
        await client.set_tensor(MATRIX, b"data", offset_bytes=9)
        await client.memory()
    assert server.sent == pack_tensor(MATRIX, layout) + flag + struct.pack("<Q", 9) + b"data"


async def test_a_conversation_ends_in_order() -> None:
    async with (
        measured_server(MeasuredServer()) as server,
        connected("127.0.0.1", server.port, deadline_s=5) as client,
    ):
        assert client.triple == Triple(7, 0, 0)
        assert await client.device_count() == 1
        assert await client.alignment() == 64
        buffer = await client.allocate(1 << 20)
        assert buffer == 7
        assert await client.base(buffer) == BASE
        await client.clear(buffer, 3)
        await client.free(buffer)
    assert server.commands == [14, 15, 1, 0, 3, 5, 4]
    assert server.cleared == [3]
    assert server.ends == ["eof"]


async def test_no_memory_on_the_device_is_no_buffer() -> None:
    async with (
        measured_server(MeasuredServer(largest_buffer=10)) as server,
        connected("127.0.0.1", server.port, deadline_s=5) as client,
    ):
        assert await client.allocate(11) is None


@pytest.mark.parametrize("triple", [(7, 0, 1), (6, 0, 0), (4, 0, 3)])
async def test_another_version_is_refused_and_left_in_order(triple: tuple[int, int, int]) -> None:
    async with measured_server(MeasuredServer(triple=triple)) as server:
        with pytest.raises(
            MeasurementUnsupported, match=r"RPC \d\.\d\.\d, measurements know 7.0.0"
        ):
            async with connected("127.0.0.1", server.port, deadline_s=5):
                pass
        await asyncio.sleep(0)
    assert server.commands == [14]
    assert server.ends == ["eof"]


@pytest.mark.parametrize("talk", [hang_up, reset, says(struct.pack("<Q", 3) + bytes(3))])
async def test_what_does_not_greet_as_we_know_it_is_unsupported(talk: object) -> None:
    async with peer(talk) as server:  # type: ignore[arg-type]
        with pytest.raises(MeasurementUnsupported, match="does not answer HELLO"):
            async with connected("127.0.0.1", server.port, deadline_s=5):
                pass


async def test_a_wrong_length_is_told_before_anything_is_allocated() -> None:
    absurd = struct.pack("<Q", 2**62)
    async with peer(script(HELLO_REPLY, absurd)) as server:
        with pytest.raises(MeasurementFailed, match="GET_DEVICE_MEMORY: an answer of"):
            async with connected("127.0.0.1", server.port, deadline_s=5) as client:
                await client.memory()


async def test_a_lost_connection_says_so() -> None:
    async with measured_server(MeasuredServer(dies_at=11)) as server:
        with pytest.raises(MeasurementFailed, match="connection lost"):
            async with connected("127.0.0.1", server.port, deadline_s=5) as client:
                await client.memory()


async def test_a_closed_port_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(MeasurementFailed, match="connection lost"):
        async with connected("127.0.0.1", port, deadline_s=5):
            pass


async def test_the_deadline_is_for_the_whole_conversation() -> None:
    started_s = time.monotonic()
    async with peer(script(HELLO_REPLY)) as server:
        with pytest.raises(MeasurementFailed, match=r"not measured within 0\.2 s"):
            async with connected("127.0.0.1", server.port, deadline_s=0.2) as client:
                await client.memory()
    assert time.monotonic() - started_s < 3


# -- measurements --------------------------------------------------------------------------------


async def test_a_device_is_measured_from_hello_to_the_freed_buffer() -> None:
    heard: list[tuple[str, float]] = []
    async with measured_server(MeasuredServer()) as server:
        found = await measure_device(
            "127.0.0.1", server.port, SMALL, progress=lambda step, part: heard.append((step, part))
        )
    assert found.rpc_protocol == "7.0.0"
    assert found.decode_bytes_per_s["Q8_0"] > 0
    assert found.prefill_flop_per_s["Q8_0"] > 0
    assert server.commands[-1] == 4
    assert server.ends == ["eof"]
    assert heard[0][1] == 0
    assert heard[-1] == ("done", 1.0)
    assert [part for _, part in heard] == sorted(part for _, part in heard)


async def test_a_server_with_other_operations_is_found_out_before_it_is_measured() -> None:
    async with measured_server(MeasuredServer(multiply=30)) as server:
        with pytest.raises(MeasurementUnsupported, match="operation 29 is no multiplication"):
            await measure_device("127.0.0.1", server.port, SMALL)
    assert server.commands.count(10) == 1


class NoTime:
    """A workbench on which everything seems to take no time at all, as noise can make it."""

    weights_bytes = 64 << 20

    def __init__(self) -> None:
        self.runs: list[int] = []

    async def time_s(self, kind: WeightType, products: list[Product], repetitions: int) -> float:
        self.runs.append(len(products))
        return 1e-9


async def test_a_run_that_seems_to_take_no_time_asks_for_no_endless_one() -> None:
    bench = NoTime()
    await measure._prefill_flop_per_s(cast(Workbench, bench), F32, SMALL)
    assert bench.runs == [1, measure.MOST_PRODUCTS]


async def test_a_backend_that_cannot_copy_is_filled_with_one_byte() -> None:
    async with measured_server(MeasuredServer(can_copy=False)) as server:
        await measure_device("127.0.0.1", server.port, SMALL)
    assert SCALE_BYTE in server.cleared


@pytest.mark.parametrize(
    ("server", "spec", "words"),
    [
        (MeasuredServer(free_bytes=100 << 20), SMALL, "100 MiB available"),
        (MeasuredServer(), DeviceSpec(memory_available_bytes=50 << 20), "50 MiB available"),
        (MeasuredServer(largest_buffer=1 << 20), SMALL, "free memory on it"),
        (MeasuredServer(answers_short=0), SMALL, "ALLOC_BUFFER: an answer of 15 bytes"),
        (MeasuredServer(dies_at=10), SMALL, "connection lost"),
    ],
)
async def test_a_failed_measurement_says_why(
    server: MeasuredServer, spec: DeviceSpec, words: str
) -> None:
    async with measured_server(server):
        with pytest.raises(MeasurementFailed, match=words):
            await measure_device("127.0.0.1", server.port, spec)


async def test_an_unknown_type_is_refused_without_a_connection() -> None:
    with pytest.raises(MeasurementUnsupported, match="Q9_9"):
        await measure_device("127.0.0.1", 9, DeviceSpec(types=("Q9_9",)))


async def test_a_link_is_measured_both_ways() -> None:
    async with measured_server(MeasuredServer()) as server:
        found = await measure_link("127.0.0.1", server.port, deadline_s=10)
    assert 0 < found.round_trip_p50_s <= found.round_trip_p90_s < 0.1
    assert min(found.up_bytes_per_s, found.down_bytes_per_s) > 1e6
    assert found.transfer_bytes >= LEAST_BYTES
    assert server.commands.count(3) == 31 + 2, "a question that no near end answers itself"
    assert not {1, 2, 11} & set(server.commands)
    assert server.ends == ["eof"]


@pytest.mark.parametrize(
    ("up", "down", "left_s", "expected"),
    [
        (1e10, 1e9, 10.0, MOST_BYTES),  # loopback
        (6e6, 6e6, 15.0, LEAST_BYTES),  # poor Wi-Fi: 4 MiB take 0.7 s
        (2e5, 2e5, 15.0, 256 << 10),  # a link that is no use
        (2.5e7, 2.5e7, 15.0, 6_250_000),  # good Wi-Fi
    ],
)
def test_transfers_are_long_enough_and_end_in_time(
    up: float, down: float, left_s: float, expected: int
) -> None:
    assert transfer_bytes(up, down, left_s) == pytest.approx(expected, rel=0.01)
