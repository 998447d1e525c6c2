"""What the script for phones brought goes away again, and nothing else does."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, eventually
from lab.phone import (
    SHELL,
    Phone,
    assert_one_error,
    fresh_phone,
    install_script,
    invitation,
    ready_phone,
)

from agents.contract import EngineFacts
from supervisor import files

SCRIPT = files.termux() / "uninstall.sh"


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    return fresh_phone(tmp_path)


def installed(phone: Phone) -> None:
    """What an installation leaves, without one."""
    (phone.data / "agent" / "engines" / "b1").mkdir(parents=True)
    (phone.data / "agent" / "chunks").mkdir()
    for name in ("agent.pyz", "join-code", "pin", "doctor.sh", "agent/agent.lock"):
        (phone.data / name).write_text("x")
    (phone.data / "uninstall.sh").write_bytes(SCRIPT.read_bytes())
    phone.boot_script.parent.mkdir(parents=True)
    phone.boot_script.write_text("x")
    (phone.home / "notes").write_text("mine")
    phone.command("python", f'exec {sys.executable} "$@"')


async def test_the_agent_ends_and_everything_of_it_goes(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    program = phone.start(
        cluster, install_script(), invited.code, invited.pin, LLAMA_CPP_BIN=engine.folder
    )
    await ready_phone(cluster, program)
    # Nobody reaps a process of the test itself while the script waits for its end.
    reaping = asyncio.create_task(asyncio.to_thread(program.process.wait))
    done = await phone.run(phone.data / "uninstall.sh")
    assert done.returncode == 0, done.stderr
    assert f"stopped the agent (process {program.process.pid})" in done.stdout
    assert await reaping == 0, "it was asked to end, not killed"
    assert phone.snapshot() == {}
    assert not phone.data.exists()
    assert "termux-wake-unlock " in phone.calls()
    assert "pkg uninstall python-psutil termux-api" in done.stdout
    assert "supervisor remove NAME" in done.stdout


async def test_the_engine_may_stay(phone: Phone) -> None:
    installed(phone)
    done = await phone.run(phone.data / "uninstall.sh", "--keep-engine")
    assert done.returncode == 0, done.stderr
    assert [str(path.relative_to(phone.data)) for path in sorted(phone.data.rglob("*"))] == [
        "agent",
        "agent/engines",
        "agent/engines/b1",
    ]
    assert f"left: the engine, in {phone.data}/agent/engines" in done.stdout
    assert set(phone.snapshot()) == {"notes"}


async def test_a_second_removal_finds_nothing_and_says_the_same(phone: Phone) -> None:
    installed(phone)
    first = await phone.run(SCRIPT)
    second = await phone.run(SCRIPT)
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert first.stdout == second.stdout
    assert set(phone.snapshot()) == {"notes"}


@pytest.mark.parametrize("record", ["{pid} 1", "{pid}", "999999999 12", "", "nonsense"])
async def test_a_process_that_is_not_the_recorded_one_lives_on(phone: Phone, record: str) -> None:
    """The number of the agent may be somebody else's after a restart of the phone."""
    installed(phone)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        (phone.data / "agent.pid").write_text(record.format(pid=stranger.pid))
        done = await phone.run(SCRIPT)
        assert done.returncode == 0, done.stderr
        assert "stopped" not in done.stdout
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_an_agent_that_does_not_end_is_killed(phone: Phone) -> None:
    installed(phone)
    text = SCRIPT.read_text().replace("most_s=20", "most_s=1")
    (phone.data / "uninstall.sh").write_text(text)
    stubborn = subprocess.Popen([SHELL, "-c", "trap '' TERM; while :; do sleep 0.2; done"])
    try:
        stat = Path(f"/proc/{stubborn.pid}/stat").read_text()
        mark = stat.rpartition(")")[2].split()[19]
        (phone.data / "agent.pid").write_text(f"{stubborn.pid} {mark}\n")
        reaping = asyncio.create_task(asyncio.to_thread(stubborn.wait))
        done = await phone.run(phone.data / "uninstall.sh")
        assert done.returncode == 0, done.stderr
        assert "did not end within 1 s and was killed" in done.stdout
        assert await reaping == -signal.SIGKILL
    finally:
        stubborn.kill()


@pytest.mark.parametrize("way", ["flock", "python"])
@pytest.mark.parametrize(
    ("lock", "words"),
    [
        ("agent/agent.lock", "an agent that was not started by"),
        ("supervisor/supervisor.lock", "this phone is a main host that runs"),
    ],
)
async def test_what_somebody_else_started_is_not_taken_from_under_it(
    phone: Phone, lock: str, words: str, way: str
) -> None:
    installed(phone)
    (phone.data / "supervisor").mkdir()
    if way == "flock":
        (phone.prefix / "bin/flock").symlink_to("/usr/bin/flock")
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX)"
    hold += "; print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, phone.data / lock], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        before = phone.snapshot()
        assert_one_error(await phone.run(SCRIPT), words, "Ctrl-C")
        assert phone.snapshot() == before
        assert phone.boot_script.exists()
    finally:
        holder.kill()
        holder.communicate()


async def test_a_main_hosts_keys_and_records_stay(phone: Phone) -> None:
    installed(phone)
    (phone.data / "program" / "bin").mkdir(parents=True)
    (phone.data / "supervisor" / "authority").mkdir(parents=True)
    (phone.data / "supervisor" / "authority" / "authority.key").write_text("secret")
    phone.command("supervisor")
    done = await phone.run(SCRIPT)
    assert done.returncode == 0, done.stderr
    assert not (phone.data / "program").exists()
    assert not (phone.prefix / "bin/supervisor").exists()
    assert (phone.data / "supervisor/authority/authority.key").read_text() == "secret"
    assert f"left: keys and records of this main host, in {phone.data}/supervisor" in done.stdout


async def test_wrong_usage_removes_nothing(phone: Phone) -> None:
    installed(phone)
    before = phone.snapshot()
    done = await phone.run(SCRIPT, "--all")
    assert done.returncode == 2
    assert done.stderr == "usage: sh uninstall.sh [--keep-engine]\n"
    assert phone.snapshot() == before


async def test_a_second_start_leaves_the_record_of_the_agent_that_runs(phone: Phone) -> None:
    installed(phone)
    record = phone.data / "agent.pid"
    begun = []
    try:
        for _ in range(2):
            phone.command("python", "exec sleep 600")
            agent = subprocess.Popen(
                [SHELL, files.termux() / "boot" / "agent"],
                env=phone.environment,
                stdout=subprocess.DEVNULL,
            )
            begun.append(agent)

            async def is_replaced(pid: int = agent.pid) -> bool:
                return b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()

            await eventually(is_replaced, within_s=20, what="the shell became the agent")
            assert record.read_text().split()[0] == str(begun[0].pid)
        begun[0].kill()
        begun[0].wait()
        phone.command("python")
        await phone.run(files.termux() / "boot" / "agent")
        assert record.read_text().split()[0] not in [str(each.pid) for each in begun]
    finally:
        for each in begun:
            each.kill()
            each.wait()
