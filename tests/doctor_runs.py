"""Runs the doctor as a user does, and reads what it found."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster import Cluster

from agents.doctor.findings import TITLES

PATIENT_S = 120.0
ON_OTHER_PLATFORMS = {
    "local_network",
    "gpu_memory",
    "phantom_processes",
    "wake_lock",
    "battery_exemption",
    "termux_origin",
    "termux_api",
    "termux_boot",
    "launch_item",
}
IF_THERE_IS_ONE = {"lid", "wsl"}
OF_AGENTS = {"agent", "agent_ports", "main_host", "round_trip", "clock"}
FROM_HERE = {"membership", "rest_api", "link", "link_speed", "same_engine", "certificate"}
HOST_ALONE = {"supervisor", "store", "dashboard", "join_port", "release"}
Findings = dict[str, dict[str, str]]


def ours() -> set[str]:
    """Checks that every Linux device makes of itself."""
    return set(TITLES) - ON_OTHER_PLATFORMS - IF_THERE_IS_ONE


async def run(
    *argv: str, environment: dict[str, str] | None = None, within_s: float = PATIENT_S
) -> tuple[int, str, str]:
    """Exit status, output and errors of a program of ours; it must end in time."""
    done = await asyncio.to_thread(
        subprocess.run,
        list(argv),
        capture_output=True,
        text=True,
        timeout=within_s,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


async def from_main_host(cluster: Cluster, *arguments: str) -> tuple[int, dict[str, Findings]]:
    """``supervisor doctor --json``: exit status, and findings by device and check."""
    argv = [sys.executable, "-m", "supervisor", "doctor", *arguments, "--json"]
    status, said, errors = await run(*argv, "--url", cluster.url)
    assert status in (0, 1), errors
    groups = json.loads(said)
    return status, {group["device"]: by_check(group["findings"]) for group in groups}


async def on_device(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None
) -> tuple[int, Findings]:
    """``agent.pyz doctor --json``."""
    argv = [sys.executable, "-m", "agents", "doctor", "--json", "--data", str(folder), *arguments]
    status, said, errors = await run(*argv, environment=environment)
    assert status in (0, 1), errors
    return status, by_check(json.loads(said))


def by_check(findings: list[dict[str, str]]) -> Findings:
    found = {finding["check"]: finding for finding in findings}
    assert len(found) == len(findings), "a check is there twice"
    return found


def blocking(found: Findings) -> set[str]:
    return {name for name, finding in found.items() if finding["verdict"] == "blocks"}


@contextlib.contextmanager
def stranger(port: int = 0) -> Iterator[int]:
    """Somebody who listens on loopback."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield listener.getsockname()[1]


def hanging(folder: Path, *names: str) -> dict[str, str]:
    """An environment in which these programs hang."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\nsleep 1000\n")
        (folder / name).chmod(0o700)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}
