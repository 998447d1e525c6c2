"""The property list of a Mac, as plistlib reads it."""

import plistlib
from pathlib import Path
from typing import Any

import pytest

from agents import launchd
from agents.background import Service, carried

HOME = Path("/Users/jörg müller")
FOLDER = HOME / "Library/Application Support/llama-rpc-supervisor/agent"
AGENT = Service(
    "agent",
    ("/opt/homebrew/bin/python3", str(FOLDER / "agent.pyz"), "join", "-", f"--data={FOLDER}"),
    FOLDER,
    {"PATH": "/usr/bin:/bin", "LLAMA_CPP_BIN": f"{HOME}/llama & <b>"},
)
SUPERVISOR = Service(
    "supervisor",
    ("/usr/bin/python3", "-m", "supervisor", "up"),
    FOLDER.parent / "supervisor",
    stop_s=90,
    leaves_children=True,
    prints_secrets=True,
)


def read(service: Service) -> dict[str, Any]:
    return dict(plistlib.loads(launchd.property_list(service, "jörg", HOME)))


def test_every_key_is_what_launchd_wants() -> None:
    log = f"{HOME}/Library/Logs/llama-rpc-supervisor/agent.log"
    assert read(AGENT) == {
        "Label": "org.llama-rpc-supervisor.agent",
        "ProgramArguments": list(AGENT.argv),
        "UserName": "jörg",
        "WorkingDirectory": str(FOLDER),
        "EnvironmentVariables": {
            "PATH": "/usr/bin:/bin",
            "LLAMA_CPP_BIN": f"{HOME}/llama & <b>",
            "HOME": str(HOME),
            "USER": "jörg",
            "LOGNAME": "jörg",
        },
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": 20,
        "ProcessType": "Interactive",
        "SoftResourceLimits": {"NumberOfFiles": 65536},
        "AbandonProcessGroup": False,
        "StandardOutPath": log,
        "StandardErrorPath": log,
        "Umask": 0o077,
    }


def test_the_supervisor_prints_a_join_code_which_goes_into_no_log() -> None:
    found = read(SUPERVISOR)
    assert found["Label"] == "org.llama-rpc-supervisor.supervisor"
    assert found["StandardOutPath"] == "/dev/null"
    assert found["StandardErrorPath"].endswith("/Library/Logs/llama-rpc-supervisor/supervisor.log")
    assert found["ExitTimeOut"] == 90
    assert found["AbandonProcessGroup"] is True, "llama-server is adopted after a crash"


def test_every_path_is_absolute() -> None:
    found = read(AGENT)
    paths = [found[key] for key in ("WorkingDirectory", "StandardOutPath", "StandardErrorPath")]
    assert all(Path(path).is_absolute() for path in [found["ProgramArguments"][0], *paths])


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "SUPERVISOR_KEY", "SUPERVISOR_JOIN_CODE", "LLAMA_API_KEY", "MY_SECRET"]
)
def test_no_secret_of_the_shell_is_written_into_a_file_that_all_can_read(name: str) -> None:
    environ = {name: "s3cret", "PATH": "/bin", "SUPERVISOR_PORT": "8200", "HF_HOME": "/models"}
    assert carried(environ) == {"HF_HOME": "/models", "PATH": "/bin", "SUPERVISOR_PORT": "8200"}
