"""The routes of the doctor and of engines, answered from the scene of a world."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from agents.engine import name_of
from lab.page_care import findings
from lab.page_engines import changing, installed, installing, shelf
from lab.page_record_routes import body_of, event_stream
from supervisor.core.doctor import DeviceFindings
from supervisor.core.engine_change import ChangePhase
from supervisor.core.planning import HOST
from supervisor.errors import DeviceUnknown

if TYPE_CHECKING:
    from lab.page_world import World

Json = dict[str, Any]
Handler = Callable[["World", Request], Awaitable[Response]]

HELD_AT: Final = 1
"""The step of a change after which it waits, if the world holds it back."""
INSTALL_HELD_AT: Final = 9


async def _doctor(world: "World", request: Request) -> Response:
    wanted = request.query_params.get("device", "")
    names = [HOST, *sorted(each["name"] for each in world.scene.devices)]
    if wanted and wanted not in names:
        raise DeviceUnknown(f"no device {wanted} has joined")
    await world.goes_on.wait()
    rows = [DeviceFindings(device=name, findings=findings(name)) for name in names]
    shown = [row.model_dump(mode="json") for row in rows if wanted in ("", row.device)]
    return JSONResponse(shown)


async def _builds(world: "World", _: Request) -> Response:
    found = shelf(world.scene.engine, world.scene.devices)
    return JSONResponse([each.model_dump(mode="json") for each in found])


async def _install(world: "World", _: Request) -> Response:
    from lab.page_world import sse

    async def steps() -> AsyncIterator[bytes]:
        for number, progress in enumerate(installing()):
            yield sse("progress", progress.model_dump(mode="json"))
            await asyncio.sleep(world.engine_step_s)
            if number == INSTALL_HELD_AT:
                await world.goes_on.wait()
        yield sse("result", installed().model_dump(mode="json"))

    return event_stream(steps())


async def _change(world: "World", _: Request) -> Response:
    change = world.engine_change
    return JSONResponse(change and change.model_dump(mode="json"))


async def _use(world: "World", request: Request) -> Response:
    from lab.page_world import sse

    build = (await body_of(request))["build"]
    names = [each["name"] for each in world.scene.devices if each["state"] == "ready"]
    running = [each["id"] for each in world.scene.deployments]
    changes = changing(world.clock(), name_of(world.scene.engine), names, running, build,
                    fails=world.change_fails)  # fmt: skip

    async def steps() -> AsyncIterator[bytes]:
        for number, change in enumerate(changes):
            world.engine_change = change
            told = change.model_dump(mode="json")
            world.send("engine_change", told)
            if change.phase == ChangePhase.FAILED:
                yield sse("problem", {"code": change.error_code, "detail": change.reason})
            else:
                yield sse("result" if change.is_over else "progress", told)
            await asyncio.sleep(world.engine_step_s)
            if number == HELD_AT:
                await world.goes_on.wait()

    return event_stream(steps())


CARE_ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/api/doctor", _doctor),
    ("GET", "/api/engine-builds", _builds),
    ("POST", "/api/engine-builds", _install),
    ("GET", "/api/engine-change", _change),
    ("POST", "/api/engine-change", _use),
)
