"""How much of a model each device holds already."""

import asyncio
from collections.abc import Callable, Mapping

from agents.errors import ProjectError
from supervisor.core.entities import AgentId, DeploymentSpec
from supervisor.core.holdings import HoldingView, bytes_of
from supervisor.core.seeding import FileTensor
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

    def __init__(self, tools: Tools, planner: Planner, spreader: Spreader) -> None:
        self._tools = tools
        self._planner = planner
        self._spreader = spreader

    async def holdings(
        self, spec: DeploymentSpec, tell: Callable[[int, int], None] = _nothing
    ) -> tuple[HoldingView, ...]:
        """For each joined device, what it holds of the model, and of the part it would get.

        The first time the main host hashes the model, a second per 1 to 2 GB; ``tell`` hears how
        far that is, in bytes done and in all.

        Raises:
            ProjectError: The model cannot be read.
        """
        model = await asyncio.to_thread(self._tools.read_model, spec.model)
        parts, problem = await self._parts(spec)
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

    async def _parts(self, spec: DeploymentSpec) -> tuple[Parts, str]:
        """What a launch now would give to whom, or why it would not."""
        try:
            plan = await self._planner.plan(spec)
            return await shares(self._tools, plan), ""
        except ProjectError as exc:
            return {}, str(exc)
