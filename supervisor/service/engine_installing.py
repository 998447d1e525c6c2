"""Installing builds of llama.cpp on the shelf, for the devices of the cluster and this host."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from agents import engine as engines
from agents.contract import DeviceFacts, EngineFacts
from agents.errors import EngineInUse
from supervisor.core.engine_builds import (
    Asset,
    Release,
    StoredArchive,
    build_number,
    checked_build,
    named,
    needed,
)
from supervisor.core.entities import ByteCount, FrozenModel, Seconds
from supervisor.errors import EngineChangeRunning, ReleaseUnknown
from supervisor.ports import EngineStock, Fetched, ReleaseSource

log = logging.getLogger(__name__)

UNPACKED_PER_ARCHIVE: Final = 4
"""Archives unpack to about three times their size, and some are packed anew."""
TELL_EVERY_S: Final = 0.25
RATE_OVER_S: Final = 5.0

FETCHING, PROVING, WAITING = "fetching", "proving", "waiting"


class InstallProgress(FrozenModel):
    """How far an installation is."""

    step: str
    build: str = ""
    archive: str = ""
    done_bytes: ByteCount = 0
    total_bytes: ByteCount = 0
    bytes_per_s: ByteCount = 0
    eta_s: Seconds | None = None


class InstalledBuild(FrozenModel):
    """What an installation came to."""

    build: str
    fetched: tuple[StoredArchive, ...] = ()
    present: tuple[str, ...] = ()
    """Variants that were on the shelf already."""
    notes: tuple[str, ...] = ()
    """What somebody should know, in sentences."""


class BuildView(FrozenModel):
    """A build on the shelf, and who runs it."""

    build: str
    commit: str = ""
    is_release: bool
    runs_here: bool
    """Whether this host has its programs unpacked, and they were proven."""
    on_main_host: bool
    devices: tuple[str, ...]
    """That run it."""
    archives: tuple[StoredArchive, ...]


Tell = Callable[[InstallProgress], None]


class EngineInstaller:
    """Fills and empties the shelf, one request at a time."""

    def __init__(
        self,
        source: ReleaseSource,
        stock: EngineStock,
        devices: Callable[[], Iterable[DeviceFacts]],
        main_engine: Callable[[], EngineFacts | None],
        is_changing: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``devices`` gives the facts of all that joined and are known.

        ``is_changing`` says whether the cluster is being moved to another build now.
        """
        self._source = source
        self._stock = stock
        self._devices = devices
        self._main_engine = main_engine
        self._is_changing = is_changing
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self._installing = ""

    @property
    def is_wanted_here(self) -> bool:
        """Whether this main host has no engine that works, so that any is an improvement."""
        engine = self._main_engine()
        return engine is None or bool(engine.problem)

    async def install(
        self, build: str | None, variants: Sequence[str], tell: Tell
    ) -> InstalledBuild:
        """Fetch what is missing of a build, and prove it.

        Args:
            build: None for the newest release.
            variants: Empty for what the cluster's devices and this host need.
            tell: Called a few times a second.

        Raises:
            ReleaseUnknown: No such build or variant, or nothing of it suits anybody here.
            ReleaseSiteUnreachable, DiskFull: What was fetched is kept for the next attempt.
            EngineDigestWrong, EngineUnusable, EngineWithoutRpc, EngineNotFetched: An archive was
                refused, and nothing of it is left.
        """
        wanted = None if build is None else checked_build(build)
        release = await self._source.release(wanted)
        if self._one_at_a_time.locked():
            tell(InstallProgress(step=WAITING, build=release.build))
        async with self._one_at_a_time:
            self._stock.begin()
            self._installing = release.build
            try:
                return await self._install(release, variants, tell)
            finally:
                self._installing = ""

    async def _install(
        self, release: Release, variants: Sequence[str], tell: Tell
    ) -> InstalledBuild:
        assets, notes = self._wanted(release, variants)
        fetched: list[StoredArchive] = []
        present: list[str] = []
        for asset in assets:
            if self._stock.has(asset):
                present.append(asset.variant.name)
                continue
            stored, said = await self._one(release, asset, tell)
            fetched.append(stored)
            notes += said
        log.info(
            "engine.installed",
            extra={"build": release.build, "fetched": len(fetched), "present": len(present)},
        )
        return InstalledBuild(
            build=release.build, fetched=tuple(fetched), present=tuple(present), notes=tuple(notes)
        )

    def _wanted(self, release: Release, variants: Sequence[str]) -> tuple[list[Asset], list[str]]:
        if variants:
            return [named(release, variant) for variant in dict.fromkeys(variants)], []
        assets: dict[str, Asset] = {}
        notes: list[str] = []
        for facts in (self._stock.own_facts(), *self._devices()):
            try:
                asset = needed(release, facts)
                assets[asset.variant.name] = asset
            except ReleaseUnknown as exc:
                notes.append(str(exc))
        if not assets:
            raise ReleaseUnknown(notes[0])
        return list(assets.values()), notes

    async def _one(
        self, release: Release, asset: Asset, tell: Tell
    ) -> tuple[StoredArchive, list[str]]:
        spare_bytes = UNPACKED_PER_ARCHIVE * asset.size_bytes
        fetched = await self._fetch(asset, spare_bytes, tell)
        notes = [] if fetched.is_verified else [_without_digest(asset, fetched)]
        runtime = None
        for file in release.runtimes:
            if file.variant.name == asset.variant.name:
                spare_bytes = UNPACKED_PER_ARCHIVE * (asset.size_bytes + file.size_bytes)
                runtime = await self._fetch(file, spare_bytes, tell)
                notes += [] if runtime.is_verified else [_without_digest(file, runtime)]
        tell(InstallProgress(step=PROVING, build=asset.build, archive=asset.name))
        return await self._stock.take(asset, fetched, runtime), notes

    async def _fetch(self, asset: Asset, spare_bytes: int, tell: Tell) -> Fetched:
        meter = _Meter(asset, tell, self._clock)
        folder = self._stock.incoming
        return await self._source.fetch(asset, folder, meter.note, spare_bytes=spare_bytes)

    # -- what there is -----------------------------------------------------------------------

    def builds(self) -> list[BuildView]:
        """All of the shelf, newest first."""
        stored, devices = self._stock.archives(), list(self._devices())
        main, found = self._main_engine(), []
        for build in self._stock.builds():
            archives = tuple(archive for archive in stored if archive.build == build)
            users = [d.name for d in devices if d.engine and engines.is_called(d.engine, build)]
            commits = [archive.commit for archive in archives if archive.commit]
            found.append(
                BuildView(
                    build=build,
                    commit=next(iter(commits), ""),
                    is_release=build_number(build) is not None,
                    runs_here=self._stock.folder(build) is not None,
                    on_main_host=main is not None and engines.is_called(main, build),
                    devices=tuple(sorted(users)),
                    archives=archives,
                )
            )
        return found

    def remove(self, build: str) -> tuple[str, ...]:
        """Remove a build that nobody uses; returns the archives that are gone.

        Raises:
            EngineInUse: Somebody runs it, or it is being installed.
            EngineChangeRunning: The cluster may need it in a moment, or go back to it.
            ReleaseUnknown: It is not on the shelf.
        """
        name = f"b{build}" if build.isascii() and build.isdecimal() else build
        if self._installing == name:
            raise EngineInUse(f"build {name} is being installed; wait for its end, or end that")
        if self._is_changing():
            raise EngineChangeRunning(
                f"the cluster is being moved to another build, so {name} stays until that has"
                " ended; try again then"
            )
        for view in self.builds():
            users = [*(["the main host"] if view.on_main_host else []), *view.devices]
            if view.build == name and users:
                raise EngineInUse(
                    f"build {name} is run by {', '.join(users)}; move them to another with"
                    " 'supervisor engine use' first"
                )
        return self._stock.remove(name)


def _without_digest(asset: Asset, fetched: Fetched) -> str:
    return (
        f"the release site tells no digest of {asset.name}, as of older releases, so nobody checked"
        f" it; what came has the SHA-256 {fetched.sha256}"
    )


class _Meter:
    """Tells of a download a few times a second, with its rate over the last seconds."""

    def __init__(self, asset: Asset, tell: Tell, clock: Callable[[], float]) -> None:
        self._asset = asset
        self._tell = tell
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()
        self._told_s = float("-inf")

    def note(self, done_bytes: int, total_bytes: int) -> None:
        now_s = self._clock()
        if now_s - self._told_s < TELL_EVERY_S and done_bytes < total_bytes:
            return
        self._told_s = now_s
        if self._seen and done_bytes < self._seen[-1][1]:
            self._seen.clear()  # it had to begin anew
        self._seen.append((now_s, done_bytes))
        while now_s - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        first_s, first_bytes = self._seen[0]
        passed_s = now_s - first_s
        rate = (done_bytes - first_bytes) / passed_s if passed_s > 0 else 0.0
        self._tell(
            InstallProgress(
                step=FETCHING,
                build=self._asset.build,
                archive=self._asset.name,
                done_bytes=done_bytes,
                total_bytes=total_bytes,
                bytes_per_s=int(rate),
                eta_s=(total_bytes - done_bytes) / rate if rate > 0 else None,
            )
        )
