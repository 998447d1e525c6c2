"""What is done with models of the library besides launching them: check, delete, locate."""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from supervisor.core.entities import Deployment
from supervisor.core.library import LibraryModel, Listing
from supervisor.core.library_views import (
    ModelPlaces,
    PlaceView,
    Removal,
    VerifiedModel,
    VerifyProgress,
)
from supervisor.core.lifecycle import LIVE_STATES, State
from supervisor.errors import ModelInUse, ModelKeptElsewhere
from supervisor.service.library import Library

_RUNNING: Final = (*LIVE_STATES, State.STOPPING)


class Remover(Protocol):
    """``adapters/model_removal.py``."""

    def __call__(self, model: LibraryModel, *, dry_run: bool) -> Removal: ...


class Verifier(Protocol):
    """``adapters/model_checks.py``."""

    def verify(
        self,
        models: list[LibraryModel],
        tell: Callable[[VerifyProgress], None],
        stop: threading.Event,
    ) -> tuple[VerifiedModel, ...]: ...


class ModelUpkeep:
    """Works on models by any of their names."""

    def __init__(
        self,
        library: Library,
        deployments: Callable[[], Sequence[Deployment]],
        remove: Remover,
        verifier: Verifier,
        locate: Callable[[LibraryModel], ModelPlaces],
        places: Callable[[], Sequence[tuple[str, str]]],
    ) -> None:
        """``places``: source and path of each folder in which models are looked for."""
        self._library = library
        self._deployments = deployments
        self._remove = remove
        self._verifier = verifier
        self._locate = locate
        self._places = places
        self._verifying = asyncio.Lock()

    async def remove(self, text: str, *, dry_run: bool = False) -> Removal:
        """Delete a model's files, or only say what would go.

        Raises:
            ModelInUse: A deployment runs it.
            ModelKeptElsewhere: Another tool keeps it, which would miss it; names its command.
            ModelMissing, ModelAmbiguous, FolderNotWritable
        """
        model = await asyncio.to_thread(self._library.listed, text)
        users = await asyncio.to_thread(self._users, model)
        running = [each.id for each in users if each.state in _RUNNING]
        if running:
            raise ModelInUse(
                f"{model.name} is in use by deployment {', '.join(running)}; stop it first with"
                f" 'supervisor stop {running[0]}'"
            )
        _check_owner(model)
        removal = await asyncio.to_thread(lambda: self._remove(model, dry_run=dry_run))
        if not dry_run:
            await self._library.refresh()
        return removal.model_copy(update={"deployments": tuple(each.id for each in users)})

    async def verify(
        self, text: str | None, tell: Callable[[VerifyProgress], None]
    ) -> tuple[VerifiedModel, ...]:
        """Check one model, or all: one after the other, since they share a disk.

        Raises:
            ModelMissing, ModelAmbiguous
        """
        if text is None:
            models = list((await self._library.models()).models)
        else:
            models = [await asyncio.to_thread(self._library.listed, text)]
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def tell_loop(progress: VerifyProgress) -> None:
            loop.call_soon_threadsafe(tell, progress)

        async with self._verifying:
            try:
                return await asyncio.to_thread(self._verifier.verify, models, tell_loop, stop)
            finally:
                stop.set()

    async def where(self, text: str) -> ModelPlaces:
        """Where a model is on this host.

        Raises:
            ModelMissing, ModelAmbiguous
        """
        model = await asyncio.to_thread(self._library.listed, text)
        found, users = await asyncio.gather(
            asyncio.to_thread(self._locate, model), asyncio.to_thread(self._users, model)
        )
        return found.model_copy(update={"deployments": tuple(each.id for each in users)})

    async def places(self) -> tuple[list[PlaceView], Listing]:
        """Where models are looked for, and the last listing with what could not be read."""
        listing = await self._library.models()
        found = await asyncio.to_thread(self._places)
        return [_place(source, path, listing) for source, path in found], listing

    def _users(self, model: LibraryModel) -> list[Deployment]:
        """Deployments that run one of its files, or name it."""
        ours = {os.path.realpath(path) for path in (*model.parts, *model.also)}
        return [each for each in self._deployments() if ours & _files_of(each, self._library)]


def _files_of(deployment: Deployment, library: Library) -> set[str]:
    planned = [deployment.plan.model.path] if deployment.plan else []
    named = library.known_path(deployment.spec.model)
    return {os.path.realpath(path) for path in (*planned, *([named] if named else []))}


def _place(source: str, path: str, listing: Listing) -> PlaceView:
    inside = sum(model.path.startswith(f"{path}/") for model in listing.models)
    return PlaceView(source=source, path=path, is_there=os.path.isdir(path), models=inside)  # noqa: PTH112


def _check_owner(model: LibraryModel) -> None:
    """Ollama and LM Studio keep books of their models."""
    keeper = "Ollama" if model.source == "ollama" else ""
    if model.source == "lm studio":
        keeper = "LM Studio"
    names = [model.name, *model.also]
    if keeper == "Ollama" or any("/blobs/sha256-" in path for path in (*model.parts, *model.also)):
        tag = next((name for name in names if ":" in name and "/blobs/" not in name), model.name)
        raise ModelKeptElsewhere(
            f"{model.name} is kept by Ollama, which would miss its file; delete it with"
            f" 'ollama rm {tag}'"
        )
    if keeper:
        raise ModelKeptElsewhere(
            f"{model.name} is kept by LM Studio, which would miss its file; delete it there, under"
            " My Models"
        )
