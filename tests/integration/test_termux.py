"""The scripts for phones, run by dash in a fake Termux against a real supervisor."""

import asyncio
import os
import re
import stat
from pathlib import Path

import httpx
import pytest
from cluster import Cluster
from lab.phone import (
    WRONG_PIN,
    Phone,
    assert_one_error,
    fresh_phone,
    install_script,
    invitation,
    ready_phone,
)

from agents import join
from agents.contract import EngineFacts, JoinReply
from agents.errors import MainHostUnreachable
from agents.join import Identity, JoinCode, MainHost
from supervisor import files
from supervisor.adapters.authority import Authority

BOOT_SCRIPT = files.termux() / "boot" / "agent"


@pytest.fixture
def phone(tmp_path: Path) -> Phone:
    return fresh_phone(tmp_path)


async def test_installing_on_a_fresh_phone_ends_with_a_ready_worker(
    cluster: Cluster, phone: Phone, engine: EngineFacts, demo_model: Path
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    program = phone.start(
        cluster, install_script(), invited.code, invited.pin, LLAMA_CPP_BIN=engine.folder
    )
    device = await ready_phone(cluster, program)
    assert device["facts"]["platform"] == "android"  # type: ignore[index]
    assert device["facts"]["battery_percent"] == 71.0  # type: ignore[index]

    expected = [
        r"getprop ro\.build\.version\.sdk",
        r"uname -m",
        r"pkg install -y python curl",
        r"python -c .*version_info.*",
        r"python -c import psutil",
        r"pkg install -y python-psutil",
        r"pkg install -y termux-api",
        r"curl -fsSk .*--pinnedpubkey sha256//\S+ -o \S+ https://\S+/files/agent\.pyz",
        *(
            rf"curl -fsSk .*--pinnedpubkey sha256//\S+ -o \S+ https://\S+/files/{name}"
            for name in ("boot-agent", r"doctor\.sh", r"uninstall\.sh")
        ),
        r"python \S+/agent\.pyz\.new --version",
        r"getprop persist\.\S+",
        r"termux-wake-lock ",
        r"python \S+/agent\.pyz join - --data \S+",
    ]
    calls = phone.calls()[: len(expected)]
    for call, pattern in zip(calls, expected, strict=True):
        assert re.fullmatch(pattern, call), (call, pattern)

    # Nothing between the terminal and the agent: Android counts processes.
    arguments = Path(f"/proc/{program.process.pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[1].endswith(b"/agent.pyz")
    assert (await cluster.launch(demo_model)).status_code == 201
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]


async def test_the_join_code_is_private_and_never_an_argument(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    token = JoinCode.parse(invited.code).token
    program = phone.start(
        cluster, install_script(), invited.code, invited.pin, LLAMA_CPP_BIN=engine.folder
    )
    await ready_phone(cluster, program)
    code_file = phone.data / "join-code"
    assert code_file.read_text().strip() == invited.code
    assert stat.S_IMODE(code_file.stat().st_mode) == 0o600
    assert [call for call in phone.calls() if token in call] == []
    assert token not in program.said()
    assert token.encode() not in Path(f"/proc/{program.process.pid}/cmdline").read_bytes()


async def test_the_code_may_come_from_the_environment(cluster: Cluster, phone: Phone) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment["SUPERVISOR_JOIN_CODE"] = invited.code
    done = await phone.run(install_script(), "-", invited.pin, "--no-start")
    assert done.returncode == 0, done.stderr
    assert (phone.data / "join-code").read_text().strip() == invited.code


async def test_a_second_run_changes_nothing(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment["LLAMA_CPP_BIN"] = engine.folder
    first = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    before = phone.snapshot()
    assert set(before) == {
        ".local/share/llama-rpc-supervisor/agent.pyz",
        ".local/share/llama-rpc-supervisor/doctor.sh",
        ".local/share/llama-rpc-supervisor/join-code",
        ".local/share/llama-rpc-supervisor/llama-cpp-bin",
        ".local/share/llama-rpc-supervisor/pin",
        ".local/share/llama-rpc-supervisor/uninstall.sh",
        ".termux/boot/10-llama-rpc-agent",
    }
    installed = [call for call in phone.calls() if call.startswith("pkg ")]
    second = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert second.returncode == 0, second.stderr
    assert phone.snapshot() == before
    assert [call for call in phone.calls() if call.startswith("pkg ")] == installed
    assert not any("wake-lock" in call or " join " in call for call in phone.calls())


async def test_a_new_code_replaces_the_old_one(cluster: Cluster, phone: Phone) -> None:
    await cluster.supervisor()
    old, new = await invitation(cluster), await invitation(cluster)
    for invited in (old, new):
        done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
        assert done.returncode == 0, done.stderr
    assert (phone.data / "join-code").read_text().strip() == new.code
    assert stat.S_IMODE((phone.data / "join-code").stat().st_mode) == 0o600


async def test_the_boot_script_joins_in_the_foreground_with_the_engine_named_at_installation(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment["LLAMA_CPP_BIN"] = engine.folder
    await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert phone.boot_script.read_bytes() == BOOT_SCRIPT.read_bytes()
    assert os.access(phone.boot_script, os.X_OK)
    # Termux:Boot starts it without the variables of a shell.
    del phone.environment["LLAMA_CPP_BIN"]
    before = len(phone.calls())
    program = phone.start(cluster, phone.boot_script)
    await ready_phone(cluster, program)
    calls = phone.calls()[before:]
    assert calls[0] == "termux-wake-lock "
    assert re.fullmatch(r"python \S+/agent\.pyz join - --data \S+", calls[1])
    assert await asyncio.to_thread(program.stop) == 0


async def test_without_a_wake_lock_command_the_boot_script_still_joins(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.environment["LLAMA_CPP_BIN"] = engine.folder
    await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    (phone.prefix / "bin/termux-wake-lock").unlink()
    await ready_phone(cluster, phone.start(cluster, phone.boot_script))


async def test_an_engine_in_the_engines_folder_needs_no_variable(
    cluster: Cluster, phone: Phone, engine: EngineFacts
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert "the engine comes from the main host by itself" in done.stdout
    (phone.data / "agent/engines").mkdir(parents=True)
    (phone.data / "agent/engines/llama-b9999").symlink_to(engine.folder)
    await ready_phone(cluster, phone.start(cluster, phone.boot_script))


async def test_the_next_address_of_the_code_is_tried(cluster: Cluster, phone: Phone) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    code = f"127.0.0.1:1,{invited.code}"
    done = await phone.run(install_script(), code, invited.pin, "--no-start")
    assert done.returncode == 0, done.stderr
    assert [call for call in phone.calls() if "https://127.0.0.1:1/" in call]
    assert (phone.data / "join-code").read_text().strip() == code


async def test_a_main_host_with_another_key_gets_nothing_installed(
    cluster: Cluster, phone: Phone
) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    done = await phone.run(install_script(), invited.code, WRONG_PIN, "--no-start")
    assert done.returncode == 1
    assert_one_error(done, "its key is not the pinned one", "get a new code and pin")
    assert phone.snapshot() == {}


async def test_no_answer_ends_with_one_sentence(phone: Phone) -> None:
    done = await phone.run(install_script(), "127.0.0.1:1/token/print", WRONG_PIN)
    assert_one_error(done, "cannot fetch agent.pyz (127.0.0.1:1: ", "supervisor up")
    assert phone.snapshot() == {}


async def test_a_failing_pkg_ends_with_one_sentence(phone: Phone) -> None:
    phone.command("pkg", "exit 100")
    done = await phone.run(install_script(), "127.0.0.1:1/token/print", WRONG_PIN)
    assert_one_error(done, "pkg could not install python and curl", "pkg update")


async def test_elsewhere_than_in_termux_it_says_so(phone: Phone) -> None:
    (phone.prefix / "bin/pkg").unlink()
    done = await phone.run(install_script(), "127.0.0.1:1/token/print", WRONG_PIN)
    assert_one_error(done, "run this in Termux")


async def test_an_old_python_ends_with_one_sentence(phone: Phone) -> None:
    phone.command("python", "case $2 in *version_info*) exit 1 ;; esac", shop=True)
    done = await phone.run(install_script(), "127.0.0.1:1/token/print", WRONG_PIN)
    assert_one_error(done, "Python 3.11 or newer", "pkg upgrade")


async def test_optional_packages_may_fail(cluster: Cluster, phone: Phone) -> None:
    await cluster.supervisor()
    invited = await invitation(cluster)
    phone.command(
        "pkg",
        "case $* in *python-psutil | *termux-api) exit 100 ;; esac\n"
        'shift 2; for name in "$@"; do cp "$SHOP/$name" "$PREFIX/bin/"; done',
    )
    done = await phone.run(install_script(), invited.code, invited.pin, "--no-start")
    assert done.returncode == 0
    warnings = done.stderr.splitlines()
    assert [w.split()[:2] for w in warnings] == [
        ["warning:", "python-psutil"],
        ["warning:", "termux-api"],
    ]


async def test_the_boot_script_without_an_installation_says_what_to_do(phone: Phone) -> None:
    done = await phone.run(BOOT_SCRIPT)
    assert_one_error(done, "agent.pyz is missing", "run install.sh again")
    assert phone.calls() == []


async def test_the_main_host_serves_the_scripts_and_nothing_else(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.supervisor()
    code = JoinCode.parse((await invitation(cluster)).code)
    base = f"https://{code.endpoints[0]}/files/"
    async with httpx.AsyncClient(base_url=base, verify=False, trust_env=False) as client:
        for name in ("install.sh", "uninstall.sh", "doctor.sh"):
            assert (await client.get(name)).content == (files.termux() / name).read_bytes()
        assert (await client.get("boot-agent")).content == BOOT_SCRIPT.read_bytes()
        assert (await client.get("join.sh")).content == files.join_script().read_bytes()
        for name in (
            "main-host.sh",
            "",
            "agent",
            "boot",
            "boot/agent",
            "..%2fREADME.md",
            "supervisor.db",
        ):
            assert (await client.get(name)).status_code == 404, name


async def test_after_a_boot_a_member_waits_for_its_main_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "_JOIN_PATIENCE_S", 0.1)
    authority = Authority(tmp_path / "authority")
    issued = authority.issue("agent-1")
    code = JoinCode(("127.0.0.1:1",), "token", authority.fingerprint)
    identity = Identity(tmp_path / "identity")
    with pytest.raises(MainHostUnreachable, match="no main host answers"):
        await MainHost(code, identity).join("1", "phone")
    identity.store(JoinReply(issued.certificate_pem, issued.key_pem, authority.certificate_pem))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.0):
            await MainHost(code, identity).join("1", "phone")
