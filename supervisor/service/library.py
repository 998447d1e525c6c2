"""Models on this host, kept up to date: who names one, by whatever name, finds it here."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from supervisor.core.entities import DeploymentSpec
from supervisor.core.library import (
    LibraryModel,
    Listing,
    NameIndex,
    is_hub_reference,
    named_spec,
)
from supervisor.core.model_faults import Fault, error_of, not_a_model
from supervisor.errors import ModelAmbiguous, ModelMissing
from supervisor.ports import Model, ModelReader
from supervisor.service.events import EventBus

log = logging.getLogger(__name__)

CHANGED: Final = "models"
"""Event: counts, when something is new, gone or different."""

LOOK_EVERY_S: Final = 15.0
_LISTED_FOR_S: Final = 5.0
"""A name that is not found is looked for again in folders that were last scanned this long ago."""


class Scanner(Protocol):
    """What is needed of ``adapters/model_scanner.py``. Every method blocks."""

    def scan(
        self, stop: threading.Event, tell: Callable[[Listing], None] | None = None
    ) -> Listing: ...

    def is_outdated(self) -> bool: ...

    def examined(self, path: str) -> LibraryModel: ...


class Library:
    """The listing of all models; ``run`` keeps it fresh."""

    def __init__(self, scanner: Scanner, bus: EventBus) -> None:
        self._scanner = scanner
        self._bus = bus
        self._listing: Listing | None = None
        self._scanned_at_s = float("-inf")
        self._told: dict[str, LibraryModel] = {}
        self._told_unread = 0
        self._stop = threading.Event()
        self._is_behind = asyncio.Event()
        self._indexed = (Listing(), NameIndex(()))

    async def models(self, max_age_s: float | None = None) -> Listing:
        """All models; those of a first scan may not all be read yet.

        Args:
            max_age_s: Look for changes if the last look is older; None: only if there was none.
        """
        oldest_s = float("inf") if max_age_s is None else max_age_s
        listing = self._listing
        if listing is None:
            return await self.refresh()
        if time.monotonic() - self._scanned_at_s <= oldest_s:
            return listing
        if await asyncio.to_thread(self._scanner.is_outdated):
            return await self.refresh()
        self._scanned_at_s = time.monotonic()
        return self._listing or listing

    async def refresh(self) -> Listing:
        """Scan folders now; many headers that are not known are left to ``run``."""
        listing = await asyncio.to_thread(self._scanner.scan, self._stop)
        self._take(listing)
        if listing.unread:
            self._is_behind.set()
        return listing

    async def run(self) -> None:
        """Scan at once and whenever something changed, until cancelled."""
        try:
            await self._scan_whole()
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_behind.wait(), LOOK_EVERY_S)
                self._is_behind.clear()
                unread = self._listing.unread if self._listing else 0
                if unread or await asyncio.to_thread(self._scanner.is_outdated):
                    await self._scan_whole()
        finally:
            self._stop.set()  # else its thread would hold up the end of the program

    async def _scan_whole(self) -> None:
        loop = asyncio.get_running_loop()

        def tell(listing: Listing) -> None:
            loop.call_soon_threadsafe(self._take, listing)

        self._take(await asyncio.to_thread(self._scanner.scan, self._stop, tell))

    def _take(self, listing: Listing) -> None:
        self._listing, self._scanned_at_s = listing, time.monotonic()
        now = {model.path: model for model in listing.models}
        before, self._told = self._told, now
        added, removed = len(now.keys() - before.keys()), len(before.keys() - now.keys())
        changed = sum(now[path] != before[path] for path in now.keys() & before.keys())
        if not (added or removed or changed or listing.unread != self._told_unread):
            return
        self._told_unread = listing.unread
        proper = [model for model in listing.models if not model.is_companion]
        counts = {
            "models": len(proper),
            "companions": len(now) - len(proper),
            "problems": sum(bool(model.problem) for model in proper),
            "unread": listing.unread,
            "skipped": len(listing.skipped),
            "added": added,
            "removed": removed,
            "changed": changed,
        }
        self._bus.publish(CHANGED, counts)

    # -- from any thread -----------------------------------------------------------------------

    def find(self, text: str) -> LibraryModel:
        """The model that a path or any of its names means, as it was last seen. Blocks.

        Raises:
            ModelMissing, ModelAmbiguous: With what there is to choose from.
        """
        path = _existing(text)
        if path is not None:
            with suppress(ModelMissing):
                return self._names(self._listed()).find(path)
            if self._scanner.is_outdated():  # it has just come, perhaps with a projector beside it
                self._scan_names()
                with suppress(ModelMissing):
                    return self._names(self._listed()).find(path)
            return self._scanner.examined(path)
        return self._find(text)

    def _find(self, text: str) -> LibraryModel:
        """Among those that are listed; once more if they were listed a while ago."""
        try:
            return self._names(self._listed()).find(text)
        except ModelMissing:
            if time.monotonic() - self._scanned_at_s <= _LISTED_FOR_S:
                raise
        self._scan_names()
        return self._names(self._listed()).find(text)

    def listed(self, text: str) -> LibraryModel:
        """As ``find``, but only what lies in one of the places: no other file of this host. Blocks.

        Raises:
            ModelMissing, ModelAmbiguous: With what there is to choose from.
        """
        return self._find(full_path(text))

    def _listed(self) -> Listing:
        return self._listing or self._scan_names()

    def _scan_names(self) -> Listing:
        """``run`` tells of what is new."""
        listing = self._listing = self._scanner.scan(self._stop)
        self._scanned_at_s = time.monotonic()
        return listing

    def path_of(self, text: str) -> str:
        """The path that a name means here; ``text`` itself if it means none. Blocks.

        Raises:
            ModelAmbiguous: Several models have that name.
        """
        if _existing(text) is not None or text.startswith(("/", "~", "./", "../")):
            return text
        try:
            model = self.find(text)
        except ModelMissing:
            return text
        return text if _is_for_the_hub(text, model) else model.path

    def named(self, spec: DeploymentSpec) -> DeploymentSpec:
        """A spec whose model is a path, if what it says is the name of a model here. Blocks.

        Raises:
            ModelAmbiguous: Several models have that name.
        """
        if _existing(spec.model) is not None or spec.model.startswith(("/", "~")):
            return spec
        try:
            return named_spec(spec, self.find(spec.model))
        except ModelMissing:
            return spec

    def check(self, path: str) -> None:
        """Look at the files of a model as they are now. Blocks.

        Raises:
            ModelBroken, ModelMissing, ArchitectureUnsupported: It cannot be launched; says why.
        """
        if (fault := self.fault(path)) is not None:
            raise error_of(path, fault)

    def fault(self, path: str) -> Fault | None:
        """Why a model cannot be launched, as its files are now. Blocks.

        Raises:
            ModelMissing: There is no such file.
        """
        model = self._scanner.examined(path)
        if model.problem:
            text = model.problem.removeprefix(f"{model.path} ").removesuffix(f"; {model.remedy}")
            return Fault(text, model.remedy, model.problem_code)
        return not_a_model(model.kind)

    def reading(self, read: ModelReader) -> ModelReader:
        """``read`` for names of models as well as for paths, that refuses what is broken."""

        def read_checked(path: str) -> Model:
            path = self.path_of(path)
            if (file := _existing(path)) is not None:
                self.check(file)
            return read(path)

        return read_checked

    def projector_of(self, text: str) -> str:
        """The projector that lies beside a model; empty if there is none. Blocks."""
        try:
            return self.find(text).projector
        except (ModelMissing, ModelAmbiguous):
            return ""

    def names_of(self, text: str) -> tuple[str, ...]:
        """Path and references of a model by any of its names; none if it is not here. Blocks."""
        try:
            found = self.find(text)
        except (ModelMissing, ModelAmbiguous):
            return ()
        files = (f"{found.repo}/{file}" for file in found.repo_files if found.repo)
        return (found.path, *filter(None, (found.reference, *files)))

    def known_name(self, text: str) -> LibraryModel | None:
        """The model that a request names; None if there is none. Blocks.

        Raises:
            ModelAmbiguous: Several models have that name.
        """
        try:
            return self._names(self._listed()).find(text)
        except ModelMissing:
            return None

    def known_path(self, text: str) -> str | None:
        """The path that a name or a path means, if it is clear which. Blocks."""
        if (path := _existing(text)) is not None:
            return path
        try:
            model = self.known_name(text)
        except ModelAmbiguous:
            return None
        return model.path if model else None

    def _names(self, listing: Listing) -> NameIndex:
        of, index = self._indexed
        if of is not listing:
            index = NameIndex(listing.models)
            self._indexed = (listing, index)
        return index


def _is_for_the_hub(text: str, model: LibraryModel) -> bool:
    """Whether a reference is better resolved there: it knows the versions of its own cache, and
    which quantisation a repository alone means.
    """
    if not is_hub_reference(text, model):
        return False
    exact = {model.reference, *(f"{model.repo}/{file}" for file in model.repo_files)}
    return model.source == "hub" or text.casefold() not in {name.casefold() for name in exact}


def full_path(text: str) -> str:
    """A path in full; names stay as they are."""
    if text.startswith(("/", "~")):
        return os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111
    return text


def _existing(text: str) -> str | None:
    """The path of a file, in full, if ``text`` names one."""
    try:
        path = os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111
        return path if os.path.isfile(path) else None  # noqa: PTH113
    except (OSError, ValueError):
        return None
