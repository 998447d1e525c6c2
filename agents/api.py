"""REST API of the agent. Only the supervisor's certificate is obeyed."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agents import errors, logfile, tls
from agents.contract import (
    SUPERVISOR_NAME,
    DeviceFacts,
    MeasurementSpec,
    RpcServerSpec,
    read,
)
from agents.measuring import Measurement
from agents.requests import problem, read_body
from agents.rpc_server import RpcServer

MAX_BODY_BYTES = 64 * 1024
MAX_WAIT_S = 30.0
REPEAT_S = 2.0
"""Progress is repeated this often, so that a caller knows a slow device from a dead one."""

_STATUS = {
    errors.EngineFixed.code: 409,
    errors.EngineInUse.code: 409,
    errors.EngineMissing.code: 409,
    errors.EngineUnusable.code: 409,
    errors.MeasurementRefused.code: 409,
    errors.StaleGeneration.code: 409,
    errors.PortInUse.code: 409,
    errors.BadMessage.code: 422,
    errors.PublicAddressRefused.code: 422,
    errors.NoFreePort.code: 503,
    errors.FetchUnknown.code: 404,
}


async def _on_error(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, errors.ProjectError)
    return problem(_STATUS.get(exc.code, 500), exc.code, str(exc))


class SupervisorOnly:
    """Refuses every caller but the supervisor. Other agents hold valid certificates too."""

    def __init__(self, app: tls.Application) -> None:
        self._app = app

    async def __call__(self, scope: tls.Scope, receive: tls.Receive, send: tls.Send) -> None:
        if scope["type"] == "http" and scope.get(tls.PEER) != SUPERVISOR_NAME:
            refusal = problem(403, "forbidden", "only the supervisor may call an agent")
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


class MeasurementResponse(StreamingResponse):
    """Updates as JSON lines. The measurement ends with the answer, however that ends."""

    def __init__(self, measurement: Measurement) -> None:
        super().__init__(_lines(measurement), media_type="application/x-ndjson")
        self._measurement = measurement

    async def __call__(self, scope: tls.Scope, receive: tls.Receive, send: tls.Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Not in the generator: it never runs if the caller left before the first line.
            self._measurement.cancel("the caller, who hung up")


async def _lines(measurement: Measurement) -> AsyncIterator[str]:
    async for update in measurement.updates(REPEAT_S):
        yield json.dumps(asdict(update)) + "\n"


def create_app(
    rpc_server: RpcServer,
    read_facts: Callable[[], Awaitable[DeviceFacts]],
    more: Sequence[Route] = (),
) -> tls.Application:
    """The routes: facts, desired and observed rpc-server, its log, measuring; and ``more``."""

    async def get_facts(_: Request) -> Response:
        return JSONResponse(asdict(await read_facts()))

    async def get_rpc_server(request: Request) -> Response:
        wait_s = min(_number(request, "wait_s", 0.0), MAX_WAIT_S)
        return JSONResponse(asdict(await rpc_server.wait_while_starting(wait_s)))

    async def put_rpc_server(request: Request) -> Response:
        wait_s = min(_number(request, "wait_s", 0.0), MAX_WAIT_S)
        await rpc_server.apply(read(RpcServerSpec, await _body(request)))
        return JSONResponse(asdict(await rpc_server.wait_while_starting(wait_s)), 202)

    async def delete_rpc_server(request: Request) -> Response:
        generation = int(_number(request, "generation", 0))
        return JSONResponse(asdict(await rpc_server.remove(generation)))

    async def get_log(request: Request) -> Response:
        offset = int(_number(request, "offset", -1))
        return JSONResponse(await asyncio.to_thread(_read_log, rpc_server, offset))

    async def post_measurement(request: Request) -> Response:
        spec = read(MeasurementSpec, await _body(request))
        names = [device.name for device in (await read_facts()).ggml_devices]
        return MeasurementResponse(await rpc_server.measure(spec, names))

    routes = [
        Route("/facts", get_facts),
        Route("/rpc-server", get_rpc_server),
        Route("/rpc-server", put_rpc_server, methods=["PUT"]),
        Route("/rpc-server", delete_rpc_server, methods=["DELETE"]),
        Route("/rpc-server/log", get_log),
        Route("/measurement", post_measurement, methods=["POST"]),
        *more,
    ]
    app = Starlette(routes=routes, exception_handlers={errors.ProjectError: _on_error})
    return SupervisorOnly(app)


async def _body(request: Request) -> Any:
    body = await read_body(request, MAX_BODY_BYTES, errors.BadMessage)
    try:
        return json.loads(body)
    except ValueError as exc:
        raise errors.BadMessage(f"body is not JSON: {exc}") from exc


def _number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name)
    try:
        return default if text is None else float(text)
    except ValueError as exc:
        raise errors.BadMessage(f"{name}={text!r} is not a number") from exc


def _read_log(rpc_server: RpcServer, offset: int) -> dict[str, Any]:
    path = rpc_server.log_path()
    if path is None:
        return {"file": "", "offset": 0, "text": ""}
    text, end = logfile.read_from(path, offset)
    return {"file": path.name, "offset": end, "text": text}
