"""Services of a Mac, over recorded launchctl, sudo and ps."""

import os
import plistlib
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lab.service_host import Host

from agents import launchd, service
from agents.background import Service
from agents.errors import ServiceRefused
from agents.launchd_manager import Launchd
from agents.service_report import Outcome

LAUNCHCTL = r"""
case "$1" in
print) [ -e "$STATE/loaded" ] || exit 113
    printf '%s = {\n\tstate = running\n\tpid = 4711\n\tlast exit code = 1\n}\n' "$2" ;;
bootstrap) if [ -e "$STATE/busy" ]; then
        rm "$STATE/busy"; echo "Bootstrap failed: 5: Input/output error" >&2; exit 5
    fi
    [ -e "$3" ] || exit 5
    : >"$STATE/loaded" ;;
bootout) rm -f "$STATE/loaded"; : >"$STATE/busy"
    echo "Boot-out failed: 36: Operation now in progress" >&2; exit 36 ;;
esac
"""
SUDO = r"""
[ -e "$STATE/may" ] || { echo "sudo: a password is required" >&2; exit 1; }
[ "$1" = -n ] || exit 9
shift
exec "$@"
"""
PS = "echo '  Sat Nov 21 16:52:54 2026'"


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    for name, body in (("launchctl", LAUNCHCTL), ("sudo", SUDO), ("ps", PS)):
        made.command(name, body)
    (tmp_path / "LaunchDaemons").mkdir()
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    return made


def daemons(mac: Host) -> Launchd:
    return Launchd(mac.home, "jörg", mac.folder / "LaunchDaemons")


def agent(mac: Host, *words: str) -> Service:
    return Service("agent", (sys.executable, "-m", "agents", "join", "-", *words), mac.data)


LABEL = "org.llama-rpc-supervisor.agent"


def test_without_root_the_commands_are_printed_and_do_what_is_missing(mac: Host) -> None:
    outcome = daemons(mac).install(agent(mac))
    source, target = mac.data / f"{LABEL}.plist", mac.folder / f"LaunchDaemons/{LABEL}.plist"
    assert len(outcome.commands) == 2
    assert outcome.commands[0].startswith("sudo install -m 644 ")
    assert outcome.commands[1].startswith("sudo launchctl bootstrap system ")
    assert not target.exists()
    assert plistlib.loads(source.read_bytes())["UserName"] == "jörg"
    said: list[str] = []
    assert service.report(outcome, said.append) == 1
    for command in outcome.commands:  # as a person would, in a shell
        typed = command.replace("sudo ", "", 1)
        subprocess.run(typed, shell=True, check=True, timeout=60)
    assert daemons(mac).install(agent(mac)) == Outcome()
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_with_root_it_is_done_at_once_and_a_change_waits_for_the_old_daemon(mac: Host) -> None:
    mac.mark("may")
    assert daemons(mac).install(agent(mac)).done
    assert daemons(mac).install(agent(mac)) == Outcome()
    mac.calls()
    assert daemons(mac).install(agent(mac, "--threads=2")).done
    steps = [call.split()[3] for call in mac.calls() if call.startswith("sudo -n launchctl")]
    assert steps == ["bootout", "bootstrap", "bootstrap"], "the first came too early"
    status = daemons(mac).status("agent")
    assert status.is_running
    assert status.pid == 4711
    assert status.since == "2026-11-21T16:52:54Z"
    assert status.last_exit == "status 1"
    assert status.logs == str(launchd.log_path("agent", mac.home))
    assert stat.S_IMODE(Path(status.logs).parent.stat().st_mode) == 0o700


def test_it_is_removed_again(mac: Host) -> None:
    mac.mark("may")
    assert daemons(mac).uninstall("agent") == Outcome()
    daemons(mac).install(agent(mac))
    assert daemons(mac).uninstall("agent").done
    assert not (mac.folder / f"LaunchDaemons/{LABEL}.plist").exists()
    assert not daemons(mac).status("agent").is_installed


def test_what_launchd_refuses_is_told_in_its_words(mac: Host) -> None:
    mac.mark("may")
    mac.command("launchctl", "echo 'Bootstrap failed: 125: No such domain' >&2; exit 125")
    impatient = replace(agent(mac), stop_s=-10)
    with pytest.raises(ServiceRefused, match="125: No such domain"):
        daemons(mac).install(impatient)


def test_on_a_mac_sudo_is_left_to_us() -> None:
    if os.getuid() != 0:
        pytest.skip("not permitted here: this is about root")
    with pytest.raises(ServiceRefused, match="without sudo"):
        service.manager("x", platform="macos", environ={"SUDO_USER": "jörg", "HOME": "/tmp"})
