"""REST API of measurements: make one and watch it, read all."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent

from supervisor.api import sse
from supervisor.core.entities import AgentId, FrozenModel
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.service.measuring import Measurer


class MeasurementsView(FrozenModel):
    """Everything that was measured; ``needed`` says of which devices it no longer counts, and why.

    Devices that were never measured are in ``needed`` alone.
    """

    devices: tuple[DeviceMeasured, ...]
    links: tuple[LinkMeasured, ...]
    needed: dict[AgentId, str]


def create_measure_router(measurer: Measurer) -> APIRouter:
    """Routes under ``/api`` that measure."""
    router = APIRouter(prefix="/api")

    async def admitted(device: str) -> AgentId:
        # Before the stream begins, so that a refusal has a status of its own.
        return measurer.admit(device).id

    @router.post("/devices/{device}/measure", response_class=EventSourceResponse)
    async def measure(
        agent_id: Annotated[AgentId, Depends(admitted)],
    ) -> AsyncIterator[ServerSentEvent]:
        stream = sse.working(
            lambda tell: measurer.measure(agent_id, tell),
            shown=asdict,
            answered=lambda result: result.model_dump(mode="json"),
        )
        async with contextlib.aclosing(stream):
            async for event in stream:
                yield event

    @router.get("/measurements")
    async def measurements() -> MeasurementsView:
        known = await measurer.known()
        needed = await measurer.why_needed()
        return MeasurementsView(devices=known.devices, links=known.links, needed=needed)

    return router
