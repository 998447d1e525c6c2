"""A device that has ``sh``, ``curl`` and Python only, over a network, by the printed line alone."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cluster import START_S, Cluster, Program, eventually
from lab.cables import Cabled, Host, cabled

from supervisor.demo_model import SENTENCE

pytestmark = pytest.mark.netns

BASE = ("cat", "chmod", "cmp", "env", "id", "mkdir", "mv", "rm", "sh", "uname")
"""What every system has."""

ENGINE_S = 120.0
"""For an engine of some ten megabytes that is packed, fetched, unpacked and proven meanwhile."""


@pytest.fixture
def hosts(cluster: Cluster) -> Iterator[Cabled]:
    with cabled(cluster) as made:
        made.plug(0)
        yield made


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The folder of every command that the device has: Python has no package there."""
    folder = tmp_path / "device"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    for name in (*BASE, "curl"):
        (folder / "bin" / name).symlink_to(str(shutil.which(name)))
    return folder / "bin"


@contextlib.asynccontextmanager
async def typed(line: str, host: Host, tools: Path, home: Path) -> AsyncIterator[Program]:
    """A line typed on a host, where the folder cannot be written; ended with what it began."""
    home.mkdir(exist_ok=True)
    environment = [f"HOME={home}", f"PATH={tools}"]
    environment += [f"{name}={value}" for name, value in os.environ.items() if "_OF_TESTS" in name]
    log = home.parent / "terminal.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            ["ip", "netns", "exec", host.namespace, "env", "-i", *environment, "sh", "-c", line],
            cwd="/proc",
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Program("terminal", process, home, log)
    finally:
        await end_group(process)


async def end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)

    async def is_over() -> bool:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        return False

    await eventually(is_over, within_s=START_S, what="all that the line began ends")


async def test_a_device_with_nothing_serves_after_the_printed_line(
    hosts: Cabled, tools: Path, tmp_path: Path, demo_model: Path
) -> None:
    printed = await hosts.up("--platform", "linux", "--join-host", hosts.main.address(0))
    line = next(text for text in printed.said().splitlines() if text.startswith("curl "))
    assert re.search(rf"https://{re.escape(hosts.main.address(0))}:\d+/files/join\.sh ", line)
    home = tmp_path / "home"
    began_s = time.monotonic()
    async with typed(line, hosts.worker, tools, home) as terminal:

        async def is_ready() -> str | None:
            assert terminal.process.poll() is None, terminal.said()
            device = await hosts.device()
            return str(device["name"]) if device["state"] == "ready" else None

        name = await eventually(is_ready, within_s=ENGINE_S, what="the device is ready")
        print(f"from the line to a ready device: {time.monotonic() - began_s:.1f} s")
        data = home / ".local/share/llama-rpc-supervisor"
        device = await hosts.device()
        assert device["address"] == hosts.worker.address(0)
        assert device["facts"]["engine"]["folder"].startswith(f"{data}/agent/engines/")
        assert {path.name for path in home.iterdir()} <= {".local", ".cache"}

        await hosts.launch(demo_model, "test", devices=[name])
        body = {"model": "test", "prompt": "Hello", "max_tokens": 128, "temperature": 0}
        answer = await hosts.call("/v1/completions", body)
        assert answer["choices"][0]["text"].strip() == SENTENCE
        await hosts.stop("test")

    # Run again without a word, as after a restart of the device, it is the same device.
    async with typed(f"sh {data}/join.sh", hosts.worker, tools, home) as terminal:
        await eventually(is_ready, within_s=ENGINE_S, what="the device is back")
        devices = await hosts.call("/api/devices")
        assert [each["id"] for each in devices] == [device["id"]]


async def test_the_line_of_another_main_host_leaves_nothing(
    hosts: Cabled, tools: Path, tmp_path: Path
) -> None:
    printed = await hosts.up("--platform", "macos", "--join-host", hosts.main.address(0))

    async def said() -> str | None:
        lines = (text for text in printed.said().splitlines() if text.startswith("curl "))
        return next(lines, None)

    line = await eventually(said, within_s=START_S, what="the line is printed")
    forged = re.sub(r"sha256//[^']+", f"sha256//{'A' * 43}=", line)
    home = tmp_path / "home"
    async with typed(forged, hosts.worker, tools, home) as terminal:
        status = await asyncio.to_thread(terminal.process.wait, START_S)
    assert status == 90, terminal.said()
    assert list(home.iterdir()) == []
    assert await hosts.call("/api/devices") == []
