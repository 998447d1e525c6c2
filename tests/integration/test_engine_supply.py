"""Devices without an engine get the main host's, over cut connections and kill -9 as well."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Program, eventually

from agents.cli import CODE_VARIABLE
from agents.contract import EngineFacts
from supervisor.adapters import agent_archive
from supervisor.demo_model import SENTENCE

SLOW_S = 120.0
"""Several programs are started to prove an engine, on a machine that does other things."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter without any package, and so without an engine beside it."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python3"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent_archive.build(tmp_path_factory.mktemp("archive"))


class Device:
    """A device with a bare Python and ``agent.pyz``, which can be killed and started again."""

    def __init__(self, cluster: Cluster, bare: Path, archive: Path, name: str, code: str) -> None:
        self._cluster = cluster
        self._command = [str(bare), str(archive), "join", "-", "--name", name, "--threads", "1"]
        self._command += ["--data", str(cluster.folder / name)]
        self._code = code
        self.name = name
        self.engines = cluster.folder / name / "engines"

    def start(self) -> Program:
        home = self._cluster.folder / f"{self.name}-home"
        home.mkdir(exist_ok=True)
        mark = {"TMPDIR_MARK_OF_TESTS": os.environ["TMPDIR_MARK_OF_TESTS"]}
        env = {"HOME": str(home), "PATH": "/usr/bin:/bin", CODE_VARIABLE: self._code, **mark}
        log = self._cluster.folder / f"{self.name}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=home,
                env=env,
                start_new_session=True,
            )
        program = Program(self.name, process, self._cluster.folder / self.name, log)
        self._cluster.programs.append(program)
        return program

    def fetched_bytes(self) -> int:
        return sum(part.stat().st_size for part in self.engines.glob("*.part"))


def asked_ranges(supervisor: Program) -> list[str]:
    """Where each request for an archive began, as the supervisor logged it."""
    return re.findall(r"engine\.asked_for.*?range=\"?(\S+?)\"?(?:\s|$)", supervisor.said())


async def test_a_device_with_nothing_becomes_ready_by_itself_and_serves(
    cluster: Cluster, bare: Path, archive: Path, engine: EngineFacts, demo_model: Path
) -> None:
    supervisor = await cluster.supervisor()
    device = Device(cluster, bare, archive, "nothing", await cluster.code())
    program = device.start()
    seen = await cluster.device_state("nothing", "ready", within_s=SLOW_S)
    got = seen["facts"]["engine"]
    assert got["build"] == engine.build
    assert Path(got["folder"]).is_relative_to(device.engines)
    assert seen["engine_install"]["state"] == "ready"
    assert seen["reason"] == ""
    assert len(asked_ranges(supervisor)) == 1, "it was fetched once"
    assert not device.fetched_bytes(), "the archive is not kept"

    assert (await cluster.launch(demo_model)).status_code == 201
    deployment = await cluster.settled(within_s=SLOW_S)
    assert deployment["state"] == "ready", deployment["reason"]
    assert [shard["device"] for shard in deployment["plan"]["shards"]] == ["nothing"]
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE
    await cluster.http.post("/api/deployments/test/stop")

    program.stop()
    await cluster.device_state("nothing", "lost", within_s=SLOW_S)
    device.start()
    again = await cluster.device_state("nothing", "ready", within_s=SLOW_S)
    assert again["facts"]["engine"]["folder"] == got["folder"]
    assert len(asked_ranges(supervisor)) == 1


@contextlib.asynccontextmanager
async def cutting_relay(port: int, most_bytes: int) -> AsyncIterator[tuple[int, list[int]]]:
    """Passes on to ``port``, and cuts every connection that brought ``most_bytes`` down."""
    brought: list[int] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> int:
        total = 0
        with contextlib.suppress(OSError):
            while total < limit and (data := await reader.read(16384)):
                total += len(data)
                writer.write(data)
                await writer.drain()
        return total

    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        up = asyncio.create_task(pump(reader, up_writer, 1 << 60))
        with contextlib.suppress(asyncio.CancelledError):  # the end of the test
            brought.append(await pump(up_reader, writer, most_bytes))
        up.cancel()
        await asyncio.gather(up, return_exceptions=True)
        for each in (writer, up_writer):
            each.transport.abort()
            with contextlib.suppress(OSError):
                await each.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        try:
            yield server.sockets[0].getsockname()[1], brought
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_transfer_goes_on_after_cuts_and_kill_9(
    cluster: Cluster, bare: Path, archive: Path
) -> None:
    supervisor = await cluster.supervisor()
    endpoint, rest = (await cluster.code()).split("/", 1)
    piece_bytes = 1_500_000
    async with cutting_relay(int(endpoint.rpartition(":")[2]), piece_bytes) as (port, brought):
        device = Device(cluster, bare, archive, "far", f"127.0.0.1:{port}/{rest}")
        program = device.start()

        async def has_some() -> bool:
            assert program.process.poll() is None, program.said()
            return device.fetched_bytes() > piece_bytes // 2

        await eventually(has_some, within_s=SLOW_S, what="some of it is fetched")
        assert program.stop(signal.SIGKILL) == -signal.SIGKILL
        kept_bytes = device.fetched_bytes()
        assert kept_bytes > piece_bytes // 2
        device.start()
        seen = await cluster.device_state("far", "ready", within_s=SLOW_S)
    size_bytes = seen["engine_install"]["total_bytes"]
    ranges = asked_ranges(supervisor)
    begun = [0 if r == "all" else int(r.removeprefix("bytes=").rstrip("-")) for r in ranges]
    assert len(begun) > 1
    assert begun == sorted(begun), "nothing was asked for twice"
    assert begun.count(0) == 1
    most = size_bytes * 1.1 + len(brought) * 50_000
    assert sum(brought) < most, f"{sum(brought)} bytes for {size_bytes}"


async def test_an_archive_with_another_digest_is_thrown_away_and_told(
    cluster: Cluster, bare: Path, archive: Path
) -> None:
    await cluster.supervisor()
    Device(cluster, bare, archive, "first", await cluster.code()).start()
    await cluster.device_state("first", "ready", within_s=SLOW_S)
    stored = next((cluster.folder / "supervisor" / "engine-archives").glob("*.tar.gz"))
    good = stored.read_bytes()
    stored.write_bytes(good[:-100] + bytes(100))
    device = Device(cluster, bare, archive, "second", await cluster.code())
    device.start()

    async def is_told() -> dict[str, Any] | None:
        found = await cluster.device("second")
        install = (found or {}).get("engine_install") or {}
        is_wrong = install.get("error_code") == "engine_digest_wrong"
        return found if found and is_wrong and "thrown away" in found["reason"] else None

    seen = await eventually(is_told, within_s=SLOW_S, what="the wrong digest is told")
    assert seen["state"] == "unusable"
    assert not device.fetched_bytes()
    assert not list(device.engines.glob("*.new"))
    stored.write_bytes(good)
    await cluster.device_state("second", "ready", within_s=SLOW_S)


async def test_an_engine_that_its_user_chose_is_left_alone(
    cluster: Cluster, engine: EngineFacts, tmp_path: Path
) -> None:
    folder = tmp_path / "chosen"
    folder.mkdir()
    script = folder / "llama-server"
    script.write_text('#!/bin/sh\necho "version: 1 (abcdef1)"\n')
    script.chmod(0o755)
    (folder / "ggml-rpc-server").symlink_to(engine.rpc_server)
    await cluster.supervisor()
    await cluster.agent("own", "--engine", str(folder), wait=False)
    seen = await cluster.device_state("own", "incompatible")
    await asyncio.sleep(3)  # longer than the supply takes to look
    seen = await cluster.device_state("own", "incompatible")
    assert seen["engine_install"] is None
    assert "install the same build" in seen["reason"]
