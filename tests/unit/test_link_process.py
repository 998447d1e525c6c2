"""Link processes: one ready ahead of need, and none left, whenever somebody loses interest."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from cluster import eventually, link_pids

from agents.errors import FolderNotWritable, LinkLost
from supervisor.adapters.link_process import LinkProcesses
from supervisor.errors import LinkProcessEnded
from supervisor.link.job import LinkJob, PlannedTensor, WorkerJob

JOB = LinkJob(
    launch=7,
    main_host="main",
    silence_s=5.0,
    connect_s=5.0,
    window_bytes=1 << 24,
    certificate="",
    key="",
    authority="",
    folder="",
)


@pytest.fixture
async def processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LinkProcesses]:
    """Nothing of them may be left afterwards: no process, no folder of a socket."""
    sockets = Path(tempfile.mkdtemp(prefix="s-"))  # tmp_path is too long for a socket's name
    monkeypatch.setattr(tempfile, "tempdir", str(sockets))
    made = LinkProcesses(tmp_path / "data")
    (tmp_path / "data").mkdir()
    yield made
    await made.close()
    assert not link_pids()
    sockets.rmdir()  # fails if anything is left


async def is_one() -> list[int]:
    """The only link process there is, once it is there."""
    found: list[int] = await eventually(_pids, within_s=10, what="a link process")
    return found


async def _pids() -> list[int]:
    return link_pids()


async def test_the_one_that_was_ready_is_taken_and_the_next_comes_when_it_ends(
    processes: LinkProcesses,
) -> None:
    processes.prepare()
    spare = await is_one()
    taken = await processes.start(JOB)
    assert [taken.pid] == spare
    await taken.stop()
    assert await is_one() != spare


async def test_two_launches_at_once_have_a_process_each(processes: LinkProcesses) -> None:
    one, two = await asyncio.gather(processes.start(JOB), processes.start(JOB))
    assert sorted(link_pids()) == sorted({one.pid, two.pid})
    await processes.close()
    await asyncio.gather(one.stop(), two.stop())


async def test_a_job_of_many_devices_and_tensors_is_heard(processes: LinkProcesses) -> None:
    """Ten devices that get a mixture of experts from a long path: some 5 MB of names."""
    tensors = [PlannedTensor("/x" * 100, 0, 1 << 20)] * 2000
    workers = [
        WorkerJob(f"id{n}", f"device{n}", "127.0.0.1", 9, "ab", tensors=tensors) for n in range(10)
    ]
    taken = await processes.start(replace(JOB, workers=workers))
    try:
        with pytest.raises(LinkLost, match="the links cannot be made"):  # there is no authority
            await taken.ready(len(workers), 20.0)
    finally:
        await taken.stop()


async def test_one_that_died_while_it_waited_is_replaced(processes: LinkProcesses) -> None:
    first = await processes.start(JOB)
    await first.stop()  # which prepares the next
    (spare,) = await is_one()
    await asyncio.sleep(0.5)
    os.kill(spare, signal.SIGKILL)
    await asyncio.sleep(0.1)
    taken = await processes.start(JOB)
    assert taken.pid != spare
    assert taken.is_alive
    await processes.close()
    await taken.stop()


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.05, 0.2, 1.0])
async def test_close_ends_a_spare_one_whether_it_starts_or_waits(
    processes: LinkProcesses, after_s: float
) -> None:
    processes.prepare()
    await asyncio.sleep(after_s)
    await processes.close()
    assert not link_pids()


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.03])
async def test_a_launch_that_is_given_up_leaves_the_spare_one_for_the_next(
    processes: LinkProcesses, after_s: float
) -> None:
    launch = asyncio.create_task(processes.start(JOB))
    await asyncio.sleep(after_s)
    launch.cancel()
    await asyncio.gather(launch, return_exceptions=True)
    assert launch.cancelled()
    taken = await processes.start(JOB)
    assert link_pids() == [taken.pid]
    await processes.close()
    await taken.stop()


UNTIDY = """
import asyncio, pathlib, sys
from supervisor.adapters.link_process import LinkProcesses

async def main():
    LinkProcesses(pathlib.Path(sys.argv[1])).prepare()
    await asyncio.sleep(float(sys.argv[2]))

asyncio.run(main())
"""


@pytest.mark.parametrize("after_s", ["0", "0.03", "0.2", "1"])
async def test_a_supervisor_that_ends_without_close_leaves_none(
    processes: LinkProcesses, tmp_path: Path, after_s: str
) -> None:
    """Cancelled from outside, or by a bug: a spare one that nobody listens to ends by itself."""
    other = tmp_path / "other"
    other.mkdir()
    environment = os.environ | {"TMPDIR": str(other)}
    argv = [sys.executable, "-c", UNTIDY, str(other), after_s]
    await asyncio.to_thread(subprocess.run, argv, env=environment, capture_output=True, timeout=30)

    async def is_gone() -> bool:
        return not link_pids()

    await eventually(is_gone, within_s=5, what="the end of a spare one whose supervisor is gone")


async def test_a_launch_that_waits_for_its_process_hears_that_the_supervisor_ends(
    processes: LinkProcesses,
) -> None:
    launch = asyncio.create_task(processes.start(JOB))
    await asyncio.sleep(0.02)
    await processes.close()
    with pytest.raises(LinkLost, match="the supervisor ends"):
        await launch
    with pytest.raises(LinkLost, match="the supervisor ends"):
        await processes.start(JOB)


async def test_a_stop_that_is_cut_short_kills(processes: LinkProcesses) -> None:
    taken = await processes.start(JOB)
    await processes.close()
    os.kill(taken.pid, signal.SIGSTOP)  # so that it does not obey at once
    stopping = asyncio.create_task(taken.stop())
    await asyncio.sleep(0.05)
    stopping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stopping

    async def is_gone() -> bool:
        return not link_pids()

    await eventually(is_gone, within_s=2, what="the end of a stopped process")


async def test_one_that_could_not_start_ahead_is_tried_again(
    processes: LinkProcesses, tmp_path: Path
) -> None:
    logs = tmp_path / "data" / "logs"
    logs.write_text("in the way")
    processes.prepare()
    with pytest.raises(FolderNotWritable, match="logs"):
        await processes.start(JOB)
    logs.unlink()
    taken = await processes.start(JOB)
    await processes.close()
    await taken.stop()


async def test_what_a_killed_supervisor_left_is_ended_by_the_next(
    processes: LinkProcesses, tmp_path: Path
) -> None:
    left = await processes.start(JOB)
    LinkProcesses(tmp_path / "data").sweep()

    async def is_gone() -> bool:
        return left.pid not in link_pids()

    await eventually(is_gone, within_s=5, what="the orphan's end")
    with pytest.raises(LinkProcessEnded, match="link process"):
        await left.ready(1, 5)
    await processes.close()
    await left.stop()
