"""The systemd unit, read back by systemd itself."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from agents import systemd
from agents.background import Service
from agents.errors import ServiceRefused

AWKWARD = "w ü%d $h"
WORDS = (
    "a b",
    "100%h",
    "$HOME",
    "${PATH}",
    "back\\n",
    ";",
    '"q"',
    "it's",
    "--name=Büro",
    "#no",
    "",
)


def program(folder: Path) -> Path:
    """Something that systemd can find where the unit says."""
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "python3"
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    return made


def read_back(service: Service, folder: Path) -> list[str]:
    """What systemd understood of a unit, one property per line; it has nothing to complain of."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    unit, runtime = folder / service.unit, folder / "run"
    unit.write_text(systemd.unit_text(service))
    runtime.mkdir(exist_ok=True)
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_RUNTIME_DIR": str(runtime)}
    command = [analyze, "verify", "--user", "--man=no", str(unit)]
    plain = _ran(command, environ)
    assert plain.returncode == 0, plain.stderr
    assert service.unit not in plain.stderr, plain.stderr
    told = {**environ, "SYSTEMD_LOG_LEVEL": "debug"}
    dumped = _ran(command, told)
    text = dumped.stdout + dumped.stderr
    _, _, own = text.partition(f"Unit {service.unit}:")
    return [line.strip() for line in own.partition("-> Unit ")[0].splitlines()]


def _ran(command: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, env=environ, timeout=60, check=False
    )


def agent(folder: Path, *words: str, **more: object) -> Service:
    argv = (str(program(folder)), "-m", "agents", "join", "-", *words)
    return Service("agent", argv, folder, **more)  # type: ignore[arg-type]


def test_every_word_arrives_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / AWKWARD
    environment = {"LLAMA_CPP_BIN": f'{folder}/"bin"', "LANG": "de_DE.UTF-8", "X": "$HOME %h \\n"}
    service = agent(folder, *WORDS, environment=environment)
    lines = read_back(service, tmp_path)
    (command,) = [line for line in lines if line.startswith("Command Line: ")]
    shown = command.removeprefix("Command Line: ").replace("\\$", "$")
    assert shlex.split(shown) == list(service.argv)
    assert f"WorkingDirectory: {folder}" in lines
    found = {line.removeprefix("Environment: ") for line in lines if "Environment: " in line}
    assert found == {f"{name}={value}" for name, value in environment.items()}


def test_no_variable_is_put_into_the_command(tmp_path: Path) -> None:
    text = systemd.unit_text(agent(tmp_path, "$HOME"))
    assert re.search(r"^ExecStart=:/", text, re.MULTILINE)


def test_an_agent_is_asked_first_and_has_time_to_end_its_rpc_server(tmp_path: Path) -> None:
    lines = read_back(agent(tmp_path), tmp_path)
    for wanted in (
        "KillMode: mixed",
        "TimeoutStopSec: 20s",
        "OOMPolicy: continue",
        "LimitNOFILE: 65536",
        "UMask: 0077",
    ):
        assert wanted in lines, wanted


def test_it_comes_back_after_a_failure_but_not_for_ever(tmp_path: Path) -> None:
    text = systemd.unit_text(agent(tmp_path))
    for line in (
        "Type=exec",
        "Restart=on-failure",
        "RestartSec=5",
        "StartLimitIntervalSec=300",
        "StartLimitBurst=10",
        "WantedBy=default.target",
    ):
        assert line in text.splitlines()
    assert text.index("StartLimitBurst") < text.index("[Service]"), "elsewhere it is ignored"


def test_llama_server_outlives_a_supervisor_that_crashed(tmp_path: Path) -> None:
    service = Service(
        "supervisor",
        (str(program(tmp_path)), "-m", "supervisor", "up"),
        tmp_path,
        stop_s=90,
        leaves_children=True,
        prints_secrets=True,
    )
    lines = read_back(service, tmp_path)
    assert "KillMode: process" in lines
    assert "TimeoutStopSec: 1min 30s" in lines
    assert "StandardOutput: null" in lines, "it prints a join code"
    assert "StandardError: journal" in lines


@pytest.mark.parametrize("word", ["two\nlines", "bell\x07", "deleted\x7f"])
def test_what_no_unit_can_hold_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(ServiceRefused, match="control character"):
        systemd.unit_text(agent(tmp_path, word))


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\\b"])
def test_a_program_that_systemd_would_not_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServiceRefused, match="install it elsewhere"):
        systemd.unit_text(agent(tmp_path / name))
