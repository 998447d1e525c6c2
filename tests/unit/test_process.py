"""Children: started so that they cannot outlive us unseen, and ended for certain."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agents import process
from agents.errors import EngineMissing, EngineUnusable, FolderNotWritable
from agents.logfile import KEPT_LOGS
from agents.process import Child, ChildLedger, ChildRecord, spawn, start_mark

SLEEP = ["/bin/sleep", "60"]
ENVIRONMENT = {"PATH": os.environ["PATH"]}
ROOT = Path(__file__).parents[2]


def program(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def started(argv: list[str], folder: Path, name: str = "child-1.log") -> Child:
    return await spawn("child", argv, log_path=folder / "logs" / name, environment=ENVIRONMENT)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(check: Callable[[], object], what: str, within_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s} s"
        time.sleep(0.01)


async def said(child: Child, text: str) -> None:
    """Wait until a child wrote ``text``."""
    async with asyncio.timeout(10):
        while text not in child.log_path.read_text():
            await asyncio.sleep(0.01)


async def test_a_child_writes_to_its_log_and_is_reaped(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    child = await started(program(code), tmp_path)
    async with asyncio.timeout(10):
        assert await child.wait() == child.exit_status == 3
    assert sorted(child.log_path.read_text().split()) == ["err", "out"]
    assert process.describe_exit(child.exit_status) == "ended with status 3"
    assert await child.stop(grace_s=1) == 3  # ending what has ended is no error


async def test_a_child_gets_its_own_environment_and_no_input(tmp_path: Path) -> None:
    code = "import os, sys; print(dict(os.environ).get('HOME'), repr(sys.stdin.read()))"
    child = await started(program(code), tmp_path)
    await child.wait()
    assert child.log_path.read_text().strip() == "None ''"


async def test_a_child_is_the_program_itself_in_a_group_of_its_own(tmp_path: Path) -> None:
    code = "import os; print(os.getpid(), os.getpgrp(), os.getppid())"
    child = await started(program(code), tmp_path)
    await child.wait()
    assert child.log_path.read_text().split() == [str(child.pid)] * 2 + [str(os.getpid())]


async def test_a_child_ends_at_the_first_signal(tmp_path: Path) -> None:
    child = await started(SLEEP, tmp_path)
    assert child.exit_status is None
    assert await child.stop(grace_s=10) == -signal.SIGTERM
    assert process.describe_exit(child.exit_status) == "was killed by SIGTERM"


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True); time.sleep(60)"
    )
    child = await started(program(code), tmp_path)
    await said(child, "deaf")
    assert await child.stop(grace_s=0.05) == -signal.SIGKILL
    assert not is_alive(child.pid)


async def test_a_child_is_killed_when_the_one_who_stops_it_is_cancelled(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('deaf', flush=True); time.sleep(60)"
    )
    child = await started(program(code), tmp_path)
    await said(child, "deaf")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await child.stop(grace_s=60)
    assert await child.wait() == -signal.SIGKILL


async def test_grandchildren_end_with_a_child(tmp_path: Path) -> None:
    code = (
        "import subprocess; p = subprocess.Popen(['sleep', '60'])\n"
        "print(p.pid, flush=True); p.wait()"
    )
    child = await started(program(code), tmp_path)
    await said(child, "\n")
    grandchild = int(child.log_path.read_text())
    await child.stop(grace_s=10)
    wait_until(lambda: not is_alive(grandchild), "the grandchild ends")


@pytest.mark.parametrize("platform", ["linux", "darwin"])
async def test_sigpipe_is_ignored_in_a_child(
    tmp_path: Path, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)  # elsewhere it is started without the guard
    child = await started(["/bin/cat", "/proc/self/status"], tmp_path)
    await child.wait()
    [mask] = [x for x in child.log_path.read_text().splitlines() if x.startswith("SigIgn")]
    assert int(mask.split()[1], 16) & 1 << (signal.SIGPIPE - 1)


async def test_a_log_is_appended_to_and_old_ones_are_thrown_away(tmp_path: Path) -> None:
    for number in range(KEPT_LOGS + 5):
        log = tmp_path / "logs" / f"child-{number}.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("old\n")
        os.utime(log, (number, number))
    (tmp_path / "logs" / "other-1.log").write_text("")
    await (await started(["/bin/echo", "new"], tmp_path, "child-24.log")).wait()
    assert (tmp_path / "logs" / "child-24.log").read_text() == "old\nnew\n"
    assert len(list((tmp_path / "logs").glob("child-*.log"))) == KEPT_LOGS
    assert not (tmp_path / "logs" / "child-4.log").exists()
    assert (tmp_path / "logs" / "other-1.log").exists()


async def test_what_cannot_be_started_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="/nowhere/llama-server does not exist"):
        await started(["/nowhere/llama-server"], tmp_path)
    plain = tmp_path / "plain"
    plain.write_text("")
    with pytest.raises(EngineUnusable, match=r"plain is not executable; run chmod \+x"):
        await started([str(plain)], tmp_path)
    with pytest.raises(FolderNotWritable, match="cannot write the log"):
        await started(SLEEP, plain)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "ended with status 0"),
        (-9, "was killed by SIGKILL"),
        (-6, "was killed by SIGABRT"),
        (-99, "was killed by signal 99"),
        (None, "ended with status None"),
    ],
)
def test_an_end_is_described(status: int | None, text: str) -> None:
    assert process.describe_exit(status) == text


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux only")
def test_a_child_does_not_survive_kill_9_of_its_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, pathlib\n"
        "from agents.process import spawn\n"
        "async def main():\n"
        "    child = await spawn('child', ['/bin/sleep', '60'], environment={},\n"
        "        log_path=pathlib.Path(sys.argv[1]) / 'child-1.log')\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([*program(code), str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "sleep runs")
    assert is_alive(pid)
    parent.kill()
    parent.wait(10)
    wait_until(lambda: not is_alive(pid), "the child ends")


# -- the ledger --------------------------------------------------------------------------------


def left_over() -> subprocess.Popen[bytes]:
    """A process in a group of its own, as a killed parent would leave one."""
    return subprocess.Popen(SLEEP, process_group=0)


def write_ledger(path: Path, *records: ChildRecord) -> None:
    fields = ("name", "pid", "start_mark", "argv")
    path.write_text(json.dumps([{f: getattr(r, f) for f in fields} for r in records]))


def test_a_left_over_is_killed_and_a_stranger_with_its_pid_is_spared(tmp_path: Path) -> None:
    ours, stranger, unknown = left_over(), left_over(), left_over()
    path = tmp_path / "children.json"
    record = ChildRecord("child", ours.pid, start_mark(ours.pid), SLEEP)
    write_ledger(
        path,
        record,
        ChildRecord("child", stranger.pid, str(int(start_mark(stranger.pid)) - 1), SLEEP),
        ChildRecord("child", unknown.pid, "", SLEEP),
        ChildRecord("child", 2**22 + 1, "1", SLEEP),  # above the largest pid: gone
        ChildRecord("child", 2**22 + 1, "", SLEEP),
    )
    try:
        assert ChildLedger(path).sweep() == [record]
        assert ours.wait(10) == -signal.SIGKILL
        assert stranger.poll() is None
        assert unknown.poll() is None
        assert ChildLedger(path).sweep() == []
    finally:
        for child in (ours, stranger, unknown):
            child.kill()
            child.wait()


async def test_the_ledger_remembers_who_runs_and_forgets_who_was_reaped(tmp_path: Path) -> None:
    ledger = ChildLedger(tmp_path / "children.json")
    first = await started(SLEEP, tmp_path)
    second = await started(SLEEP, tmp_path)
    ledger.add(second)
    await second.stop(grace_s=5)
    ledger.add(first)
    [record] = json.loads((tmp_path / "children.json").read_text())
    assert (record["pid"], record["argv"]) == (first.pid, SLEEP)
    assert record["start_mark"] == start_mark(first.pid) != ""
    assert [r.pid for r in ChildLedger(tmp_path / "children.json").sweep()] == [first.pid]
    assert await first.wait() == -signal.SIGKILL


@pytest.mark.parametrize("text", ["", "not JSON", "{}", "5", "null", '[{"pid": 1}]', '["x"]'])
def test_a_ledger_that_cannot_be_read_is_empty(tmp_path: Path, text: str) -> None:
    path = tmp_path / "children.json"
    path.write_text(text)
    assert ChildLedger(path).sweep() == []


async def test_a_ledger_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    child = await started(SLEEP, tmp_path)
    with pytest.raises(FolderNotWritable, match=r"cannot write .*children\.json"):
        ChildLedger(tmp_path / "missing" / "children.json").add(child)
    await child.stop(grace_s=5)
