"""How much of a model each device holds already."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence

from agents.errors import ProjectError
from supervisor.core.entities import AgentId, Deployment, DeploymentSpec, Plan
from supervisor.core.holdings import HoldingView, bytes_of, plan_in_use
from supervisor.core.seeding import FileTensor
from supervisor.errors import ModelMissing
from supervisor.service.library import Library
from supervisor.service.links import shares
from supervisor.service.naming import Listener
from supervisor.service.planning import Planner
from supervisor.service.spreading import Spreader
from supervisor.service.tools import Tools

Parts = Mapping[AgentId, tuple[FileTensor, ...]]

_ALL = "all of the model"


def _nothing(done_bytes: int, total_bytes: int) -> None:
    pass


class Holdings:
    """Asks the devices; nothing is sent or stored."""

    def __init__(
        self,
        tools: Tools,
        planner: Planner,
        spreader: Spreader,
        library: Library,
        deployments: Callable[[], Sequence[Deployment]],
    ) -> None:
        self._tools = tools
        self._planner = planner
        self._spreader = spreader
        self._library = library
        self._deployments = deployments

    async def holdings(
        self, text: str, tell: Callable[[int, int], None] = _nothing
    ) -> tuple[HoldingView, ...]:
        """For each joined device, what it holds of the model, and of the part it would get.

        The first time the main host hashes the model, a second per 1 to 2 GB; ``tell`` hears how
        far that is, in bytes done and in all. Whoever may read may ask, so only models that are
        listed or in use are hashed, one at a time, whoever asks.

        Raises:
            ModelMissing, ModelAmbiguous: It is neither listed nor in use.
            ProjectError: The model cannot be read.
        """
        path = await asyncio.to_thread(self._path, text)
        model = await asyncio.to_thread(self._tools.read_model, path)
        parts, problem = await self._parts(path)
        listener: Listener = tell
        named = await self._spreader.named(
            {_ALL: model.tensors, **{str(a): share for a, share in parts.items()}}, listener
        )
        everything, devices = named[_ALL], self._spreader.devices()
        held = await self._spreader.holdings(devices, everything)
        views = []
        for device in devices:
            names, own = held.get(device.id), named.get(str(device.id), ())
            found = HoldingView(
                device=device.name,
                is_known=names is not None,
                held_bytes=bytes_of(everything, names or set()),
                total_bytes=bytes_of(everything),
                needed_bytes=bytes_of(own),
                needed_held_bytes=bytes_of(own, names or set()),
                plan_problem=problem,
            )
            views.append(found)
        return tuple(views)

    def _path(self, text: str) -> str:
        try:
            return self._library.listed(text).path
        except ModelMissing:
            if self._deployed(text):
                return text
            raise

    def _deployed(self, path: str) -> list[Deployment]:
        """Deployments whose plan is of that file, by whatever path."""
        asked, found = os.path.realpath(path), self._deployments()
        return [each for each in found if each.plan and _real_path(each.plan) == asked]

    async def _parts(self, path: str) -> tuple[Parts, str]:
        """What its deployment, or else a launch now, gives to whom; or why it would not."""
        try:
            plan = plan_in_use(await asyncio.to_thread(self._deployed, path))
            if plan is None:
                plan = await self._planner.plan(DeploymentSpec(model=path))
            return await shares(self._tools, plan), ""
        except ProjectError as exc:
            return {}, str(exc)


def _real_path(plan: Plan) -> str:
    return os.path.realpath(plan.model.path)
