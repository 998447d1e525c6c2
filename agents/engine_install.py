"""Takes engines that the main host offers: fetched and proven beside the one in use.

Nothing here touches a running rpc-server. Only :meth:`EngineInstaller.use` changes what the next
one will be, and only while there is none.
"""

import asyncio
import logging
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agents import engine as engines
from agents.contract import EngineFacts, EngineInstall, EngineOffer, InstallState
from agents.current_engine import CurrentEngine, offered
from agents.engine_fetch import Fetcher, quiet_thread
from agents.engine_unpack import unpack
from agents.errors import (
    BadMessage,
    DiskFull,
    EngineFixed,
    EngineMissing,
    EngineNotFetched,
    EngineUnusable,
    ProjectError,
)

log = logging.getLogger(__name__)

Idle = Callable[[], AbstractAsyncContextManager[None]]
"""Holds off every rpc-server for as long as the block takes; raises ``EngineInUse``."""

_ROOM_FACTOR: Final = 4
"""Archives unpack to about three times their size."""
_ROOM_BYTES: Final = 64 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,120}")


@dataclass(frozen=True, slots=True)
class _Work:
    offer: EngineOffer
    task: asyncio.Task[None]


class EngineInstaller:
    """What became of the last offer, and which engine is used."""

    def __init__(
        self,
        folder: Path,
        fetcher: Fetcher,
        current: CurrentEngine,
        inherited: Mapping[str, str],
        idle: Idle,
        tell: Callable[[], None],
    ) -> None:
        """``tell`` is called when there is news that heartbeats should not wait with."""
        self._folder = folder
        self._fetcher = fetcher
        self._current = current
        self._inherited = inherited
        self._idle = idle
        self._tell = tell
        self._threads = quiet_thread()
        self._stop = threading.Event()
        self._one_at_a_time = asyncio.Lock()
        self._work: _Work | None = None
        self._install: EngineInstall | None = None

    def status(self) -> EngineInstall | None:
        """Of the last offer since this agent began; None: there was none."""
        return self._install

    async def offer(self, offer: EngineOffer) -> EngineInstall:
        """Begin to fetch and prove an engine; an offer that is worked on, or done, goes on so.

        Raises:
            BadMessage: The offer has names that no file can have.
        """
        names = (offer.build, offer.archive, offer.variant)
        if not offer.build or not all(_NAME.fullmatch(name) for name in names if name):
            raise BadMessage(
                f"{offer.build!r} or {offer.archive!r} cannot be the name of an engine"
            )
        if self._work is not None and self._work.offer == offer and self._goes_on():
            assert self._install is not None
            return self._install
        await self._end_work()
        begun = self._state(offer, InstallState.FETCHING, 0)
        self._become(begun)
        self._work = _Work(offer, asyncio.create_task(self._take(offer)))
        return begun

    def _goes_on(self) -> bool:
        install = self._install
        if install is None or install.state is InstallState.FAILED:
            return False
        return install.state is not InstallState.READY or Path(install.folder).is_dir()

    async def use(self, build: str) -> EngineFacts:
        """Take a build that is here, proven once more; survives a restart of the agent.

        Raises:
            EngineFixed: Somebody on this device chose the engine.
            EngineInUse: An rpc-server of ours is up.
            EngineMissing: That build is not here.
            EngineUnusable, EngineWithoutRpc: It does not prove itself; nothing was changed.
        """
        async with self._one_at_a_time:
            now = self._current.engine
            if now is not None and not now.problem and engines.is_called(now, build):
                return now
            self._refuse_fixed()
            found = await self._found(build)
            if found is None:
                raise EngineMissing(f"llama.cpp {build} is not on this device; offer it first")
            if found.problem:
                raise EngineUnusable(found.problem)
            devices = await offered(found, self._inherited)
            async with self._idle():
                before = now.folder if now is not None else ""
                await asyncio.to_thread(self._remember, engines.InUse(found.folder, before))
                self._current.take(found, devices)
            log.info("engine.changed", extra={"folder": found.folder, "before": before})
            self._tell()
            await self._quietly(self._remove_old)
            return found

    async def close(self) -> None:
        """End what is under way; what was fetched stays."""
        self._stop.set()
        await self._end_work()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _end_work(self) -> None:
        if self._work is not None:
            self._work.task.cancel()
            await asyncio.gather(self._work.task, return_exceptions=True)
            self._work = None

    def _refuse_fixed(self) -> None:
        if self._current.is_explicit and self._current.engine is not None:
            engine = self._current.engine
            how = "--engine" if engine.source == "setting" else "LLAMA_CPP_BIN"
            raise EngineFixed(
                f"{how} on this device says {engine.folder}, which the main host does not replace; "
                "start its agent without that, or install the build there"
            )

    # -- taking an offer -----------------------------------------------------------------------

    async def _take(self, offer: EngineOffer) -> None:
        try:
            folder = await self._have(offer)
        except ProjectError as exc:
            self._fail(offer, exc.code, str(exc))
        except OSError as exc:
            code = EngineNotFetched.code
            self._fail(offer, code, f"{offer.build} cannot be kept here: {exc}")
        except Exception as exc:  # a bug must not look like a transfer that goes on
            log.exception("engine.bug")
            self._fail(offer, EngineNotFetched.code, f"internal error: {exc!r}; please report it")
        else:
            size = offer.size_bytes
            self._become(EngineInstall(offer.build, InstallState.READY, size, size, folder))

    async def _have(self, offer: EngineOffer) -> str:
        """Folder of the programs, fetched and proven now or before."""
        now = self._current.engine
        if now is not None and not now.problem and engines.is_called(now, offer.build):
            return now.folder
        self._refuse_fixed()
        here = await self._found(offer.build)
        is_other = here is not None and here.variant and offer.variant not in ("", here.variant)
        if here is not None and not here.problem and not is_other:
            return here.folder
        if not offer.archive:
            raise EngineNotFetched(f"llama.cpp {offer.build} is not on this device")
        await self._quietly(self._make_room, offer)
        part = self._folder / f"{offer.sha256[:32]}.part"
        await self._fetcher.fetch(offer, part, self._threads, lambda n: self._progress(offer, n))
        self._become(self._state(offer, InstallState.PROVING, offer.size_bytes))
        return await self._prove(offer, part)

    async def _prove(self, offer: EngineOffer, part: Path) -> str:
        """Unpack it, run its programs, and only then give it its name."""
        name = f"{offer.build}-{offer.variant}" if offer.variant else offer.build
        half, whole = self._folder / f"{name}{engines.HALF_SUFFIX}", self._folder / name
        await self._quietly(unpack, part, half, self._stop)
        programs = await asyncio.to_thread(engines.programs_folder, half)
        if programs is None:
            raise EngineUnusable(f"{offer.archive} holds no llama.cpp program")
        release = offer.build if engines.is_release(offer.build) else ""
        engines.write_names(programs, engines.Names(release, offer.variant, offer.build))
        found = engines.at_folder(programs, "main host")
        assert found is not None
        found = await engines.inspect(found, self._inherited)
        await self._refuse_other(found, offer)
        await self._quietly(self._keep, half, whole)
        part.unlink(missing_ok=True)
        return str(whole / programs.relative_to(half))

    async def _refuse_other(self, found: EngineFacts, offer: EngineOffer) -> None:
        if found.problem:
            raise EngineUnusable(
                f"llama.cpp {offer.build} was fetched and does not work on this device: "
                f"{found.problem}"
            )
        told = found.build
        if engines.is_release(offer.build):
            told = await engines.release_told(found, self._inherited) or offer.build
        if told and not engines.is_called(replace(found, build=told, release=told), offer.build):
            raise EngineUnusable(
                f"{offer.archive} should hold llama.cpp {offer.build}, and its programs say that "
                f"they are {told}"
            )

    def _keep(self, half: Path, whole: Path) -> None:
        """The agent's next start must not take it because it is the newest."""
        now = self._current.engine
        if now is not None and not (self._folder / engines.IN_USE_FILE).exists():
            self._remember(engines.InUse(now.folder))
        shutil.rmtree(whole, ignore_errors=True)
        half.rename(whole)

    def _make_room(self, offer: EngineOffer) -> None:
        """Remove what is left of other offers, and see that there is room for this one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name.endswith(engines.HALF_SUFFIX) and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix == ".part" and path.stem != offer.sha256[:32]:
                path.unlink(missing_ok=True)
        free_bytes = shutil.disk_usage(self._folder).free
        needed_bytes = offer.size_bytes * _ROOM_FACTOR + _ROOM_BYTES
        if free_bytes < needed_bytes:
            raise DiskFull(
                f"llama.cpp {offer.build} needs {needed_bytes >> 20} MiB to be fetched and "
                f"unpacked, and {self._folder} has {free_bytes >> 20} MiB left; free space there"
            )

    # -- what is here --------------------------------------------------------------------------

    async def _found(self, build: str) -> EngineFacts | None:
        """That build, inspected, among those unpacked here and the one that was used before."""
        told = engines.InUse.read(self._folder / engines.IN_USE_FILE)
        folders = engines.installed(self._folder)
        if told is not None:
            folders += [Path(folder) for folder in (told.folder, told.before) if folder]
        broken = None
        for folder in dict.fromkeys(folders):
            candidate = engines.at_folder(folder, "main host")
            if candidate is None or (engines.is_release(build) and candidate.release != build):
                continue
            inspected = await engines.inspect(candidate, self._inherited)
            if engines.is_called(inspected, build):
                if not inspected.problem:
                    return inspected
                broken = broken or inspected
        return broken

    def _remember(self, in_use: engines.InUse) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            in_use.write(self._folder / engines.IN_USE_FILE)
        except OSError as exc:
            raise DiskFull(
                f"cannot note in {self._folder} which engine to use ({exc.strerror}); free space "
                "on this device"
            ) from exc

    def _remove_old(self) -> None:
        """All that are neither in use nor the one before, which is the way back."""
        told = engines.InUse.read(self._folder / engines.IN_USE_FILE)
        if told is None:
            return
        fetched = self._install.folder if self._install else ""
        kept = [Path(folder) for folder in (told.folder, told.before, fetched) if folder]
        for path in self._folder.iterdir():
            is_kept = path.suffix == engines.HALF_SUFFIX or not path.is_dir()
            if not is_kept and not any(folder.is_relative_to(path) for folder in kept):
                log.info("engine.removed", extra={"folder": str(path)})
                shutil.rmtree(path, ignore_errors=True)

    async def _quietly(self, work: Callable[..., None], *arguments: object) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, work, *arguments)

    # -- telling -------------------------------------------------------------------------------

    def _state(self, offer: EngineOffer, state: InstallState, done_bytes: int) -> EngineInstall:
        return EngineInstall(offer.build, state, done_bytes, offer.size_bytes)

    def _progress(self, offer: EngineOffer, done_bytes: int) -> None:
        """Told with the next heartbeat that is due."""
        self._install = self._state(offer, InstallState.FETCHING, done_bytes)

    def _fail(self, offer: EngineOffer, code: str, detail: str) -> None:
        done_bytes = self._install.done_bytes if self._install else 0
        failed = self._state(offer, InstallState.FAILED, done_bytes)
        self._become(replace(failed, error_code=code, detail=detail))

    def _become(self, install: EngineInstall) -> None:
        level = logging.WARNING if install.state is InstallState.FAILED else logging.INFO
        extra = {"build": install.build, "state": str(install.state), "reason": install.detail}
        log.log(level, "engine.install", extra=extra)
        self._install = install
        self._tell()
