"""REST API of measurements: make one and watch it, read all."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent

from agents.contract import MeasurementProgress
from agents.errors import ProjectError
from supervisor.api.problems import status_of
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
        async for event in _events(measurer, agent_id):
            yield event

    @router.get("/measurements")
    async def measurements() -> MeasurementsView:
        known = await measurer.known()
        needed = await measurer.why_needed()
        return MeasurementsView(devices=known.devices, links=known.links, needed=needed)

    return router


async def _events(measurer: Measurer, agent_id: AgentId) -> AsyncIterator[ServerSentEvent]:
    """``progress`` events, then ``result`` or ``problem``. Leaving ends the measurement."""
    updates: asyncio.Queue[MeasurementProgress | None] = asyncio.Queue()
    measuring = asyncio.create_task(measurer.measure(agent_id, updates.put_nowait))
    measuring.add_done_callback(lambda _: updates.put_nowait(None))
    try:
        while (update := await updates.get()) is not None:
            yield ServerSentEvent(event="progress", data=asdict(update))
        try:
            result = await measuring
        except ProjectError as exc:
            problem = {"code": exc.code, "status": status_of(exc), "detail": str(exc)}
            yield ServerSentEvent(event="problem", data=problem)
        else:
            yield ServerSentEvent(event="result", data=result.model_dump(mode="json"))
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)
