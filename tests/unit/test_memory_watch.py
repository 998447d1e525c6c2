"""Predicted and measured memory per process: what is noted, and how it is shown."""

import mmap
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents import facts
from agents.contract import RpcServerStatus, WorkerState
from supervisor.cli.output import memory_table
from supervisor.core.entities import (
    AgentId,
    HostShare,
    LaunchRecord,
    MemorySample,
    ModelFacts,
    Plan,
    ProcessMemory,
    Shard,
)
from supervisor.core.memory import MIB
from supervisor.core.process_memory import LLAMA_SERVER, greatest, summed_up
from supervisor.core.workspace import LLAMA_SERVER_BYTES, RPC_SERVER_BYTES
from supervisor.service.memory_watch import MemoryWatch, own_memory

MAC, PHONE = AgentId("mac"), AgentId("phone")
MODEL = ModelFacts(path="/m.gguf", name="m", architecture="llama", block_count=4, size_bytes=9)


def shard(agent_id: AgentId, ggml_device: str = "CPU", **use: int) -> Shard:
    return Shard(
        agent_id=agent_id,
        device=str(agent_id),
        ggml_device=ggml_device,
        host="10.0.0.1",
        layers=2,
        **use,
    )


def plan(*shards: Shard) -> Plan:
    host = HostShare(peak_bytes=68 * MIB, budget_bytes=900 * MIB)
    return Plan(model=MODEL, ctx_tokens=512, slots=1, shards=shards, host=host)


def ready(resident: int | None, peak: int | None = None) -> RpcServerStatus:
    return RpcServerStatus(WorkerState.READY, resident_bytes=resident, peak_bytes=peak)


def by_name(watch: MemoryWatch) -> dict[str, ProcessMemory]:
    return {memory.process: memory for memory in watch.record()}


def test_two_devices_of_one_agent_are_one_process() -> None:
    watch = MemoryWatch(
        plan(
            shard(MAC, peak_bytes=30 * MIB, budget_bytes=100 * MIB),
            shard(PHONE, peak_bytes=7 * MIB, budget_bytes=50 * MIB),
            shard(MAC, peak_bytes=20 * MIB, budget_bytes=200 * MIB),
        ),
        lambda: None,
    )
    assert [memory.process for memory in watch.record()] == ["mac", "phone", LLAMA_SERVER]
    mac = by_name(watch)["mac"]
    assert mac.predicted_bytes == 50 * MIB + RPC_SERVER_BYTES
    assert mac.budget_bytes == 300 * MIB
    assert not mac.has_gpu
    assert by_name(watch)[LLAMA_SERVER].predicted_bytes == 68 * MIB + LLAMA_SERVER_BYTES


def test_a_plan_without_devices_has_llama_server_alone() -> None:
    watch = MemoryWatch(plan(), lambda: MemorySample(resident_bytes=5))
    watch.while_loading({})
    watch.when_ready({})
    watch.at_the_end({})
    (own,) = watch.record()
    assert own.process == LLAMA_SERVER
    assert own.loading == own.ready == own.ended == MemorySample(resident_bytes=5)


def test_an_unknown_prediction_stays_unknown() -> None:
    assert by_name(MemoryWatch(plan(shard(MAC)), lambda: None))["mac"].predicted_bytes == 0


def test_gpu_memory_is_marked_since_nobody_sees_it_from_outside() -> None:
    watch = MemoryWatch(plan(shard(MAC, "MTL0"), shard(PHONE)), lambda: None)
    assert by_name(watch)["mac"].has_gpu
    assert not by_name(watch)["phone"].has_gpu


def test_the_most_while_loading_is_kept_and_later_moments_are_single_looks() -> None:
    own = iter([MemorySample(resident_bytes=n * MIB, file_bytes=n * MIB) for n in (3, 9, 4, 2, 1)])
    watch = MemoryWatch(plan(shard(MAC)), lambda: next(own))
    for resident, peak in ((10, 12), (40, 41), (20, 41)):
        watch.while_loading({MAC: ready(resident, peak)})
    watch.when_ready({MAC: ready(25, 41)})
    watch.at_the_end({MAC: ready(30, 60)})
    mac, host = by_name(watch)["mac"], by_name(watch)[LLAMA_SERVER]
    assert mac.loading == MemorySample(resident_bytes=40, peak_bytes=41)
    assert mac.ready == MemorySample(resident_bytes=25, peak_bytes=41)
    assert mac.ended == MemorySample(resident_bytes=30, peak_bytes=60)
    assert host.loading == MemorySample(resident_bytes=9 * MIB, file_bytes=9 * MIB)
    assert host.ended == MemorySample(resident_bytes=1 * MIB, file_bytes=1 * MIB)


def test_a_worker_that_is_gone_at_the_end_has_no_sample_there() -> None:
    watch = MemoryWatch(plan(shard(MAC), shard(PHONE)), lambda: None)
    watch.when_ready({MAC: ready(25, 41), PHONE: ready(9)})
    watch.at_the_end({PHONE: RpcServerStatus(WorkerState.FAILED, detail="killed")})
    for name, resident in (("mac", 25), ("phone", 9)):
        memory = by_name(watch)[name]
        assert memory.ended is None
        assert memory.ready is not None
        assert memory.ready.resident_bytes == resident


def sample(resident: int | None, peak: int | None, files: int | None = None) -> MemorySample:
    return MemorySample(resident_bytes=resident, peak_bytes=peak, file_bytes=files)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ({}, None),
        ({"loading": sample(5, 9)}, 9),
        ({"loading": sample(5, 9), "ended": sample(12, None)}, 12),
        # A peak that counts the mapped model says nothing about what has to fit.
        ({"loading": sample(5, 900, 800), "ready": sample(7, 900, 100)}, 7),
        ({"ready": sample(None, 9)}, 9),
    ],
)
def test_what_was_measured_leaves_out_what_can_be_taken_back(
    samples: dict[str, MemorySample], expected: int | None
) -> None:
    memory = ProcessMemory(process="x", predicted_bytes=1, budget_bytes=1)
    assert summed_up(memory.model_copy(update=samples)).measured_bytes == expected


def test_unknown_figures_do_not_hide_known_ones() -> None:
    assert greatest(sample(None, 4, 2), sample(7, None, 3)) == sample(7, 4, 3)
    assert greatest(None, sample(1, 2)) == greatest(sample(1, 2), None) == sample(1, 2)
    assert greatest(None, None) is None


# -- this very process -----------------------------------------------------------------------------

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="not permitted here: no /proc")


@needs_proc
def test_mapped_files_are_told_apart_from_memory_of_ones_own(tmp_path: Path) -> None:
    before = own_memory(os.getpid())
    path = tmp_path / "mapped"
    with path.open("wb") as made:  # in pieces: what is freed at once may stay with the process
        for _ in range(24):
            made.write(os.urandom(MIB))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[::4096]) > 0
        after = own_memory(os.getpid())
    assert before is not None
    assert after is not None
    assert before.file_bytes is not None
    assert after.file_bytes is not None
    assert after.resident_bytes is not None
    assert before.resident_bytes is not None
    assert after.file_bytes - before.file_bytes > 20 * MIB
    assert after.resident_bytes - before.resident_bytes < 12 * MIB
    assert after.peak_bytes is not None
    assert after.peak_bytes >= after.resident_bytes


@needs_proc
def test_a_peak_remains_after_the_memory_is_given_back() -> None:
    program = "import sys; x = bytearray(64 << 20); del x; print('done', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        peak, now = facts.peak_resident_bytes(child.pid), facts.resident_bytes(child.pid)
        assert peak is not None
        assert now is not None
        assert now + 60 * MIB < peak < now + 80 * MIB
    finally:
        child.communicate(b"\n", timeout=10)
    assert facts.peak_resident_bytes(child.pid) is None
    assert own_memory(child.pid) is None


# -- what people see -------------------------------------------------------------------------------


def shown(*processes: ProcessMemory) -> str:
    record: Mapping[str, Any] = {"memory": [p.model_dump(mode="json") for p in processes]}
    console = Console(width=200, force_terminal=False)
    with console.capture() as capture:
        console.print(memory_table(dict(record)))
    return capture.get()


def test_predicted_and_measured_stand_side_by_side() -> None:
    watch = MemoryWatch(
        plan(shard(MAC, peak_bytes=94 * MIB, budget_bytes=500 * MIB)),
        lambda: sample(20 * MIB, 90 * MIB, 60 * MIB),
    )
    watch.while_loading({MAC: ready(40 * MIB, 45 * MIB)})
    watch.when_ready({MAC: ready(70 * MIB, 75 * MIB)})
    lines = {line.split()[0]: line for line in shown(*watch.record()).splitlines() if line.strip()}
    mac = ["100.0 MiB", "500.0 MiB", "40.0 MiB / 45.0 MiB", "70.0 MiB / 75.0 MiB", "-", "75%"]
    assert [part.strip() for part in lines["mac"].split("  ") if part.strip()][1:] == mac
    assert "20.0 MiB / 90.0 MiB + 60.0 MiB" in lines[LLAMA_SERVER]
    assert lines[LLAMA_SERVER].rstrip().endswith("20%")


def test_no_share_is_shown_of_what_cannot_be_compared() -> None:
    for memory in (
        ProcessMemory(
            process="a", predicted_bytes=8, budget_bytes=9, has_gpu=True, measured_bytes=4
        ),
        ProcessMemory(process="a", predicted_bytes=0, budget_bytes=0, measured_bytes=4),
        ProcessMemory(process="a", predicted_bytes=8, budget_bytes=9),
    ):
        assert shown(memory).splitlines()[-1].rstrip().endswith("-")


def test_a_record_from_before_there_was_any_memory_is_an_empty_table() -> None:
    old = LaunchRecord.model_validate(
        {
            "id": 1,
            "deployment": "d",
            "started_at": "",
            "plan": plan(),
            "main_host": "h",
            "engine": {"path": "", "version": "", "build": "", "rpc_protocol": ""},
        }
    )
    assert old.memory == ()
    assert "of prediction" in shown(*old.memory)
