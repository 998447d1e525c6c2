"""What the script for phones looks at before it installs, and what it advises."""

from pathlib import Path

import pytest
from cluster import Cluster
from lab.phone import (
    WRONG_PIN,
    Phone,
    assert_one_error,
    fresh_phone,
    install_script,
    invitation,
)

CODE = "127.0.0.1:1/token/print"


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    return fresh_phone(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "usage: sh install.sh JOIN_CODE PIN"),
        (["code"], 2, "usage: sh install.sh JOIN_CODE PIN"),
        (["code", "pin", "more"], 2, "usage: sh install.sh JOIN_CODE PIN"),
        (["code", "pin", "--bad"], 2, "usage: sh install.sh JOIN_CODE PIN"),
        (["nonsense", WRONG_PIN], 1, "is not of the form"),
        (["-", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1/token/print", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1/token", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1//print", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1/to ken/print", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1/token/print/more", WRONG_PIN], 1, "is not of the form"),
        (["10.0.0.1:1/token/print", "sha256/short"], 1, "the pin does not begin with"),
        (["10.0.0.1:1/token/print", ""], 2, "usage: sh install.sh JOIN_CODE PIN"),
    ],
)
async def test_wrong_arguments_end_with_one_sentence_and_install_nothing(
    phone: Phone, arguments: list[str], status: int, words: str
) -> None:
    done = await phone.run(install_script(), *arguments)
    assert done.returncode == status, done
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert phone.calls() == []
    assert phone.snapshot() == {}


@pytest.mark.parametrize(
    ("sdk", "monitor", "words"),
    [
        ("34", "", "Disable child process restrictions"),
        ("36", "", "Disable child process restrictions"),
        ("33", "", "settings put global settings_enable_monitor_phantom_procs false"),
        ("31", "", "max_phantom_processes 2147483647"),
        ("30", "", None),
        ("34", "false", None),
    ],
)
async def test_the_advice_fits_the_version_of_android(
    cluster: Cluster, phone: Phone, sdk: str, monitor: str, words: str | None
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment.update(SDK=sdk, MONITOR=monitor)
    done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert done.returncode == 0, done.stderr
    assert "Battery: Unrestricted" in done.stdout
    assert "Termux:Boot" in done.stdout
    if words is None:
        assert "child process" not in done.stdout
    else:
        assert words in done.stdout


async def refused(phone: Phone, *words: str) -> None:
    """It says so before it installs anything."""
    assert_one_error(await phone.run(install_script(), CODE, WRONG_PIN), *words)
    assert not [call for call in phone.calls() if call.startswith(("pkg", "curl"))]
    assert phone.snapshot() == {}


async def test_an_old_android_is_told_apart(phone: Phone) -> None:
    phone.environment["SDK"] = "27"
    await refused(phone, "API level 27", "needs 28 (Android 9)", "another phone")


@pytest.mark.parametrize("machine", ["armv7l", "armv8l", "i686", "x86_64"])
async def test_a_processor_without_a_release_is_told_apart(phone: Phone, machine: str) -> None:
    phone.environment["MACHINE"] = machine
    await refused(phone, f"no release for Android on {machine}", "LLAMA_CPP_BIN")
    # With programs of one's own it goes on, here up to the main host that is not there.
    phone.environment["LLAMA_CPP_BIN"] = str(phone.folder)
    done = await phone.run(install_script(), CODE, WRONG_PIN)
    assert_one_error(done, "cannot fetch agent.pyz")


@pytest.mark.parametrize(
    "marks",
    [
        {"TERMUX_VERSION": "googleplay.2025.10.05"},
        {"TERMUX_APK_RELEASE": "GOOGLE_PLAY_STORE"},
        {"TERMUX_APP__APK_RELEASE": "GOOGLE_PLAY_STORE"},
        {"TERMUX_APP__TARGET_SDK": "33"},
    ],
)
async def test_the_termux_of_the_play_store_is_warned_of(
    phone: Phone, marks: dict[str, str]
) -> None:
    phone.environment.update(marks)
    done = await phone.run(install_script(), CODE, WRONG_PIN)
    assert done.stderr.startswith("warning: this Termux is from the Play Store")
    assert "f-droid.org" in done.stderr


@pytest.mark.parametrize(
    "marks", [{"TERMUX_APK_RELEASE": "F_DROID"}, {"TERMUX_APP__TARGET_SDK": "28"}]
)
async def test_other_origins_are_not(phone: Phone, marks: dict[str, str]) -> None:
    phone.environment.update(marks)
    done = await phone.run(install_script(), CODE, WRONG_PIN)
    assert "Play Store" not in done.stderr


async def test_a_full_phone_is_told_before_anything_is_installed(phone: Phone) -> None:
    phone.command(
        "df",
        "echo Filesystem 1024-blocks Used Available Capacity Mounted\n"
        "echo /dev/block/dm-9 112000000 111900000 102400 100% /data",
    )
    await refused(phone, "100 MiB are free", "need 300")
    # Where all is there already, a new code is worth a try.
    phone.data.mkdir(parents=True)
    (phone.data / "agent.pyz").write_text("")
    done = await phone.run(install_script(), CODE, WRONG_PIN)
    assert "warning: only 100 MiB are free" in done.stderr
    assert "cannot fetch agent.pyz" in done.stderr


async def test_free_room_that_cannot_be_read_is_no_reason_to_stop(phone: Phone) -> None:
    phone.command("df", "echo 'df: Function not implemented' >&2; exit 1")
    done = await phone.run(install_script(), CODE, WRONG_PIN)
    assert_one_error(done, "cannot fetch agent.pyz")


async def test_a_main_host_is_made_from_a_checkout_only(phone: Phone) -> None:
    fetched = phone.folder / "install.sh"
    fetched.write_bytes(install_script().read_bytes())
    done = await phone.run(fetched, "--main-host")
    assert_one_error(done, "works from a checkout", "main-host.sh")
    assert phone.calls() == []
