"""The routes that the page uses, answered from the scene of a world."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from agents.errors import ProjectError
from agents.requests import problem
from lab.page_care_routes import CARE_ROUTES
from lab.page_home import deployment_id, dumped
from lab.page_model_routes import MODEL_ROUTES
from lab.page_record_routes import RECORD_ROUTES, Handler, body_of, event_stream
from lab.page_records import record, stamp
from supervisor.api.join_lines import join_lines
from supervisor.api.problems import status_of
from supervisor.api.session_api import SessionView
from supervisor.api.views import JoinCodeView
from supervisor.core.api_errors import error_body
from supervisor.core.callers import Scope
from supervisor.core.entities import Deployment, DeploymentSpec
from supervisor.core.gateway_routes import api_of
from supervisor.core.lifecycle import State
from supervisor.core.link_view import worker_loads
from supervisor.errors import (
    BadRequest,
    DeploymentExists,
    DeploymentUnknown,
    DeviceUnknown,
    HubUnreachable,
    InsufficientMemory,
    KeyRequired,
)

if TYPE_CHECKING:
    from lab.page_world import World

KEY: Final = "right"
COOKIE: Final = "supervisor_key"
MEASURE_STEPS: Final = ("memory speed", "prompt speed", "attention", "link")

Json = dict[str, Any]


def create_app(world: "World", page_folder: Path) -> ASGIApp:
    """The page, the API and the gateway of a world."""

    def bound(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if request.method not in ("GET", "HEAD"):
                world.asked.append((request.method, request.url.path, await body_of(request)))
            return await handler(world, request)

        return endpoint

    routes = [Route(path, bound(handler), methods=[method]) for method, path, handler in _routes()]
    assets = GZipMiddleware(StaticFiles(directory=page_folder))  # as in supervisor/api/web.py
    page = Route("/", lambda _: FileResponse(page_folder / "index.html"))
    app = Starlette(
        routes=[page, *routes, Mount("/assets", assets)],
        exception_handlers={
            ProjectError: _on_error, ValidationError: _on_invalid, HTTPException: _on_http,
        },
    )  # fmt: skip
    return RightKey(app, world)


def _routes() -> list[tuple[str, str, Handler]]:
    one, named = "/api/deployments/{name}", "/api/devices/{device}"
    return [
        ("GET", "/api/status", _status),
        ("GET", "/api/events", _events),
        ("GET", "/api/session", _who),
        ("POST", "/api/session", _sign_in),
        ("DELETE", "/api/session", _sign_out),
        ("PATCH", named, _change_device),
        ("DELETE", named, _remove_device),
        ("POST", f"{named}/drain", _drain),
        ("POST", f"{named}/measure", _measure),
        ("POST", "/api/join-code", _join_code),
        ("GET", "/api/models/search", _search),
        ("GET", "/api/models/repo", _repo),
        ("POST", "/api/plan", _plan),
        ("GET", "/api/deployments", _deployments),
        ("POST", "/api/deployments", _launch),
        ("GET", one, _deployment),
        ("PUT", one, _replace),
        ("DELETE", one, _remove),
        ("POST", f"{one}/stop", _stop),
        ("POST", f"{one}/start", _start),
        ("POST", f"{one}/restart", _start),
        ("GET", f"{one}/logs/stream", _logs),
        *MODEL_ROUTES,
        *RECORD_ROUTES,
        *CARE_ROUTES,
    ]


# -- errors and keys ---------------------------------------------------------------------------


class RightKey:
    """In a scene that needs a key, nothing of the API answers without it."""

    def __init__(self, app: ASGIApp, world: "World") -> None:
        self._app, self._world = app, world

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._is_refused(Request(scope)):
            error = KeyRequired("a key is needed from other hosts: Authorization: Bearer KEY")
            await _answer_of(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_refused(self, request: Request) -> bool:
        path = request.url.path
        if not self._world.scene.needs_key or request.cookies.get(COOKIE) == KEY:
            return False
        is_sign_in = path == "/api/session" and request.method != "GET"
        return path.startswith(("/api/", "/v1/")) and not is_sign_in


def _answer_of(error: ProjectError, path: str) -> Response:
    status, text = status_of(error), str(error)
    if path.startswith("/v1/"):
        return JSONResponse(error_body(api_of(path), status, error.code, text), status)
    more = {"shortfall": error.shortfall} if isinstance(error, InsufficientMemory) else {}
    return problem(status, error.code, text, **more)


async def _on_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ProjectError)
    return _answer_of(exc, request.url.path)


async def _on_invalid(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, ValidationError)
    first = exc.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(422, BadRequest.code, f"{where}: {first['msg']}")


async def _on_http(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return problem(exc.status_code, BadRequest.code, str(exc.detail))


# -- the state, and who asks -------------------------------------------------------------------


async def _status(world: "World", _: Request) -> Response:
    return JSONResponse(world.snapshot())


async def _events(world: "World", _: Request) -> Response:
    return event_stream(world.events())


async def _who(world: "World", _: Request) -> Response:
    is_keyless = not world.scene.needs_key
    caller = "local" if is_keyless else "ada"
    who = SessionView(caller=caller, scopes=list(Scope), is_keyless=is_keyless)
    return JSONResponse(who.model_dump(mode="json"))


async def _sign_in(_: "World", request: Request) -> Response:
    if (await body_of(request))["key"] != KEY:
        raise KeyRequired("that is not the key; 'supervisor key' on the main host prints it")
    response = Response(status_code=204)
    response.set_cookie(COOKIE, KEY, httponly=True, samesite="strict")
    return response


async def _sign_out(_: "World", __: Request) -> Response:
    response = Response(status_code=204)
    response.delete_cookie(COOKIE)
    return response


# -- devices -----------------------------------------------------------------------------------


def _device(world: "World", request: Request) -> Json:
    name = request.path_params["device"]
    if (found := world.device(name)) is None:
        raise DeviceUnknown(f"no device {name} has joined")
    return found


async def _change_device(world: "World", request: Request) -> Response:
    found, wanted = _device(world, request), await body_of(request)
    return JSONResponse(world.change_device(found["id"], **wanted))


async def _remove_device(world: "World", request: Request) -> Response:
    world.remove_device(_device(world, request)["id"])
    return Response(status_code=204)


async def _drain(world: "World", request: Request) -> Response:
    found = _device(world, request)
    for each in world.scene.deployments:
        if each["id"] == found["used_by"] and found["name"] in each["spec"]["devices"]:
            rest = tuple(name for name in each["spec"]["devices"] if name != found["name"])
            spec = DeploymentSpec.model_validate({**each["spec"], "devices": rest})
            await asyncio.to_thread(
                world.scene.home.answer, spec
            )  # refused if it cannot do without
    return JSONResponse(world.change_device(found["id"], excluded=True))


async def _measure(world: "World", request: Request) -> Response:
    from lab.page_world import sse

    found = _device(world, request)

    async def steps() -> AsyncIterator[bytes]:
        world.change_device(found["id"], doing="being measured")
        for index, step in enumerate(MEASURE_STEPS):
            part = (index + 1) / len(MEASURE_STEPS)
            yield sse("progress", {"step": step, "part": part, "device": ""})
            await asyncio.sleep(world.measure_step_s)
        speed = {**(found["speed"] or {}), "taken_at": stamp(world.clock()), "stale": ""}
        world.change_device(found["id"], doing="", speed=speed if found["speed"] else None)
        yield sse("result", {"agent_id": found["id"], "device": found["name"], "devices": []})

    return event_stream(steps())


@cache
def _join_lines() -> tuple[str, str, Any]:
    pin = "sha256//vQ3b0t8mEoYpY7Yp3GQd1m2nN0rW5sC8xKQb1aH9uTg="
    code = "192.168.1.10:8101/Zp4mT9qW2vXc7LkN/3f9a61c0d2e84b75"
    base = f"curl -fsSk --noproxy '*' --pinnedpubkey '{pin}' https://192.168.1.10:8101/files"
    joins = f"SUPERVISOR_JOIN_CODE={code}"
    termux = f"{base}/install.sh -o install.sh && {joins} sh install.sh - '{pin}'"
    script = "~/.llama-join.sh"
    elsewhere = f"{base}/join.sh -o {script} && {joins} sh {script} - '{pin}'"
    return code, termux, elsewhere


async def _join_code(world: "World", _: Request) -> Response:
    code, termux, elsewhere = _join_lines()
    view = JoinCodeView(
        code=code,
        command=elsewhere,
        termux_command=termux,
        expires_at=stamp(world.clock() + timedelta(hours=24)),
        lines=join_lines(termux, elsewhere),
    )
    return JSONResponse(view.model_dump(mode="json"))


# -- models and plans --------------------------------------------------------------------------


def reach_hub(world: "World") -> None:
    if world.scene.is_hub_down:
        raise HubUnreachable("huggingface.co does not answer; check this host's network")


async def _search(world: "World", request: Request) -> Response:
    reach_hub(world)
    text = request.query_params.get("q", "")
    rows = [
        {
            "repo": f"{owner}/{text or 'Qwen3'}-{size}-Instruct-GGUF",
            "downloads": 1_204_338 // (index * index + 1),
            "likes": 912 // (index + 1),
            "updated_at": stamp(world.clock() - timedelta(days=9 * index + 1)),
            "is_gated": index == 2,
        }
        for index, (owner, size) in enumerate(
            (("bartowski", "8B"), ("unsloth", "14B"), ("meta-llama", "8B"), ("ggml-org", "4B"))
        )
    ]
    return JSONResponse(rows if "nothing" not in text else [])


async def _repo(world: "World", request: Request) -> Response:
    reach_hub(world)
    repo = request.query_params["repo"]
    files = [
        {"reference": f"{repo}:{label}", "label": label, "size_bytes": int(size * 1e9),
         "parts": parts}
        for label, size, parts in (("Q4_K_M", 5.03, 1), ("Q6_K", 6.73, 1), ("Q8_0", 8.71, 1),
                                   ("BF16", 16.4, 2))
    ]  # fmt: skip
    return JSONResponse({"repo": repo, "files": files})


async def _spec(request: Request) -> DeploymentSpec:
    return DeploymentSpec.model_validate(await body_of(request))


async def _plan(world: "World", request: Request) -> Response:
    view = await asyncio.to_thread(world.scene.home.answer, await _spec(request))
    return JSONResponse(view.model_dump(mode="json"))


# -- deployments -------------------------------------------------------------------------------


def _found(world: "World", request: Request) -> Json:
    name = request.path_params["name"]
    if (found := world.deployment(name)) is None:
        raise DeploymentUnknown(f"no deployment is called {name}")
    return found


async def _deployments(world: "World", _: Request) -> Response:
    return JSONResponse(world.scene.deployments)


async def _deployment(world: "World", request: Request) -> Response:
    return JSONResponse(_found(world, request))


async def _starting(world: "World", spec: DeploymentSpec) -> Json:
    """What a launch begins with; it goes no further by itself, unless the world is live."""
    answer = await asyncio.to_thread(world.scene.home.answer, spec)
    name = spec.name or answer.plan.model.name.lower().replace(" ", "-")
    number = max((each.id for each in world.scene.launches), default=0) + 1
    begun = record(number, name, answer.plan, world.scene.home, world.clock())
    starting = {"outcome": "starting", "timeline": begun.timeline[:1], "links": ()}
    world.scene.launches.insert(0, begun.model_copy(update=starting))
    made = Deployment(
        id=deployment_id(name),
        spec=spec,
        state=State.STARTING,
        phase="workers",
        since=stamp(world.clock()),
        launch_id=begun.id,
        timeline=begun.timeline[:1],
        plan=answer.plan,
        loads=worker_loads(answer.plan, {}),
    )
    return dumped(made, token_time=None)


async def _launch(world: "World", request: Request) -> Response:
    spec = await _spec(request)
    found = world.deployment(spec.name or "")
    if found and found["state"] not in ("stopped", "failed"):
        raise DeploymentExists(f"deployment {found['id']} is running already; stop it first")
    body = await _starting(world, spec)
    if found:
        world.remove_deployment(found["id"])
    world.add_deployment(body)
    return JSONResponse(body, 201)


async def _replace(world: "World", request: Request) -> Response:
    found = _found(world, request)
    body = await _starting(world, await _spec(request))
    return JSONResponse(world.change_deployment(found["id"], **{**body, "id": found["id"]}))


async def _remove(world: "World", request: Request) -> Response:
    world.remove_deployment(_found(world, request)["id"])
    return Response(status_code=204)


async def _stop(world: "World", request: Request) -> Response:
    changes: Json = {"state": "stopped", "phase": "", "port": None, "loads": [], "links": []}
    return JSONResponse(world.change_deployment(_found(world, request)["id"], **changes))


async def _start(world: "World", request: Request) -> Response:
    found = _found(world, request)
    body = await _starting(world, DeploymentSpec.model_validate(found["spec"]))
    return JSONResponse(world.change_deployment(found["id"], **{**body, "id": found["id"]}))


async def _logs(world: "World", request: Request) -> Response:
    found = _found(world, request)
    return event_stream(world.logs(found["id"], request.query_params.getlist("process")))
