"""Whether one model fits, and how fast it would be: plans for somebody who only asks.

They are made by the planner that launches follow, at most two at once; what it said is kept as long
as neither model nor cluster change.
"""

import asyncio
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import Final, Protocol
from weakref import WeakValueDictionary

from agents.contract import DeviceFacts
from agents.errors import FolderNotWritable, ProjectError
from supervisor.core.entities import DeploymentSpec
from supervisor.core.suggesting import ModelFit, fit_of, no_fit, usual_ctx
from supervisor.errors import (
    EngineRefusedFlag,
    EngineRefusedModel,
    InsufficientMemory,
    ModelMissing,
    NoDevices,
)
from supervisor.ports import Model
from supervisor.service.model_settings import ModelSettingsBook
from supervisor.service.planning import Planner
from supervisor.service.tools import Tools

AT_ONCE: Final = 2
KEPT_FITS: Final = 512
MOST_SHOWN: Final = 200  # characters of a caller's own text in a message
NOTICEABLE_BYTES: Final = 256 << 20
"""Memory that comes and goes by less than this does not make a new cluster."""

_PREFIX: Final = ".suggest-"


class Fitter:
    """Plans models that nobody launches."""

    def __init__(
        self, tools: Tools, planner: Planner, find: Callable[[str], Awaitable[str]]
    ) -> None:
        """
        Args:
            tools: What there is to use.
            planner: The one that launches follow.
            find: The path of a model that is listed on this host; raises ``ModelMissing``.
        """
        self._tools, self._planner, self._find = tools, planner, find
        self._settings = ModelSettingsBook(tools)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._fits: OrderedDict[Hashable, ModelFit] = OrderedDict()
        self._asked: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()

    @property
    def has_engine(self) -> bool:
        """Whether the engine itself can confirm what a plan needs."""
        return self._tools.estimate_memory.is_there

    async def of_file(self, model: str, ctx_tokens: int | None) -> ModelFit:
        """Of a model of this host, as a launch now would have it; see ``of``.

        Raises:
            ProjectError: It is not there or broken, or there are no devices.
        """
        path = await self._find(model)
        found = await asyncio.to_thread(self._tools.read_model, path)
        version = path, found.facts.size_bytes, _stamp(found.file)

        async def read() -> Model:
            return found

        return await self.of(version, path, ctx_tokens, found.facts.ctx_train_tokens, read)

    async def of(
        self,
        version: Hashable,
        name: str,
        ctx_tokens: int | None,
        ctx_train_tokens: int | None,
        read: Callable[[], Awaitable[Model]],
    ) -> ModelFit:
        """Of a model that ``read`` gives, if it is not known, with the settings kept for it.

        Args:
            version: Changes whenever the model does.
            name: What a launch would call it: its path or its reference.
            ctx_tokens: Wanted, and no less; None: what is kept for the model, or the usual.
            ctx_train_tokens: What it was trained for, if it is known.
            read: May raise ``ProjectError``.

        Raises:
            ProjectError: There are no devices, or it cannot be read.
        """
        spec = await asyncio.to_thread(self._spec, name, ctx_tokens, ctx_train_tokens)
        state = cluster_state(self._tools)
        key = version, spec.model_dump_json(), state
        if key in self._fits:
            self._fits.move_to_end(key)
            return self._fits[key]
        model = await read()
        try:
            async with self._asked.setdefault(key, asyncio.Lock()):
                if (known := self._fits.get(key)) is not None:
                    return known  # somebody else asked the same meanwhile
                async with self._turns:
                    fit = await self._planned(model, spec)
                if cluster_state(self._tools) == state:  # else it is of another cluster
                    self._fits[key] = fit
        except NoDevices:
            raise
        except ProjectError as exc:  # of kept settings: their files and devices come and go
            return no_fit(spec.ctx_tokens, str(exc), exc.code, is_estimate=model.is_estimate)
        finally:
            _discard(model)
        while len(self._fits) > KEPT_FITS:
            self._fits.popitem(last=False)
        return fit

    def _spec(
        self, name: str, ctx_tokens: int | None, ctx_train_tokens: int | None
    ) -> DeploymentSpec:
        """What a launch now would ask for. Blocks."""
        if ctx_tokens is not None:
            spec = self._settings.merged(DeploymentSpec(model=name, ctx_tokens=ctx_tokens))
            return spec.model_copy(update={"min_ctx_tokens": None})
        spec = self._settings.merged(DeploymentSpec(model=name))
        if "ctx_tokens" in spec.model_fields_set:
            return spec
        return spec.model_copy(update={"ctx_tokens": usual_ctx(ctx_train_tokens)})

    async def _planned(self, model: Model, spec: DeploymentSpec) -> ModelFit:
        ctx_tokens, guessed = spec.ctx_tokens, model.is_estimate
        try:
            plan = await self._planner.preview(spec, lambda _: model)
        except InsufficientMemory as exc:
            return no_fit(ctx_tokens, str(exc), exc.code, exc.shortfall, is_estimate=guessed)
        except (EngineRefusedModel, EngineRefusedFlag) as exc:
            return no_fit(ctx_tokens, str(exc), exc.code, is_estimate=guessed)
        return fit_of(plan, is_estimate=guessed)


class Listed(Protocol):
    """A model of this host."""

    @property
    def path(self) -> str: ...


def listed(known: Callable[[str], Listed | None]) -> Callable[[str], Awaitable[str]]:
    """Finds a model among those that are listed, and no other file: it is for readers, too.

    Args:
        known: The one that a path or a name means, if it is listed. Blocks.
    """

    async def find(text: str) -> str:
        found = await asyncio.to_thread(known, text)
        if found is None:
            raise ModelMissing(
                f"{text[:MOST_SHOWN]!r} is not among the models of this host; 'supervisor models'"
                " and the page list them"
            )
        return found.path

    return find


def cluster_state(tools: Tools) -> Hashable:
    """What of the cluster a plan follows from; memory only as far as it changes noticeably."""
    devices = [
        (d.id, d.state, d.used_by, d.excluded, d.wire, *_room(d.facts))
        for d in sorted(tools.registry.devices(), key=lambda device: device.id)
    ]
    store, engine = tools.store, tools.main_host.engine
    measured = [f"{found.agent_id} {found.taken_at}" for found in store.device_measurements()]
    measured += [f"{found.agent_id} {found.taken_at}" for found in store.link_measurements()]
    return (
        tuple(devices),
        tools.host_available_bytes() // NOTICEABLE_BYTES,
        tuple(sorted(measured)),
        tuple(repr(lesson) for lesson in store.lessons()),
        engine.build if engine else "",
        tools.estimate_memory.is_there,
    )


def _room(facts: DeviceFacts | None) -> tuple[Hashable, ...]:
    if facts is None:
        return ()
    cards = [(g.name, g.free_bytes // NOTICEABLE_BYTES) for g in facts.ggml_devices if not g.is_cpu]
    build = facts.engine.build if facts.engine else ""
    return facts.memory_available_bytes // NOTICEABLE_BYTES, tuple(cards), build


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0  # the plan will say more
    return found.st_mtime_ns, found.st_size, found.st_ino


class StandIns:
    """A folder for stand-ins of models, for as long as a block runs."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    def __enter__(self) -> Path:
        try:
            self._parent.mkdir(parents=True, exist_ok=True)
            self._path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._parent))
        except OSError as exc:
            raise FolderNotWritable(
                f"headers of models cannot be kept in {self._parent}: {exc.strerror or exc}; free"
                " space there, or choose another data folder"
            ) from exc
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path, ignore_errors=True)

    @staticmethod
    def sweep(parent: Path) -> None:
        """Remove what an earlier run left that was killed."""
        for left in parent.glob(f"{_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)


def _discard(model: Model) -> None:
    """Remove a stand-in that was made for one plan: megabytes of vocabulary each."""
    made = model.stand_in
    if made is not None and made.parent.name.startswith(_PREFIX):
        made.unlink(missing_ok=True)
