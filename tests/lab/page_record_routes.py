"""The routes of records, settings, keys and the gateway, answered from the scene of a world."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from lab import page_talk
from lab.page_records import keys, settings_of_home, stamp
from supervisor.api.keys_api import NewKey
from supervisor.api.views import ShellCommand
from supervisor.core.commands import shell_script
from supervisor.core.entities import LaunchRecord
from supervisor.core.keys import ApiKey, KeyWanted
from supervisor.errors import ApiKeyUnknown, DeploymentNotReady, DeploymentUnknown, LaunchUnknown

if TYPE_CHECKING:
    from lab.page_world import World

Json = dict[str, Any]
Handler = Callable[["World", Request], Awaitable[Response]]


async def body_of(request: Request) -> Any:
    text = await request.body()
    return json.loads(text) if text else None


def event_stream(blocks: AsyncIterator[bytes]) -> Response:
    return StreamingResponse(blocks, media_type="text/event-stream")


# -- records -----------------------------------------------------------------------------------


def _record(world: "World", request: Request) -> LaunchRecord:
    number = request.path_params["number"]
    for each in world.scene.launches:
        if each.id == number:
            return each
    raise LaunchUnknown(f"no launch {number} was recorded")


def _dumped(rows: Any, request: Request) -> Response:
    limit = int(request.query_params.get("limit", 100))
    return JSONResponse([each.model_dump(mode="json") for each in rows[:limit]])


async def _launches(world: "World", request: Request) -> Response:
    return _dumped(world.scene.launches, request)


async def _launch_record(world: "World", request: Request) -> Response:
    return JSONResponse(_record(world, request).model_dump(mode="json"))


async def _shell(world: "World", request: Request) -> Response:
    commands = [
        ShellCommand(host=host, command=line).model_dump()
        for host, line in shell_script(_record(world, request), {"GGML_NO_BACKTRACE": "1"})
    ]
    return JSONResponse({"commands": commands})


async def _report(world: "World", request: Request) -> Response:
    name = f"launch-{_record(world, request).id}.tar.gz"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return PlainTextResponse("not really", headers=headers, media_type="application/gzip")


async def _requests(world: "World", request: Request) -> Response:
    name = request.query_params.get("deployment")
    rows = [each for each in world.scene.requests if name in (None, each.deployment)]
    return _dumped(rows, request)


async def _history(world: "World", request: Request) -> Response:
    subject, launch = (request.query_params.get(each) for each in ("subject", "launch"))
    rows = [
        each
        for each in world.scene.history
        if subject in (None, each.subject) and launch in (None, str(each.launch_id))
    ]
    limit = int(request.query_params.get("limit", 100))
    return JSONResponse([each.model_dump(mode="json") for each in rows[-limit:]])


# -- settings and keys -------------------------------------------------------------------------


async def _settings(_: "World", __: Request) -> Response:
    return JSONResponse(settings_of_home())


def _known_keys(world: "World") -> list[ApiKey]:
    if world.keys is None:
        world.keys = keys(world.clock())
    return world.keys


async def _keys(world: "World", _: Request) -> Response:
    return JSONResponse([each.model_dump(mode="json") for each in _known_keys(world)])


async def _make_key(world: "World", request: Request) -> Response:
    wanted = KeyWanted.model_validate(await body_of(request))
    text = "sk-1nVeNtEd4KqkW0oY2mR7sT9uX3zB6cD8"
    key = ApiKey(**wanted.model_dump(), shown=text[:7], created_at=stamp(world.clock()))
    _known_keys(world).append(key)
    return JSONResponse(NewKey(key=key, text=text).model_dump(mode="json"), 201)


async def _revoke_key(world: "World", request: Request) -> Response:
    name, known = request.path_params["name"], _known_keys(world)
    if not any(each.name == name for each in known):
        raise ApiKeyUnknown(f"no key is called {name}")
    world.keys = [each for each in known if each.name != name]
    return Response(status_code=204)


# -- the gateway -------------------------------------------------------------------------------


async def _gateway_models(world: "World", _: Request) -> Response:
    rows = [{"id": each["id"], "object": "model"} for each in world.scene.deployments]
    return JSONResponse({"object": "list", "data": rows})


async def _chat(world: "World", request: Request) -> Response:
    body = await body_of(request)
    name = body.get("model", "")
    found = world.deployment(name)
    if found is None:
        raise DeploymentUnknown(f"no deployment is called {name}")
    if found["state"] not in ("ready", "degraded"):
        raise DeploymentNotReady(f"{name} is {found['state']}: {found['reason'] or 'wait for it'}")
    if not body.get("stream"):
        return JSONResponse(page_talk.whole(name))
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    events = page_talk.stream(name, with_usage=with_usage, pace_s=world.answer_pace_s)
    return event_stream(_held(world, events))


async def _held(world: "World", events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """As long as the world holds answers back; llama-server begins to stream at once, too."""
    yield await anext(events)
    await world.first_token.wait()
    async for event in events:
        yield event


RECORD_ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/api/launches", _launches),
    ("GET", "/api/launches/{number:int}", _launch_record),
    ("GET", "/api/launches/{number:int}/shell", _shell),
    ("GET", "/api/launches/{number:int}/report", _report),
    ("GET", "/api/requests", _requests),
    ("GET", "/api/history", _history),
    ("GET", "/api/settings", _settings),
    ("GET", "/api/keys", _keys),
    ("POST", "/api/keys", _make_key),
    ("DELETE", "/api/keys/{name}", _revoke_key),
    ("GET", "/v1/models", _gateway_models),
    ("POST", "/v1/chat/completions", _chat),
)
