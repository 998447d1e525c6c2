"""Taking offered engines: beside the one in use, proven by the real programs, and back again."""

import asyncio
import contextlib
import hashlib
import shutil
import tarfile
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agents import engine as engines
from agents.contract import (
    EngineFacts,
    EngineInstall,
    EngineOffer,
    InstallState,
    RpcServerSpec,
    WorkerState,
)
from agents.current_engine import CurrentEngine, choose
from agents.engine_fetch import Fetcher
from agents.engine_install import EngineInstaller
from agents.errors import BadMessage, EngineFixed, EngineInUse, EngineMissing, EngineUnusable
from agents.rpc_server import RpcServer

ENVIRON = engines.inherited()


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def build(folder: Path, real: EngineFacts, commit: str, number: int = 1, rpc: str = "") -> Path:
    """Programs that say they are another build, and are the real ones otherwise."""
    says = f'echo "version: 1.0.0 (build {number}, commit {commit})"'
    script(
        folder / "llama-server",
        f'case "$1" in --version) {says};; *) exec "{real.llama_server}" "$@";; esac',
    )
    script(folder / "ggml-rpc-server", rpc or f'exec "{real.rpc_server}" "$@"')
    return folder


class Device:
    """An agent's engines, with a main host that is a folder of archives."""

    def __init__(self, folder: Path, engine: EngineFacts | None, real: EngineFacts) -> None:
        self.folder = folder
        self.real = real
        self.own_engines = folder / "engines"
        self.current = CurrentEngine(engine)
        self.is_serving = False
        self.told = 0
        self.fetched: list[str] = []
        self.before_fetching: Callable[[], None] = lambda: None
        fetcher = cast(Fetcher, SimpleNamespace(fetch=self._fetch))
        self.installer = EngineInstaller(
            self.own_engines, fetcher, self.current, ENVIRON, self._idle, self._tell
        )

    def _tell(self) -> None:
        self.told += 1

    async def _fetch(
        self, offer: EngineOffer, part: Path, _: ThreadPoolExecutor, tell: Callable[[int], None]
    ) -> None:
        self.fetched.append(offer.archive)
        self.before_fetching()
        await asyncio.sleep(0)
        tell(offer.size_bytes)
        shutil.copy(self.folder / offer.archive, part)

    @contextlib.asynccontextmanager
    async def _idle(self) -> AsyncIterator[None]:
        if self.is_serving:
            raise EngineInUse("it serves")
        yield

    def offer(self, name: str, commit: str, number: int = 1, rpc: str = "") -> EngineOffer:
        """An archive of programs that say they are of that commit."""
        source = build(self.folder / f"source-{commit}", self.real, commit, number, rpc)
        path = self.folder / f"llama-{name}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(source, f"llama-{name}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return EngineOffer(name, path.name, digest, path.stat().st_size, "ubuntu-x64")

    async def settled(self, offer: EngineOffer) -> EngineInstall:
        await self.installer.offer(offer)
        async with asyncio.timeout(60):
            while True:
                install = self.installer.status()
                assert install is not None
                if install.state in (InstallState.READY, InstallState.FAILED):
                    return install
                await asyncio.sleep(0.02)

    @property
    def build(self) -> str:
        assert self.current.engine is not None
        return self.current.engine.build


@pytest.fixture
async def device(tmp_path: Path, engine: EngineFacts) -> AsyncIterator[Device]:
    """One that uses the engine of the tests, found in the environment."""
    made = Device(tmp_path, replace(engine, source="environment"), engine)
    yield made
    await made.installer.close()


async def test_an_offer_is_fetched_proven_and_used_only_when_told(
    device: Device, engine: EngineFacts
) -> None:
    install = await device.settled(device.offer("b7", "7777777", 7))
    assert install.state is InstallState.READY, install
    assert device.build == engine.build, "the one in use is as it was"
    chosen = await choose(ENVIRON, explicit=None, own_engines=device.own_engines)
    assert chosen.engine is not None
    assert chosen.engine.build == engine.build, "a restart does not take what is only ready"

    used = await device.installer.use("b7")
    assert (used.build, used.release, used.variant) == ("7777777", "b7", "ubuntu-x64")
    assert used.folder == install.folder
    assert device.build == "7777777"
    assert device.current.devices, "with what it offers"
    chosen = await choose(ENVIRON, explicit=None, own_engines=device.own_engines)
    assert chosen.engine is not None
    assert chosen.engine.release == "b7", "a restart goes on with it"


async def test_going_back_is_the_same_call_and_fetches_nothing(
    device: Device, engine: EngineFacts
) -> None:
    await device.settled(device.offer("b7", "7777777", 7))
    await device.installer.use("b7")
    assert (await device.installer.use(engine.build)).folder == engine.folder
    assert device.build == engine.build
    assert (await device.installer.use("b7")).build == "7777777"
    assert len(device.fetched) == 1


async def test_only_the_one_in_use_and_the_one_before_are_kept(device: Device) -> None:
    for name, commit, number in (("b7", "7777777", 7), ("b8", "8888888", 8), ("b9", "9999999", 9)):
        assert (await device.settled(device.offer(name, commit, number))).state == "ready"
        await device.installer.use(name)
    kept = {path.name for path in device.own_engines.iterdir() if path.is_dir()}
    assert kept == {"b8-ubuntu-x64", "b9-ubuntu-x64"}


async def test_what_is_there_already_is_not_fetched(device: Device, engine: EngineFacts) -> None:
    in_use = EngineOffer(engine.build, "llama-x.tar.gz", "0" * 64, 1 << 20)
    install = await device.settled(in_use)
    assert (install.state, install.folder) == (InstallState.READY, engine.folder)
    offer = device.offer("b7", "7777777", 7)
    await device.settled(offer)
    again = await device.installer.offer(offer)
    assert again.state is InstallState.READY
    assert len(device.fetched) == 1


async def test_the_question_whether_a_build_is_there_needs_no_archive(
    device: Device, engine: EngineFacts
) -> None:
    install = await device.settled(EngineOffer("b9", "", "", 0))
    assert (install.state, install.error_code) == (InstallState.FAILED, "engine_not_fetched")
    await device.settled(device.offer("b7", "7777777", 7))
    await device.installer.use("b7")
    assert (await device.settled(EngineOffer(engine.build, "", "", 0))).state == "ready"


@pytest.mark.parametrize("source", ["setting", "LLAMA_CPP_BIN"])
async def test_an_engine_that_somebody_chose_is_not_replaced(
    tmp_path: Path, engine: EngineFacts, source: str
) -> None:
    device = Device(tmp_path, replace(engine, source=source), engine)
    install = await device.settled(device.offer("b7", "7777777", 7))
    assert (install.state, install.error_code) == (InstallState.FAILED, "engine_fixed")
    assert engine.folder in install.detail
    assert not device.fetched
    with pytest.raises(EngineFixed):
        await device.installer.use("b7")
    await device.installer.close()


async def test_a_build_that_does_not_answer_is_not_kept(
    device: Device, engine: EngineFacts
) -> None:
    offer = device.offer("b7", "7777777", 7, rpc="echo broken here; exit 3")
    install = await device.settled(offer)
    assert (install.state, install.error_code) == (InstallState.FAILED, "engine_unusable")
    assert "broken here" in install.detail
    with pytest.raises(EngineMissing):
        await device.installer.use("b7")
    assert device.build == engine.build


async def test_programs_of_another_build_than_offered_are_refused(device: Device) -> None:
    for name in ("b8", "1234567"):
        install = await device.settled(replace(device.offer("b7", "7777777", 7), build=name))
        assert (install.state, install.error_code) == (InstallState.FAILED, "engine_unusable")
        assert f"should hold llama.cpp {name}" in install.detail


async def test_nothing_changes_while_it_serves(device: Device, engine: EngineFacts) -> None:
    device.is_serving = True
    assert (await device.settled(device.offer("b7", "7777777", 7))).state == "ready"
    with pytest.raises(EngineInUse):
        await device.installer.use("b7")
    assert device.build == engine.build
    device.is_serving = False
    assert (await device.installer.use("b7")).release == "b7"


async def test_an_engine_that_broke_since_it_was_proven_is_not_taken(
    device: Device, engine: EngineFacts
) -> None:
    install = await device.settled(device.offer("b7", "7777777", 7))
    script(Path(install.folder) / "ggml-rpc-server", "exit 1")
    with pytest.raises(EngineUnusable):
        await device.installer.use("b7")
    assert device.build == engine.build


async def test_a_full_disk_is_told_before_anything_is_fetched(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(device.folder)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    install = await device.settled(device.offer("b7", "7777777", 7))
    assert (install.state, install.error_code) == (InstallState.FAILED, "disk_full")
    assert "has 1 MiB left" in install.detail
    assert not device.fetched


async def test_what_is_left_of_other_attempts_is_removed_and_ones_own_is_not(
    device: Device,
) -> None:
    offer = device.offer("b7", "7777777", 7)
    device.own_engines.mkdir()
    (device.own_engines / "other.part").write_bytes(b"x")
    own = device.own_engines / f"{offer.sha256[:32]}.part"
    own.write_bytes(b"x")
    build(device.own_engines / "b6-ubuntu-x64.new", device.real, "6666666")
    seen: list[set[str]] = []
    device.before_fetching = lambda: seen.append({p.name for p in device.own_engines.iterdir()})
    assert (await device.settled(offer)).state == "ready"
    assert seen == [{own.name}]
    assert not own.exists()


async def test_a_failed_offer_begins_again_when_it_is_repeated(device: Device) -> None:
    offer = device.offer("b7", "7777777", 7)
    stored = device.folder / offer.archive
    content = stored.read_bytes()
    stored.write_bytes(content[:100])
    install = await device.settled(offer)
    assert (install.state, install.error_code) == (InstallState.FAILED, "engine_not_fetched")
    stored.write_bytes(content)
    assert (await device.settled(offer)).state == "ready"
    assert device.told >= 4, "heartbeats do not wait with news"


@pytest.mark.parametrize("name", ["", "../b7", "b7/x", ".hidden"])
async def test_names_that_lead_elsewhere_are_refused(device: Device, name: str) -> None:
    with pytest.raises(BadMessage):
        await device.installer.offer(EngineOffer(name, "a.tar.gz", "0" * 64, 1))


async def test_a_device_without_any_engine_takes_one(tmp_path: Path, engine: EngineFacts) -> None:
    device = Device(tmp_path, None, engine)
    assert (await device.settled(device.offer("b7", "7777777", 7))).state == "ready"
    assert (await device.installer.use("b7")).release == "b7"
    assert device.current.devices
    await device.installer.close()


async def test_an_rpc_server_that_runs_keeps_its_engine(
    tmp_path: Path, engine: EngineFacts
) -> None:
    current = CurrentEngine(engine)
    server = RpcServer(current, tmp_path, ENVIRON, threads=1)
    other = engines.at_folder(build(tmp_path / "other", engine, "7777777"), "main host")
    assert other is not None
    try:
        await server.apply(RpcServerSpec(1, "127.0.0.1"))
        with pytest.raises(EngineInUse, match="launch 1 is"):
            async with server.idle():
                pytest.fail("it is not idle")
        await server.remove(1)
        async with server.idle():
            current.take(other, [])
            late = asyncio.create_task(server.apply(RpcServerSpec(2, "127.0.0.1")))
            await asyncio.sleep(0.1)
            assert server.status().state is WorkerState.STOPPED, "it waits for the change"
        assert (await late).argv[0] == other.rpc_server
    finally:
        await server.close()
