"""Services of Linux from the command line, over recorded systemctl and loginctl."""

import json
import os
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import Cluster, Program
from lab.service_host import CODE, Host

from agents import service, service_report
from agents.contract import EngineFacts
from agents.errors import ServiceRefused
from supervisor.adapters import agent_archive

OTHER = CODE.replace("secret", "another")

SYSTEMCTL = r"""
case "$*" in
*show-environment*) [ ! -e "$STATE/no-bus" ] || { echo "Failed to connect to bus"; exit 1; } ;;
*enable*--now*) [ ! -e "$STATE/refuses" ] || { echo "Unit is masked."; exit 1; }
    case "$*" in
    *disable*) rm -f "$STATE/enabled" "$STATE/active" ;;
    *) : >"$STATE/enabled"; : >"$STATE/active" ;;
    esac ;;
*show*)
    if [ -e "$STATE/enabled" ]; then echo UnitFileState=enabled; else echo UnitFileState=; fi
    if [ -e "$STATE/active" ]; then echo ActiveState=active; else echo ActiveState=inactive; fi
    echo MainPID=4711; echo NRestarts=3; echo ExecMainCode=1; echo ExecMainStatus=1
    echo "ExecMainStartTimestamp=Sat 2026-11-21 16:52:54 UTC"; echo Result=success ;;
esac
"""
LOGINCTL = r"""
case "$*" in
show-user*) if [ -e "$STATE/linger" ]; then echo yes; else echo no; fi ;;
enable-linger*) [ ! -e "$STATE/no-linger" ] || { echo "Access denied"; exit 1; }
    : >"$STATE/linger" ;;
esac
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.command("systemctl", SYSTEMCTL)
    made.command("loginctl", LOGINCTL)
    return made


CHANGES = ("daemon-reload", "enable", "restart", "disable")


def changes(calls: list[str]) -> list[str]:
    """Calls that change something."""
    return [call for call in calls if any(word in call.split() for word in CHANGES)]


# -- Linux -----------------------------------------------------------------------------------------


def test_the_agent_is_installed_and_a_second_time_changes_nothing(host: Host) -> None:
    done = host.install(CODE, "--name", "Büro PC", "--threads", "4", "--models", "models")
    assert done.returncode == 0, done.stdout + done.stderr
    text = host.unit.read_text()
    assert f"--models={host.folder}/models" in text, "absolute"
    assert f'"--data={host.data}"' in text.replace("%%", "%")
    assert '"--name=Büro PC"' in text
    assert "--threads=4" in text
    calls = host.calls()
    assert changes(calls) == [
        "systemctl --user daemon-reload",
        "systemctl --user enable --now llama-rpc-agent.service",
    ]
    assert any(call.startswith("loginctl enable-linger ") for call in calls)
    before = host.unit.stat().st_mtime_ns
    again = host.install(CODE, "--name", "Büro PC", "--threads", "4", "--models", "models")
    assert again.returncode == 0
    assert "nothing to change" in again.stdout
    assert changes(host.calls()) == []
    assert host.unit.stat().st_mtime_ns == before


def test_another_option_restarts_it_and_so_does_another_code(host: Host) -> None:
    host.install()
    host.calls()
    assert host.install(CODE, "--threads", "2").returncode == 0
    assert changes(host.calls()) == [
        "systemctl --user daemon-reload",
        "systemctl --user restart llama-rpc-agent.service",
    ]
    assert host.install(OTHER, "--threads", "2").returncode == 0
    assert changes(host.calls()) == ["systemctl --user restart llama-rpc-agent.service"]
    assert (host.data / "join-code").read_text() == OTHER
    assert host.install("-", "--threads", "2").returncode == 0, "the code that is kept"
    assert changes(host.calls()) == []


def test_the_join_code_is_in_one_private_file_alone(host: Host) -> None:
    host.install()
    code_file = host.data / "join-code"
    assert code_file.read_text() == CODE
    assert stat.S_IMODE(code_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(host.data.stat().st_mode) == 0o700
    others = [p for p in host.home.rglob("*") if p.is_file() and p != code_file]
    assert host.unit in others
    for path in others:
        assert b"secret" not in path.read_bytes(), path
    assert not any("secret" in call for call in host.calls())


def test_a_code_that_cannot_be_read_installs_nothing(host: Host) -> None:
    done = host.install("not-a-code")
    assert done.returncode == 1
    assert "join code" in done.stderr
    assert not host.unit.exists()


def test_refused_linger_is_told_and_the_rest_is_done(host: Host) -> None:
    host.mark("no-linger")
    done = host.install()
    assert done.returncode == 0
    assert "sudo loginctl enable-linger" in done.stdout
    assert (host.state / "active").exists()
    assert "sudo loginctl enable-linger" in host.run("agents", "status").stdout


def test_what_systemd_refuses_is_told_in_its_words(host: Host) -> None:
    host.mark("refuses")
    done = host.install()
    assert done.returncode == 1
    assert "Unit is masked." in done.stderr


def test_status_says_it_for_people_and_for_programs(host: Host) -> None:
    nothing = host.run("agents", "status")
    assert nothing.returncode == 1
    assert "not installed" in nothing.stdout
    host.install()
    shown = host.run("agents", "status")
    assert shown.returncode == 0
    for words in ("yes since 2026-11-21T16:52:54Z (pid 4711)", "status 1", "journalctl --user -u"):
        assert words in shown.stdout
    told = json.loads(host.run("agents", "status", "--json").stdout)
    assert told["is_installed"] is True
    assert told["is_running"] is True
    assert told["is_enabled"] is True
    assert told["restarts"] == 3
    assert told["file"] == str(host.unit)


def test_uninstall_removes_the_unit_and_the_code_but_no_data(host: Host) -> None:
    host.install()
    (host.data / "identity").mkdir()
    host.calls()
    done = host.run("agents", "uninstall", "--data", str(host.data))
    assert done.returncode == 0
    assert changes(host.calls()) == [
        "systemctl --user disable --now llama-rpc-agent.service",
        "systemctl --user daemon-reload",
    ]
    assert not host.unit.exists()
    assert not (host.data / "join-code").exists()
    assert (host.data / "identity").exists()
    again = host.run("agents", "uninstall", "--data", str(host.data))
    assert again.returncode == 0
    assert "nothing to change" in again.stdout


def test_a_host_without_systemd_is_told_what_to_do(host: Host) -> None:
    host.mark("no-bus")
    done = host.install()
    assert done.returncode == 1
    for words in ("Failed to connect to bus", "container", "@reboot", "join -"):
        assert words in done.stderr
    assert not host.unit.exists()
    assert "secret" not in done.stderr


def test_the_supervisor_has_a_unit_of_its_own(host: Host) -> None:
    words = ("--data", "sup", "--port", "8200", "--no-agent")
    done = host.run("supervisor", "install", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    unit = host.unit.with_name("llama-rpc-supervisor.service")
    text = unit.read_text()
    assert f"ExecStart=:{sys.executable} -m supervisor up " in text
    assert f"--data={host.folder}/sup" in text
    assert text.splitlines()[text.splitlines().index("Type=exec") + 1].endswith("--no-agent")
    assert "TimeoutStopSec=90" in text, "drain_s and what comes after it"
    assert "hf_secret" not in text
    assert host.run("supervisor", "status").returncode == 0
    assert "nothing to change" in host.run("supervisor", "install", *words).stdout
    assert host.run("supervisor", "uninstall").returncode == 0
    assert not unit.exists()


async def test_what_the_unit_says_joins_by_itself_from_the_archive_alone(
    host: Host, cluster: Cluster, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    archive = agent_archive.build(host.home)
    words = ["--data", str(host.data), "--name", "pc", "--engine", engine.folder]
    done = subprocess.run(
        [sys.executable, "-I", str(archive), "service", "install", await cluster.code(), *words],
        env=host.environ,
        cwd=host.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(line.split("=", 1) for line in host.unit.read_text().splitlines() if "=" in line)
    argv = [word.replace("%%", "%") for word in shlex.split(found["ExecStart"].removeprefix(":"))]
    assert argv[1] == str(archive)
    mark = {"TMPDIR_MARK_OF_TESTS": os.environ["TMPDIR_MARK_OF_TESTS"]}
    log = host.folder / "agent.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            argv,
            cwd=found["WorkingDirectory"].replace("%%", "%"),
            env={"HOME": str(host.home), "PATH": "/usr/bin:/bin", **mark},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    cluster.programs.append(Program("pc", process, host.data, log))
    await cluster.device_state("pc", "ready")
    process.terminate()
    assert process.wait(int(found["TimeoutStopSec"])) == 0, "no failure: it is not started again"


# -- elsewhere -------------------------------------------------------------------------------------


def test_phones_are_sent_to_termux_boot() -> None:
    with pytest.raises(ServiceRefused, match="Termux:Boot"):
        service.manager("agent join -", platform="android")


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = f'sleep 60 & echo $! >"{mark}"; wait'
    ran = service_report.run(["/bin/sh", "-c", script], dict(os.environ), 1)
    assert ran.status is None
    assert "no answer for 1 s" in ran.text
    pid = int(mark.read_text())

    def is_gone() -> bool:
        try:
            return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) == "Z"
        except OSError:
            return True

    deadline_s = time.monotonic() + 20
    while not is_gone():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
