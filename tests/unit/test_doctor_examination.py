"""Checks that fail, hang or are missing are findings, never the end; all of them have one limit."""

import asyncio
import os
import stat
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agents.contract import DeviceFacts, EngineFacts, Finding, Verdict
from agents.doctor import reading
from agents.doctor.command import summary, table, worst_first
from agents.doctor.examination import Check, Doctor, examine
from agents.doctor.findings import TITLES, blocks, ok, unknown, warning
from agents.doctor.subject import Subject, known_endpoints, remember_main_host
from agents.join import JoinCode

FINGERPRINT = "x" * 43


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject(tmp_path / "data", "linux", {"PATH": os.environ["PATH"]}, tmp_path)


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def check(find: Callable[[Subject], Awaitable[list[Finding]]], *names: str) -> Check:
    return Check(names, find)


async def well(_: Subject) -> list[Finding]:
    return [ok("disk", "9 GiB free")]


async def raises(_: Subject) -> list[Finding]:
    raise RuntimeError("no such thing")


async def hangs(_: Subject) -> list[Finding]:
    await asyncio.Event().wait()
    return []


async def blocks_a_thread(_: Subject) -> list[Finding]:
    await reading.in_thread(lambda: time.sleep(3600))
    return []


# -- reading -----------------------------------------------------------------------------------


async def test_a_command_tells_what_it_said_and_its_status(tmp_path: Path) -> None:
    said = await reading.command(str(program(tmp_path, "p", "echo out; echo err >&2; exit 3")))
    assert (said.text, said.status, said.problem) == ("out\nerr\n", 3, "")


async def test_a_missing_command_is_told_from_one_that_cannot_be_run(tmp_path: Path) -> None:
    missing = await reading.command(str(tmp_path / "nothing"))
    assert missing.is_missing
    plain = tmp_path / "plain"
    plain.write_text("text")
    refused = await reading.command(str(plain))
    assert "cannot be run" in refused.problem
    assert not refused.is_missing


async def test_a_command_that_hangs_ends_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    hung = program(tmp_path, "p", f"sleep 1000 & echo $! > {note}; sleep 1000")
    said = await reading.command(str(hung), limit_s=1.0)
    assert said.status is None
    assert "did not answer within 1 s" in said.problem
    assert not await is_alive(int(note.read_text()))


async def test_a_command_whose_child_keeps_its_output_open_ends_as_well(tmp_path: Path) -> None:
    said = await reading.command(str(program(tmp_path, "p", "sleep 1000 & exit 0")), limit_s=1.0)
    assert said.problem


async def test_of_a_command_without_end_no_more_than_the_beginning_is_kept(tmp_path: Path) -> None:
    said = await reading.command(str(program(tmp_path, "p", "yes | head -c 5000000")), limit_s=30)
    assert said.status == 0
    assert len(said.text) == 1 << 20


async def is_alive(pid: int) -> bool:
    """Whether it still runs a moment after it was killed."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        await asyncio.sleep(0.05)
    return True


# -- examining ---------------------------------------------------------------------------------


async def test_a_check_that_raises_or_hangs_is_unknown_and_the_others_are_told(
    subject: Subject,
) -> None:
    checks = [
        check(hangs, "memory", "swap"),
        check(raises, "engine"),
        check(blocks_a_thread, "firewall"),
        check(well, "disk"),
    ]
    found = await examine(subject, checks, deadline_s=0.5)
    assert [(f.check, f.verdict) for f in found] == [
        ("engine", Verdict.UNKNOWN),
        ("firewall", Verdict.UNKNOWN),
        ("memory", Verdict.UNKNOWN),
        ("swap", Verdict.UNKNOWN),
        ("disk", Verdict.OK),
    ]
    assert "no such thing" in found[0].found
    assert "not done" in found[1].found


async def test_a_platform_gets_its_own_checks_only(subject: Subject) -> None:
    on_phones = Check(("wake_lock",), raises, frozenset({"android"}))
    of_agents = Check(("agent",), raises, for_main_host=False)
    host = replace(subject, is_main_host=True)
    assert await examine(host, [on_phones, of_agents, check(well, "disk")]) == [
        ok("disk", "9 GiB free")
    ]


@pytest.mark.parametrize("platform", ["android", "linux", "macos"])
async def test_every_check_finds_something_on_every_platform(
    subject: Subject, platform: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without any of the programs that it would ask: nothing raises, and nothing is made up."""
    empty = tmp_path / "no-programs"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    bare = replace(subject, platform=platform, environ={"PATH": str(empty)}, engine_folder=empty)
    found = await examine(bare)
    assert not [f for f in found if "could not be looked at" in f.found]
    names = [f.check for f in found]
    assert len(names) == len(set(names))
    expected = {
        "android": {"phantom_processes", "wake_lock", "termux_api", "termux_boot"},
        "linux": {"sleep", "linger", "service_memory"},
        "macos": {"sleep", "local_network", "gpu_memory", "launch_item"},
    }[platform]
    assert expected <= set(names)
    assert {f.check: f.verdict for f in found}["engine"] is Verdict.BLOCKS


async def test_hanging_programs_on_the_path_are_named(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("termux-battery-status", "dumpsys", "getprop"):
        program(folder, name, "/bin/sleep 1000")
    program(folder, "termux-wake-lock", "exit 0")
    monkeypatch.setenv("PATH", str(folder))
    phone = replace(
        subject,
        platform="android",
        environ={"PATH": str(folder)},
        engine=EngineFacts("/x", "setting"),
        engine_is_known=True,
    )
    found = {f.check: f for f in await examine(phone)}
    assert found["termux_api"].verdict is Verdict.WARNING
    assert "within 5 s" in found["termux_api"].found
    assert found["battery"].verdict is Verdict.UNKNOWN
    assert found["wake_lock"].verdict is Verdict.UNKNOWN
    assert found["phantom_processes"].verdict is Verdict.UNKNOWN


async def test_a_known_engine_is_not_run_again(subject: Subject, tmp_path: Path) -> None:
    touched = tmp_path / "was-run"
    server = program(tmp_path, "ggml-rpc-server", f"touch {touched}")
    known = EngineFacts(
        str(tmp_path), "setting", rpc_server=str(server), build="abc1234", rpc_protocol="4.0.1"
    )
    there = replace(subject, engine=known, engine_is_known=True, engine_folder=tmp_path)
    found = {f.check: f for f in await examine(there)}
    assert found["engine"].verdict is Verdict.OK
    assert "abc1234" in found["engine"].found
    assert not touched.exists()
    server.unlink()
    gone = {f.check: f for f in await examine(there)}
    assert gone["engine"].verdict is Verdict.BLOCKS


async def test_a_parked_device_says_why(subject: Subject) -> None:
    facts = DeviceFacts("id", "phone", "linux", parked="battery at 9 %", battery_percent=9.0)
    found = {f.check: f for f in await examine(replace(subject, facts=facts))}
    assert found["battery"].verdict is Verdict.BLOCKS
    assert "battery at 9 %" in found["battery"].found


async def test_two_callers_share_one_examination(subject: Subject) -> None:
    asked = 0

    async def seen() -> Subject:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        return replace(subject, engine_is_known=True)

    doctor = Doctor(seen)
    one, two = await asyncio.gather(doctor.findings(), doctor.findings())
    assert one is two
    assert asked == 1
    leaving = asyncio.create_task(doctor.findings())
    staying = asyncio.create_task(doctor.findings())
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying
    assert asked == 2
    await doctor.close()


# -- where the main host is --------------------------------------------------------------------


def test_the_main_host_is_found_by_what_was_kept(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    assert known_endpoints(folder, {}) == ()
    (tmp_path / "join-code").write_text(f"10.0.0.1:8101/token/{FINGERPRINT}\n")
    assert known_endpoints(folder, {}) == ("10.0.0.1:8101",)
    remember_main_host(folder, JoinCode(("10.0.0.2:8101", "10.0.0.3:8101"), "t", FINGERPRINT))
    assert known_endpoints(folder, {}) == ("10.0.0.2:8101", "10.0.0.3:8101")
    given = {"SUPERVISOR_JOIN_CODE": f"10.0.0.4:8101/token/{FINGERPRINT}"}
    assert known_endpoints(folder, given) == ("10.0.0.4:8101",)


def test_what_is_kept_of_the_main_host_is_no_secret(tmp_path: Path) -> None:
    remember_main_host(tmp_path, JoinCode(("10.0.0.2:8101",), "sesame", FINGERPRINT))
    assert not [f for f in tmp_path.iterdir() if "sesame" in f.read_text()]


# -- telling -----------------------------------------------------------------------------------

FOUND = [
    ok("python", "Python 3.14"),
    warning("sleep", "it sleeps", "keep it awake"),
    unknown("wake_lock", "nobody tells"),
    blocks("engine", "none here", "join again"),
]


def test_what_blocks_comes_first_and_only_what_is_not_well_has_a_remedy() -> None:
    assert [f.check for f in worst_first(FOUND)] == ["engine", "sleep", "wake_lock", "python"]
    lines = table(FOUND, 80).splitlines()
    assert lines[0].startswith("BLOCKS")
    assert lines[1].strip() == "-> join again"
    assert lines[-1] == "1 thing blocks, 1 warning, 1 unknown"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        ((0, 0), "nothing blocks"),
        ((1, 0), "1 thing blocks"),
        ((2, 1), "2 things block, 1 warning"),
        ((0, 2), "2 warnings"),
    ],
)
def test_the_last_line_counts(count: tuple[int, int], text: str) -> None:
    assert summary([FOUND[3]] * count[0] + [FOUND[1]] * count[1] + [FOUND[0]]) == text


def test_titles_fit_their_column() -> None:
    assert max(map(len, TITLES.values())) < 23


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_holder_of_a_port_is_named() -> None:
    from agents.doctor import sockets

    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert f"(pid {os.getpid()})" in await sockets.holder(port)
    assert await sockets.holder(port) == ""


# -- a Mac and a phone, as far as they can be had here -----------------------------------------

PMSET = """\
if [ "$2" = batt ]; then
  echo "Now drawing from 'AC Power'"
  echo " -InternalBattery-0 (id=1)	100%; charged; 0:00 remaining present: true"
else
  echo " sleep                0"
fi"""
SYSCTL = """\
case $2 in
  iogpu.wired_limit_mb) echo 0 ;;
  hw.memsize) echo 17179869184 ;;
  vm.swapusage) echo "total = 1024.00M  used = 12.00M  free = 1012.00M  (encrypted)" ;;
esac"""
MAC = {
    "pmset": PMSET,
    "sysctl": SYSCTL,
    "socketfilterfw": 'echo "Firewall is disabled. (State = 0)"',
    "route": 'echo "   route to: default"; echo "    gateway: 192.168.1.1"',
    "ping": "exit 0",
}
PHONE = {
    "getprop": "case $1 in ro.build.version.sdk) echo 35 ;; *) echo false ;; esac",
    "termux-battery-status": """echo '{"percentage": 71, "plugged": "PLUGGED_AC"}'""",
    "termux-wake-lock": "exit 0",
    "dumpsys": 'echo "Permission Denial: can\'t dump from pid=1"',
}


def recorded(
    folder: Path, programs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    folder.mkdir()
    for name, text in programs.items():
        program(folder, name, text)
    monkeypatch.setenv("PATH", str(folder))
    return {"PATH": str(folder)}


async def test_a_mac_that_is_well(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ = recorded(tmp_path / "programs", MAC, monkeypatch)
    mac = replace(subject, platform="macos", environ=environ, engine_is_known=True)
    found = {f.check: f for f in await examine(mac)}
    for name in ("firewall", "gpu_memory", "battery", "sleep", "lid", "swap", "launch_item"):
        assert found[name].verdict is Verdict.OK, found[name]
    assert "12 MiB of 1.0 GiB" in found["swap"].found


async def test_local_network_privacy_is_told_from_a_lost_route(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def no_route(*_: object, **__: object) -> None:
        raise OSError(65, "No route to host")

    monkeypatch.setattr(asyncio, "open_connection", no_route)
    environ = recorded(tmp_path / "programs", MAC, monkeypatch)
    mac = replace(
        subject,
        platform="macos",
        environ=environ,
        engine_is_known=True,
        endpoints=("192.168.1.10:8101",),
    )
    kept_out = {f.check: f for f in await examine(mac)}
    assert kept_out["local_network"].verdict is Verdict.BLOCKS
    assert "192.168.1.1 answers" in kept_out["local_network"].found
    assert kept_out["main_host"].verdict is Verdict.BLOCKS
    program(tmp_path / "programs", "ping", "exit 2")
    lost = {f.check: f for f in await examine(mac)}
    assert lost["local_network"].verdict is Verdict.WARNING


async def test_a_phone_that_is_well(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environ = recorded(tmp_path / "programs", PHONE, monkeypatch)
    environ |= {"TERMUX_VERSION": "0.118.3", "TERMUX_APK_RELEASE": "F_DROID"}
    script = tmp_path / ".termux" / "boot" / "10-llama-rpc-agent"
    script.parent.mkdir(parents=True)
    program(script.parent, script.name, "exit 0")
    phone = replace(subject, platform="android", environ=environ, engine_is_known=True)
    found = {f.check: f for f in await examine(phone)}
    for name in ("phantom_processes", "battery", "termux_api", "termux_boot", "termux_origin"):
        assert found[name].verdict is Verdict.OK, found[name]
    for name in ("wake_lock", "battery_exemption"):
        assert found[name].verdict is Verdict.UNKNOWN, found[name]
