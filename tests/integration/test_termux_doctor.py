"""The doctor of phones: it needs no Python, waits for nothing for ever, and says what to do."""

import sys
import time
from pathlib import Path

import psutil
import pytest
from cluster import Cluster
from lab.phone import (
    WRONG_PIN,
    Phone,
    fresh_phone,
    install_script,
    invitation,
)

from supervisor import files

SCRIPT = files.termux() / "doctor.sh"
CHECKS = (
    *("Termux", "Android", "Processor", "Storage", "Python", "curl", "Agent", "Boot script"),
    *("Termux:Boot", "Termux:API", "Wake lock", "Phantom processes", "Battery exemption"),
    "Main host",
)


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    """With curl, and an agent whose own doctor is recorded."""
    made = fresh_phone(tmp_path)
    made.data.mkdir(parents=True)
    for name in ("agent.pyz", "join-code", "pin"):
        (made.data / name).write_text("")
    made.boot_script.parent.mkdir(parents=True)
    made.boot_script.write_text("")
    (made.apps / "com.termux.boot").mkdir()
    made.command("curl")
    made.command(
        "python", f'case $1 in *.pyz) exit "${{AGENT_SAYS:-0}}" ;; esac\nexec {sys.executable} "$@"'
    )
    made.command("termux-battery-status", """echo '{"percentage": 71}'""")
    made.environment["MONITOR"] = "false"
    return made


async def findings(phone: Phone, *, status: int = 0) -> dict[str, tuple[str, str, str]]:
    """Verdict, what was found and what to do, of each check by name."""
    done = await phone.run(SCRIPT)
    assert done.stderr == ""
    assert done.returncode == status, done.stdout
    found: dict[str, tuple[str, str, str]] = {}
    name = ""
    for line in done.stdout.splitlines():
        if line.startswith("         do: "):
            verdict, said, _ = found[name]
            found[name] = (verdict, said, line.strip().removeprefix("do: "))
        elif line[:9].strip() in ("ok", "warning", "blocks", "unknown"):
            name, _, said = line[9:].partition(": ")
            found[name] = (line[:9].strip(), said, "")
    assert set(found) <= set(CHECKS)
    for name, (verdict, said, remedy) in found.items():
        assert said, name
        if verdict in ("warning", "blocks") and name != "Processor":
            assert remedy, f"{name} says what to do"
    assert ("blocks" in {verdict for verdict, _, _ in found.values()}) <= (status == 1)
    return found


async def test_a_good_phone_passes_and_the_agents_own_doctor_has_its_say(phone: Phone) -> None:
    found = await findings(phone)
    assert {name for name, (verdict, _, _) in found.items() if verdict == "ok"} == {
        *("Termux", "Android", "Processor", "Storage", "Python", "curl", "Agent"),
        *("Termux:Boot", "Termux:API", "Wake lock", "Phantom processes"),
    } - ({"Python"} if found["Python"][0] == "warning" else set())
    assert found["Android"][1] == "14 (API level 34)"
    assert found["Termux:API"][1] == "it answers; battery at 71 %"
    assert "Unrestricted" in found["Battery exemption"][2]
    assert f"python {phone.data}/agent.pyz doctor" in phone.calls()
    phone.environment["AGENT_SAYS"] = "1"
    await findings(phone, status=1)


async def test_a_battery_status_that_hangs_is_ended_with_all_it_started(phone: Phone) -> None:
    phone.command("termux-battery-status", "sleep 4321 &\nwait")
    began_s = time.monotonic()
    found = await findings(phone)
    assert time.monotonic() - began_s < 60
    verdict, said, remedy = found["Termux:API"]
    assert (verdict, "did not answer within 10 s" in said) == ("warning", True)
    assert "com.termux.api" in remedy
    left = [
        each
        for each in psutil.process_iter(["cmdline"])
        if each.info["cmdline"] == ["sleep", "4321"]
    ]
    assert left == []


@pytest.mark.parametrize(
    ("body", "words"),
    [("exit 1", "gives no battery"), ('echo \'{"error": "x"}\'', "gives no battery")],
)
async def test_a_battery_status_without_a_battery(phone: Phone, body: str, words: str) -> None:
    phone.command("termux-battery-status", body)
    assert words in (await findings(phone))["Termux:API"][1]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (None, "not there"),
        ("echo 3.10.2; exit 1", "3.10.2, and the agent needs 3.11"),
        ("echo 'CANNOT LINK EXECUTABLE' >&2; exit 1", "it does not start"),
    ],
)
async def test_without_a_good_python_the_rest_is_still_looked_at(
    phone: Phone, body: str | None, words: str
) -> None:
    if body is None:
        (phone.prefix / "bin/python").unlink()
    else:
        phone.command("python", body)
    found = await findings(phone, status=1)
    assert (found["Python"][0], found["Python"][1]) == ("blocks", words)
    assert set(found) >= {"Termux:API", "Main host"}
    assert not [call for call in phone.calls() if "agent.pyz" in call]


@pytest.mark.parametrize(
    ("environment", "check", "verdict", "words"),
    [
        ({"SDK": "27"}, "Android", "blocks", "API level 27"),
        ({"SDK": "x"}, "Android", "unknown", "cannot be read"),
        ({"MACHINE": "armv7l"}, "Processor", "blocks", "armv7l"),
        ({"TERMUX_VERSION": "googleplay.2025.10.05"}, "Termux", "warning", "Play Store"),
        ({"TERMUX_APP__APK_RELEASE": "GOOGLE_PLAY_STORE"}, "Termux", "warning", "Play Store"),
        ({"TERMUX_APP__TARGET_SDK": "33"}, "Termux", "warning", "targets API level 33"),
        ({"MONITOR": "", "SDK": "35"}, "Phantom processes", "warning", "in the background"),
        ({"MONITOR": "", "SDK": "33"}, "Phantom processes", "warning", "in the background"),
        ({"MONITOR": "", "SDK": "31"}, "Phantom processes", "warning", "many processes"),
        ({"MONITOR": "", "SDK": "30"}, "Phantom processes", "ok", "alone"),
    ],
)
async def test_what_the_phone_says_of_itself(
    phone: Phone, environment: dict[str, str], check: str, verdict: str, words: str
) -> None:
    phone.environment.update(environment)
    found = await findings(phone, status=int(verdict == "blocks"))
    assert found[check][0] == verdict
    assert words in found[check][1]


@pytest.mark.parametrize(
    ("missing", "check", "verdict"),
    [
        ("bin/curl", "curl", "blocks"),
        ("bin/termux-wake-lock", "Wake lock", "warning"),
        ("bin/termux-battery-status", "Termux:API", "warning"),
    ],
)
async def test_what_is_missing_is_named(
    phone: Phone, missing: str, check: str, verdict: str
) -> None:
    (phone.prefix / missing).unlink()
    assert (await findings(phone, status=int(verdict == "blocks")))[check][0] == verdict


async def test_an_installation_that_is_not_whole(phone: Phone) -> None:
    (phone.data / "agent.pyz").unlink()
    phone.boot_script.unlink()
    found = await findings(phone, status=1)
    assert found["Agent"][:2] == ("blocks", f"agent.pyz is not in {phone.data}")
    assert found["Boot script"][0] == "warning"
    assert found["Main host"][0] == "unknown"
    phone.boot_script.write_text("")
    (phone.apps / "com.termux.boot").rmdir()
    assert (await findings(phone, status=1))["Termux:Boot"][0] == "warning"


async def test_the_main_host_is_known_by_its_key(cluster: Cluster, phone: Phone) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    for name in ("curl", "python"):
        (phone.prefix / "bin" / name).unlink()
    done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert done.returncode == 0, done.stderr
    phone.command("python", "case $1 in *.pyz) exit 0 ;; esac")
    address = invited.code.partition("/")[0]
    found = (await findings(phone))["Main host"]
    assert found[:2] == ("ok", f"{address} answers with the pinned key")

    (phone.data / "pin").write_text(WRONG_PIN)
    verdict, said, _ = (await findings(phone, status=1))["Main host"]
    assert (verdict, "another key" in said) == ("blocks", True)

    (phone.data / "pin").write_text(invited.pin)
    (phone.data / "join-code").write_text(f"127.0.0.1:1,{invited.code}")
    assert (await findings(phone))["Main host"][0] == "ok", "the next address is tried"
    (phone.data / "join-code").write_text("127.0.0.1:1/token/print")
    verdict, said, _ = (await findings(phone, status=1))["Main host"]
    assert (verdict, "does not answer" in said) == ("blocks", True)


async def test_elsewhere_than_in_termux_it_says_so_and_goes_on(phone: Phone) -> None:
    (phone.prefix / "bin/pkg").unlink()
    for name in ("TERMUX_VERSION", "PREFIX"):
        del phone.environment[name]
    done = await phone.run(SCRIPT)
    assert done.returncode == 1
    assert "blocks   Termux: this is not Termux" in done.stdout
    assert "Main host" in done.stdout
