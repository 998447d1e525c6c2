"""What is done with models of the library besides launching them: check, delete, locate."""

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from supervisor.core.entities import Deployment
from supervisor.core.library import LibraryModel, Listing, Source
from supervisor.core.library_views import (
    ModelPlaces,
    PlaceView,
    Removal,
    VerifiedModel,
    VerifyProgress,
)
from supervisor.core.lifecycle import LIVE_STATES, State
from supervisor.core.model_copies import copy_named
from supervisor.errors import ModelInUse, ModelKeptElsewhere
from supervisor.service.library import Library, full_path

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
        places: Callable[[], Sequence[tuple[Source, str]]],
    ) -> None:
        """``places``: source and path of each folder in which models are looked for."""
        self._library = library
        self._deployments = deployments
        self._remove = remove
        self._verifier = verifier
        self._locate = locate
        self._places = places
        self._verifying = asyncio.Lock()
        self._removing = asyncio.Lock()

    async def remove(self, text: str, *, dry_run: bool = False) -> Removal:
        """Delete a model's files, or only say what would go.

        Raises:
            ModelInUse: A deployment runs it.
            ModelKeptElsewhere: Another tool keeps it, which would miss it; names its command.
            ModelMissing, ModelAmbiguous, FolderNotWritable
        """
        async with self._removing:
            return await self._remove_alone(text, dry_run=dry_run)

    async def _remove_alone(self, text: str, *, dry_run: bool) -> Removal:
        await self._library.refresh()
        model, running, stopped, removal = await asyncio.to_thread(self._told, text)
        if running:
            raise ModelInUse(
                f"{model.name} is in use by deployment {', '.join(running)}; stop it first with"
                f" 'supervisor stop {running[0]}'"
            )
        _check_owner(model, frees=bool(removal.freed_bytes))
        if not dry_run:
            removal = await asyncio.to_thread(lambda: self._remove(model, dry_run=False))
            await self._library.refresh()
        return removal.model_copy(update={"deployments": stopped})

    def _told(self, text: str) -> tuple[LibraryModel, Sequence[str], tuple[str, ...], Removal]:
        """What would go, and the deployments that need any of it: running, and stopped ones."""
        listed, text = _without_folder_links(self._library.listed(text), full_path(text))
        model = copy_named(listed, text, tuple(self._places()))
        removal = self._remove(model, dry_run=True)
        gone = {_key(path) for path in removal.deletes}
        users = [d for d in self._deployments() if _needs(d, self._library, gone)]
        running = [each.id for each in users if each.state in _RUNNING]
        return model, running, tuple(e.id for e in users if e.state not in _RUNNING), removal

    async def verify(
        self, text: str | None, tell: Callable[[VerifyProgress], None]
    ) -> tuple[VerifiedModel, ...]:
        """Check one model, or all: one after the other, since they share a disk.

        Raises:
            ModelMissing, ModelAmbiguous
        """
        listing = await self._library.refresh()
        if text is None:
            models = list(listing.models)
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
        ours = {_key(path) for path in (*model.parts, *model.also)}
        return [each for each in self._deployments() if _needs(each, self._library, ours)]


def _without_folder_links(model: LibraryModel, text: str) -> tuple[LibraryModel, str]:
    """Of paths that only differ in links of folders the first: they are one entry on the disk."""
    first: dict[str, str] = {}
    for name in (*model.parts, *model.also):
        if name.startswith("/"):
            first.setdefault(_key(name), name)
    also = (n for n in model.also if not n.startswith("/") or first[_key(n)] == n)
    asked = first.get(_key(text), text) if text.startswith("/") else text
    return model.model_copy(update={"also": tuple(also)}), asked


def _needs(deployment: Deployment, library: Library, paths: set[str]) -> bool:
    """Whether it reads one of these files, or one below these folders."""
    files = _files_of(deployment, library)
    every = {path for file in files for path in (_key(file), os.path.realpath(file))}
    above = {str(folder) for path in every for folder in Path(path).parents}
    return not paths.isdisjoint(every | above)


def _files_of(deployment: Deployment, library: Library) -> set[str]:
    """Model, projector, adapters and template, as it names them and as its plan does."""
    spec, plan = deployment.spec, deployment.plan
    named = [library.known_path(spec.model), spec.mmproj, spec.chat_template_file]
    words = plan.option_words if plan else ()
    found = {plan.model.path} if plan else set()
    found |= {path for path in named if path} | {each.path for each in spec.lora}
    return found | {word for word in words if word.startswith("/")}


def _key(path: str) -> str:
    """A path with the links of its folders resolved, and not its own."""
    folder, name = os.path.split(path)
    return os.path.join(os.path.realpath(folder), name)  # noqa: PTH118


def _place(source: str, path: str, listing: Listing) -> PlaceView:
    inside = sum(model.path.startswith(f"{path}/") for model in listing.models)
    return PlaceView(source=source, path=path, is_there=os.path.isdir(path), models=inside)  # noqa: PTH112


def _check_owner(model: LibraryModel, *, frees: bool) -> None:
    """Ollama and LM Studio keep books of their models. A mere link to one is the user's own."""
    tag = next((n for n in (model.name, *model.also) if ":" in n and not n.startswith("/")), "")
    paths = (*model.parts, *model.also) if frees else model.parts
    if model.source == "ollama" or any("/blobs/sha256-" in path for path in paths):
        raise ModelKeptElsewhere(
            f"{model.name} is kept by Ollama, which would miss its file; delete it with"
            f" 'ollama rm {tag or model.name}'"
        )
    if model.source == "lm studio":
        raise ModelKeptElsewhere(
            f"{model.name} is kept by LM Studio, which would miss its file; delete it there, under"
            " My Models"
        )
