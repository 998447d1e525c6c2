"""REST API of the logs of a deployment: a piece of one, or all of them as they grow.

Logs are shown as they are, to who may see everything else; what leaves the cluster is masked
(``service/reporting.py``).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from agents.logfile import read_from
from supervisor.api import sse
from supervisor.api.views import LogChunk
from supervisor.core.process_memory import LLAMA_SERVER
from supervisor.errors import DeploymentUnknown, TooManyStreams
from supervisor.service.log_following import LINK, LogFollower, Logs

MOST_LISTENERS: Final = 16
"""Of one supervisor: for each of them every agent of the deployment is asked once a second."""

Process = Annotated[str, Query(description="llama-server, link, or the name of a worker's device")]
Processes = Annotated[list[str] | None, Query(description="only these; repeatable")]


def create_logs_router(logs: Logs) -> APIRouter:
    """Routes under ``/api`` that show logs."""
    router = APIRouter(prefix="/api")
    listeners: set[LogFollower] = set()

    async def listening(name: str, process: Processes = None) -> AsyncIterator[LogFollower]:
        """In a dependency, so that it is refused before the stream begins, and always ended."""
        logs.deployments.get(name)
        if len(listeners) >= MOST_LISTENERS:
            raise TooManyStreams(
                f"{MOST_LISTENERS} listeners follow logs already, which is all there may be; close "
                "one of them, such as another window of the page"
            )
        follower = LogFollower(logs, name, process or ())
        listeners.add(follower)
        try:
            yield follower
        finally:
            listeners.discard(follower)
            await follower.close()

    @router.get("/deployments/{name}/logs")
    async def log(name: str, process: Process = LLAMA_SERVER, offset: int = -1) -> LogChunk:
        return await _chunk(logs, name, process, offset)

    @router.get("/deployments/{name}/logs/stream", response_class=EventSourceResponse)
    async def stream(
        follower: Annotated[LogFollower, Depends(listening)],
    ) -> AsyncIterator[ServerSentEvent]:
        async with contextlib.aclosing(follower.events()) as events:
            async for name, body in events:
                yield sse.sent(name, body)

    return router


async def _chunk(logs: Logs, name: str, process: str, offset: int) -> LogChunk:
    """A piece of the log of llama-server, of the links or of a worker, of the newest launch.

    Raises:
        DeploymentUnknown: There is none, or no launch of it.
        DeviceUnknown, AgentUnreachable, AgentRefused: There is no such worker, or no answer.
    """
    deployment = logs.deployments.get(name)
    if process not in (LLAMA_SERVER, LINK):
        device = logs.devices.find(process)
        answer = await logs.devices.agent(device.id).log(offset)
        return LogChunk(process=process, **dict(answer))
    launch_id = deployment.launch_id
    if launch_id is None:
        raise DeploymentUnknown(f"deployment {name} was not launched since the supervisor started")
    record = await asyncio.to_thread(logs.launches.launch, launch_id)
    path = Path(record.log_path if process == LLAMA_SERVER else record.link_log_path)
    text, end = await asyncio.to_thread(read_from, path, offset)
    return LogChunk(process=process, file=path.name, offset=end, text=text)
