"""The estimate of the engine itself, against stand-ins, of real and of sparse models."""

import asyncio
import os
import struct
import sys
import time
from pathlib import Path

import pytest

from agents import engine as engines
from agents.contract import EngineFacts
from agents.rpc_client import connected
from agents.rpc_protocol import DeviceMemory, Outcome, Triple, probe
from supervisor.adapters.fit_params import NO_OVERRIDE, EngineOptions, engine_memory, parse
from supervisor.adapters.gguf import read_header
from supervisor.adapters.sparse_model import PartStart, local_parts, sparse_model
from supervisor.adapters.stand_in_worker import stand_in_worker
from supervisor.core.engine_memory import MIB
from supervisor.errors import (
    EngineRefusedFlag,
    EngineRefusedModel,
    EngineToolMissing,
    EstimateFailed,
    ModelBroken,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "planning"))

from shapes import SHAPES, Shape, header

SEVEN = Triple(7, 0, 0)
ROOM = DeviceMemory(1 << 40, 1 << 40)
LAYERS = 8
OPTIONS = EngineOptions(4096, LAYERS + 1, (5, 4), overrides=(NO_OVERRIDE,))
INHERITED = engines.inherited()


# -- stand-in ------------------------------------------------------------------------------------


@pytest.mark.parametrize("triple", [Triple(7, 0, 0), Triple(4, 0, 3)])
async def test_a_stand_in_says_what_it_was_given(triple: Triple) -> None:
    devices = (DeviceMemory(5, 10), DeviceMemory(2**40, 2**41))
    async with stand_in_worker(devices, triple) as worker:
        host, port = worker.endpoint.split(":")
        found = await probe(host, int(port), deadline_s=2)
    assert (found.outcome, found.triple, found.devices) == (Outcome.READY, triple, devices)
    assert (await probe(host, int(port), deadline_s=2)).outcome is Outcome.REFUSED


async def test_a_stand_in_takes_no_weights_and_remembers_nothing() -> None:
    async with stand_in_worker([ROOM], SEVEN) as worker:
        host, port = worker.endpoint.split(":")
        async with connected(host, int(port), deadline_s=5) as client:
            buffer = await client.allocate(1 << 45)
            assert buffer is not None
            assert await client.base(buffer) > 0
            await client.clear(buffer, 0)
            await client.free(buffer)
            assert (await client.memory()).free_bytes == 1 << 40
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(struct.pack("<BQ", 14, 1 << 40))  # would be a terabyte
        assert await reader.read() == b""
        writer.close()


@pytest.mark.parametrize(("devices", "triple"), [((), SEVEN), ((ROOM,), Triple(3, 6, 0))])
async def test_what_cannot_be_stood_in_for_is_refused(
    devices: tuple[DeviceMemory, ...], triple: Triple
) -> None:
    with pytest.raises(ValueError, match="cannot stand in"):
        async with stand_in_worker(devices, triple):
            pass


# -- the engine's figures --------------------------------------------------------------------------


async def test_the_engine_places_weights_cache_and_buffers(
    engine: EngineFacts, demo_model: Path
) -> None:
    found = await engine_memory(engine, demo_model, [[ROOM], [ROOM]], OPTIONS, inherited=INHERITED)
    header_ = read_header(demo_model)
    blocks = [0] * LAYERS
    for tensor in header_.tensors:
        if tensor.name.startswith("blk."):
            blocks[int(tensor.name.split(".")[1])] += tensor.size_bytes
    output = sum(t.size_bytes for t in header_.tensors if t.name.startswith("output"))
    cache_bytes = 2 * 2 * 256 * 4096  # K and V, f16, 4 heads of 64 elements, per layer
    for device, (first, last, extra) in zip(
        found.devices, [(0, 5, 0), (5, 8, output)], strict=True
    ):
        weights = sum(blocks[first:last]) + extra
        assert device.model_bytes <= weights < device.model_bytes + 2 * MIB
        assert device.context_bytes == (last - first) * cache_bytes
        assert 0 < device.compute_bytes < 64 * MIB
    assert [device.name for device in found.devices] == ["RPC0", "RPC1"]
    assert found.host.name == "Host"


async def test_a_quantised_cache_and_a_small_ubatch_need_less(
    engine: EngineFacts, demo_model: Path
) -> None:
    small = EngineOptions(
        4096,
        LAYERS + 1,
        (5, 4),
        ubatch=128,
        kv_type_k="q8_0",
        kv_type_v="q8_0",
        extra=("-fa", "on"),
    )
    workers = [[ROOM], [ROOM]]
    large = EngineOptions(4096, LAYERS + 1, (5, 4), extra=("-fa", "on"))
    less = await engine_memory(engine, demo_model, workers, small, inherited=INHERITED)
    more = await engine_memory(engine, demo_model, workers, large, inherited=INHERITED)
    for a, b in zip(less.devices, more.devices, strict=True):
        assert a.model_bytes == b.model_bytes
        assert a.context_bytes < 0.6 * b.context_bytes
        assert a.compute_bytes < b.compute_bytes


async def test_two_devices_of_one_worker_and_layers_on_the_host(
    engine: EngineFacts, demo_model: Path
) -> None:
    options = EngineOptions(1024, 6, (3, 3), overrides=(NO_OVERRIDE,))
    found = await engine_memory(engine, demo_model, [[ROOM, ROOM]], options, inherited=INHERITED)
    assert [device.name for device in found.devices] == ["RPC0", "RPC1"]
    assert found.host.context_bytes > 0  # the first three layers


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
async def test_every_kind_of_model_is_planned_from_its_header(
    engine: EngineFacts, tmp_path: Path, shape: Shape
) -> None:
    started_s = time.monotonic()
    made = header(shape)
    path = sparse_model([made], tmp_path)
    middle = (shape.layers + 1) // 2
    options = EngineOptions(8192, shape.layers + 1, (middle, shape.layers + 1 - middle))
    found = await engine_memory(engine, path, [[ROOM], [ROOM]], options, inherited=INHERITED)
    assert time.monotonic() - started_s < 5
    assert path.stat().st_size == made.size_bytes
    assert path.stat().st_blocks * 512 < 1 * MIB
    weights = sum(device.model_bytes for device in found.devices)
    assert weights == pytest.approx(made.size_bytes, rel=0.25)
    assert all(device.context_bytes > 0 for device in found.devices)


async def test_logits_are_counted_as_llama_server_reserves_them(
    engine: EngineFacts, tmp_path: Path
) -> None:
    """Measured with llama-server: 13.01 MiB where the tool alone says 126."""
    path = sparse_model([header(SHAPES[1])], tmp_path)  # 128 256 tokens: 250 MiB for 512 rows
    server = EngineOptions(8192, 33, (17, 16), overrides=(NO_OVERRIDE,))
    bench = EngineOptions(8192, 33, (17, 16), overrides=(NO_OVERRIDE,), all_logits=True)
    output_on_host = EngineOptions(8192, 33, (17, 16), overrides=(r"^output\.weight=CPU",))
    workers = [[ROOM], [ROOM]]
    ours = await engine_memory(engine, path, workers, server, inherited=INHERITED)
    theirs = await engine_memory(engine, path, workers, bench, inherited=INHERITED)
    host = await engine_memory(engine, path, workers, output_on_host, inherited=INHERITED)
    assert theirs.devices[1].compute_bytes - ours.devices[1].compute_bytes > 100 * MIB
    assert abs(theirs.devices[1].model_bytes - ours.devices[1].model_bytes) <= MIB
    assert theirs.devices[0] == ours.devices[0]
    moved = ours.devices[1].model_bytes - host.devices[1].model_bytes
    assert host.host.model_bytes - ours.host.model_bytes == pytest.approx(moved, abs=2 * MIB)
    assert host.host.compute_bytes == ours.host.compute_bytes


async def test_a_local_model_is_copied_without_its_weights(
    engine: EngineFacts, demo_model: Path, tmp_path: Path
) -> None:
    path = sparse_model(local_parts(read_header(demo_model)), tmp_path)
    assert path.stat().st_blocks * 512 < 128 << 10 < demo_model.stat().st_blocks * 512
    workers = [[ROOM], [ROOM]]
    copied = await engine_memory(engine, path, workers, OPTIONS, inherited=INHERITED)
    assert copied == await engine_memory(engine, demo_model, workers, OPTIONS, inherited=INHERITED)


def test_half_a_header_makes_no_model(tmp_path: Path) -> None:
    made = header(SHAPES[0])
    half = PartStart(made.name, made.start[: len(made.start) // 2], made.size_bytes)
    with pytest.raises(ModelBroken):
        sparse_model([half], tmp_path)


# -- failures --------------------------------------------------------------------------------------


async def test_a_model_that_the_engine_does_not_know_is_refused(
    engine: EngineFacts, tmp_path: Path
) -> None:
    made = header(SHAPES[0])
    unknown = PartStart("x.gguf", made.start.replace(b"llama", b"llamb"), made.size_bytes)
    path = sparse_model([unknown], tmp_path)
    with pytest.raises(EngineRefusedModel, match=r"llamb|failed to load model"):
        await engine_memory(engine, path, [[ROOM], [ROOM]], OPTIONS, inherited=INHERITED)


async def test_an_unknown_option_is_refused(engine: EngineFacts, demo_model: Path) -> None:
    options = EngineOptions(512, 9, (5, 4), extra=("--frobnicate",))
    with pytest.raises(EngineRefusedFlag, match="frobnicate"):
        await engine_memory(engine, demo_model, [[ROOM], [ROOM]], options, inherited=INHERITED)


def tool(folder: Path, script: str) -> EngineFacts:
    """An engine whose ``llama-fit-params`` is a shell script."""
    path = folder / "llama-fit-params"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return EngineFacts(folder=str(folder), source="test", rpc_protocol="7.0.0")


async def test_a_build_without_the_tool_says_so(tmp_path: Path) -> None:
    engine = EngineFacts(folder=str(tmp_path), source="test", rpc_protocol="7.0.0")
    with pytest.raises(EngineToolMissing, match="formulas"):
        await engine_memory(engine, tmp_path, [[ROOM]], OPTIONS, inherited=INHERITED)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exec sleep 60", "within 0.5 s"),
        ("echo hello", "printed no table"),
        ("echo 'RPC0 1 2 3'; echo 'Host 1 2 3'", "printed no table"),
        ("echo oh dear >&2; exit 3", "status 3: oh dear"),
        ("kill -ABRT $$", "SIGABRT"),
    ],
)
async def test_a_tool_that_fails_is_an_error_with_its_words(
    tmp_path: Path, script: str, words: str
) -> None:
    started_s = time.monotonic()
    with pytest.raises(EstimateFailed, match=words):
        await engine_memory(
            tool(tmp_path, script),
            tmp_path,
            [[ROOM], [ROOM]],
            OPTIONS,
            inherited={**os.environ},
            deadline_s=0.5 if "sleep" in script else 10,
        )
    assert time.monotonic() - started_s < 5


def test_the_table_is_found_between_other_lines() -> None:
    found = parse("ggml: warming up 3\nRPC0 1 2 3 \nHost 4 5 6\nbye\n", ["RPC0"])
    assert found.devices[0].total_bytes == 9 * MIB
    assert found.host.context_bytes == 5 * MIB
