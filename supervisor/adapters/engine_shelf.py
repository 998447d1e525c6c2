"""Engines that this main host has for its devices, and for itself: archives, and proven programs.

``DATA/engine-archives`` has the archives, each with a note of JSON that is written last, so that an
archive without one is none. ``DATA/engines/BUILD-VARIANT`` has this host's own programs.
"""

import asyncio
import errno
import json
import logging
import platform
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from agents import accelerators, facts, privatefile
from agents import engine as engines
from agents.contract import DeviceFacts, EngineFacts, EngineOffer
from agents.errors import DiskFull, EngineUnusable, EngineWithoutRpc
from supervisor.adapters import engine_archives, engine_proof
from supervisor.adapters.engine_packing import files_of
from supervisor.adapters.partial_file import digest_of
from supervisor.core.engine_builds import (
    Asset,
    StoredArchive,
    is_build,
    machine_word,
    newest_first,
    offered,
    read_variant,
    suits,
)
from supervisor.errors import ReleaseUnknown
from supervisor.ports import Fetched

log = logging.getLogger(__name__)
T = TypeVar("T")

RELEASE: Final = "release"
PACKED: Final = "packed"

_STORED: Final = TypeAdapter(StoredArchive)
_NOTE: Final = ".json"
_HALF: Final = "half-"
"""Of folders in which something is unpacked."""


class EngineShelf:
    """The shelf of one data folder. Two processes must not fill it at once."""

    def __init__(self, folder: Path, inherited: Mapping[str, str]) -> None:
        self._archives = folder / "engine-archives"
        self._engines = folder / "engines"
        self._inherited = inherited
        self._platform = facts.platform_name()
        self._machine = platform.machine()

    # -- what devices are offered ------------------------------------------------------------

    def builds(self) -> tuple[str, ...]:
        """Newest first."""
        stored = self.archives()
        return newest_first((a.build for a in stored), {a.build: a.date for a in stored})

    def offer(self, build: str, facts: DeviceFacts) -> EngineOffer:
        """The archive for a device.

        Raises:
            ReleaseUnknown: Nothing for its platform; its sentence says what to do.
        """
        return offered(build, self.archives(), facts).offer

    def path(self, archive: str) -> Path | None:
        """Where an archive is, by its name; None: there is none."""
        is_known = any(stored.archive == archive for stored in self.archives())
        return self._archives / archive if is_known else None

    def folder(self, build: str) -> Path | None:
        """This host's own programs of that build, unpacked and proven."""
        own = self.own_facts()
        of_build = [stored for stored in self.archives() if stored.build == build]
        for stored in of_build:
            if stored.kind == PACKED and engines.at_folder(Path(stored.folder), ""):
                return Path(stored.folder)
        variants = (read_variant(stored.variant) for stored in of_build)
        for variant in suits((v for v in variants if v is not None), own):
            found = engines.programs_folder(self._unpacked(build, variant.name))
            if found is not None and (found / engines.FACTS_FILE).is_file():
                return found
        return None

    def own_facts(self) -> DeviceFacts:
        """Of this host, as far as they tell which engine suits it."""
        return DeviceFacts(
            agent_id="",
            name="this host",
            platform=self._platform,
            machine=self._machine,
            accelerators=accelerators.found(self._platform, self._machine),
        )

    # -- what is on it -----------------------------------------------------------------------

    @property
    def incoming(self) -> Path:
        """The folder for archives that are fetched."""
        return self._archives

    def begin(self) -> None:
        """Make the folders, and remove what an earlier run of us left half done.

        Raises:
            DiskFull: They cannot be made.
        """
        try:
            self._archives.mkdir(parents=True, exist_ok=True)
            self._engines.mkdir(exist_ok=True)
        except OSError as exc:
            raise DiskFull(f"{self._archives} cannot be made: {exc.strerror}") from exc
        for left in self._archives.glob(f"{_HALF}*"):
            engine_archives.clear(left)

    def archives(self) -> tuple[StoredArchive, ...]:
        """All that are whole, by name."""
        found = []
        for note in sorted(self._archives.glob(f"llama-*{_NOTE}")):
            try:
                stored = _STORED.validate_json(note.read_bytes())
                is_whole = (self._archives / stored.archive).stat().st_size == stored.size_bytes
            except (OSError, ValidationError):
                continue
            if is_whole and f"{stored.archive}{_NOTE}" == note.name:
                found.append(stored)
        return tuple(found)

    def has(self, asset: Asset) -> bool:
        """Whether it is there, and of this host's own programs also unpacked."""
        is_there = any(
            (stored.build, stored.variant) == (asset.build, asset.variant.name)
            for stored in self.archives()
        )
        root = self._unpacked(asset.build, asset.variant.name)
        return is_there and (not self._is_own(asset) or engines.programs_folder(root) is not None)

    def remove(self, build: str) -> tuple[str, ...]:
        """Remove a build and what was fetched of it; returns the archives that are gone.

        Raises:
            ReleaseUnknown: There is none of that name.
        """
        gone = [stored for stored in self.archives() if stored.build == build]
        parts = list(self._archives.glob(f"*llama-{build}-*.part*")) if is_build(build) else []
        if not gone and not parts:
            known = ", ".join(self.builds()) or "empty"
            raise ReleaseUnknown(
                f"build {build[:60]} is not on the shelf ({known}), so it cannot be removed"
            )
        for stored in gone:
            # The note first: without it the rest is none.
            (self._archives / f"{stored.archive}{_NOTE}").unlink(missing_ok=True)
            (self._archives / stored.archive).unlink(missing_ok=True)
            if stored.kind == RELEASE:
                self._discard(self._unpacked(stored.build, stored.variant))
        for part in parts:
            part.unlink(missing_ok=True)
        log.info("engine.removed", extra={"build": build, "archives": len(gone)})
        return tuple(stored.archive for stored in gone)

    # -- releases ----------------------------------------------------------------------------

    async def take(self, asset: Asset, fetched: Fetched, runtime: Fetched | None) -> StoredArchive:
        """Prove an archive and keep it; ``runtime`` is packed together with it.

        Raises:
            EngineNotFetched: It is no archive, or holds what no archive of an engine holds.
            EngineUnusable: Its programs are for another machine, or do not run here, where they
                should.
            EngineWithoutRpc: They cannot serve.
            DiskFull: There is no room. After each of them nothing is left of it.
        """
        half = Path(tempfile.mkdtemp(prefix=_HALF, dir=self._archives))
        stop = threading.Event()
        try:
            return await self._take(asset, fetched, runtime, half, stop)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                raise DiskFull(f"{self._archives} is full; free some space") from exc
            raise
        finally:
            for part in (fetched, runtime):
                if part is not None:
                    part.path.unlink(missing_ok=True)
            await _in_thread(lambda: engine_archives.clear(half), stop)

    async def _take(
        self,
        asset: Asset,
        fetched: Fetched,
        runtime: Fetched | None,
        half: Path,
        stop: threading.Event,
    ) -> StoredArchive:
        root = await _in_thread(lambda: engine_proof.unpacked(fetched, runtime, half, stop), stop)
        engine = await _in_thread(lambda: engine_proof.checked(asset, root), stop)
        commit = await self._proven(asset, engine) if self._is_own(asset) else ""
        is_as_released = runtime is None and not asset.name.endswith(".zip")
        name = asset.name if is_as_released else f"llama-{asset.build}-{asset.variant.name}.tar.gz"
        made = fetched.path
        if not is_as_released:
            made = half / "packed.tar.gz"
            members = engine_archives.members_of(root)
            await _in_thread(lambda: engine_archives.pack(members, made), stop)
        stored = StoredArchive(
            build=asset.build,
            variant=asset.variant.name,
            archive=name,
            sha256=fetched.sha256 if is_as_released else await asyncio.to_thread(digest_of, made),
            size_bytes=made.stat().st_size,
            kind=RELEASE,
            date=_now(),
            platform=asset.variant.platform,
            machine=asset.variant.machine,
            commit=commit,
            is_verified=fetched.is_verified and (runtime is None or runtime.is_verified),
        )
        if self._is_own(asset):
            self._keep_unpacked(asset, root)
        self._keep(stored, made)
        return stored

    def _is_own(self, asset: Asset) -> bool:
        """Whether this host is one that it is made for."""
        return bool(suits([asset.variant], self.own_facts()))

    async def _proven(self, asset: Asset, engine: EngineFacts) -> str:
        """The commit that the programs say they are of, which run here."""
        seen = await engines.inspect(engine, self._inherited)
        if seen.problem or not seen.build:
            kind = (
                EngineWithoutRpc if seen.problem_code == EngineWithoutRpc.code else EngineUnusable
            )
            why = seen.problem or "its llama-server does not tell its build"
            raise kind(f"{asset.name} did not prove itself on this host and was removed: {why}")
        return seen.build

    def _keep_unpacked(self, asset: Asset, root: Path) -> None:
        programs = engines.programs_folder(root)
        assert programs is not None
        engines.write_names(programs, engines.Names(asset.build, asset.variant.name, asset.build))
        target = self._unpacked(asset.build, asset.variant.name)
        self._discard(target)
        root.rename(target)

    def _unpacked(self, build: str, variant: str) -> Path:
        return self._engines / f"{build}-{variant}"

    def _discard(self, folder: Path) -> None:
        """Out of sight first: half an engine must not be found."""
        if folder.exists():
            aside = Path(tempfile.mkdtemp(prefix=_HALF, dir=self._archives))
            folder.rename(aside / folder.name)
            engine_archives.clear(aside)

    def _keep(self, stored: StoredArchive, made: Path) -> None:
        made.replace(self._archives / stored.archive)
        note = self._archives / f"{stored.archive}{_NOTE}"
        privatefile.write(note, json.dumps(asdict(stored), indent=2))
        log.info(
            "engine.kept",
            extra={"archive": stored.archive, "bytes": stored.size_bytes, "kind": stored.kind},
        )

    # -- programs of this host ---------------------------------------------------------------

    def pack(self, engine: EngineFacts) -> str:
        """Pack this host's own programs, for devices of the same platform and machine.

        Returns:
            The build's name: that of its release if the shelf has it, else ``engine.build``.

        Raises:
            EngineUnusable: They cannot be moved to another place; says why.
            DiskFull: There is no room.
        """
        stored = self.archives()
        if engine.release and any(s.build == engine.release for s in stored):
            return engine.release
        if not is_build(engine.build):
            raise EngineUnusable(
                f"the programs in {engine.folder} do not tell their build ({engine.build!r}), so"
                " they cannot be packed; 'supervisor engine install' fetches a release"
            )
        files = files_of(engine)
        made = StoredArchive(
            build=engine.build,
            variant=f"{PACKED}-{self._platform}-{machine_word(self._machine)}",
            archive=f"llama-{engine.build}-{PACKED}-{self._platform}-{self._machine}.tar.gz",
            sha256="",
            size_bytes=0,
            kind=PACKED,
            date=_now(),
            platform=self._platform,
            machine=self._machine,
            commit=engine.build,
            fingerprint=files.fingerprint,
            folder=engine.folder,
        )
        if any((s.archive, s.fingerprint) == (made.archive, made.fingerprint) for s in stored):
            return engine.build
        self.begin()
        half = Path(tempfile.mkdtemp(prefix=_HALF, dir=self._archives))
        try:
            target = half / made.archive
            engine_archives.pack(files.members(), target)
            size, digest = target.stat().st_size, digest_of(target)
            self._keep(replace(made, size_bytes=size, sha256=digest), target)
        except OSError as exc:
            raise EngineUnusable(f"{engine.folder} cannot be packed: {exc}") from exc
        finally:
            engine_archives.clear(half)
        return engine.build


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


async def _in_thread(work: Callable[[], T], stop: threading.Event) -> T:
    """In a thread, which is waited for also when we are cancelled: it writes where we tidy up."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({task})
        raise
