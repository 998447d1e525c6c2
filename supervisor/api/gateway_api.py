"""The gateway's HTTP edge: bodies in, answers out as they come, and clients that leave.

Plain ASGI in place of routes of FastAPI: every token of every answer passes here.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Final

from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from agents.errors import ProjectError
from supervisor.api.problems import status_of
from supervisor.core.api_errors import error_body
from supervisor.core.callers import CALLER, Caller
from supervisor.core.callers import Scope as KeyScope
from supervisor.core.calls import Call, remote_media, wait_s
from supervisor.core.gateway_routes import (
    HEALTH_PATHS,
    MODELS_PATHS,
    ROUTES,
    Api,
    GatewayRoute,
    api_of,
    is_gateway_path,
    why_withheld,
)
from supervisor.errors import (
    BadRequest,
    InputError,
    QueueFull,
    RateLimited,
    RemoteMediaRefused,
    RequestTooLarge,
    RouteUnknown,
    RouteWithheld,
    WaitedTooLong,
)
from supervisor.service.gateway import Gateway
from supervisor.service.outlet import AnswerBroken, Failure, Outlet
from supervisor.settings import Settings

_MIB: Final = 1024 * 1024
_BIG_BYTES: Final = _MIB
"""Larger bodies are parsed one at a time and in a thread."""


class GatewayFork:
    """Sends requests for the gateway's paths to it, all others on."""

    def __init__(self, app: ASGIApp, gateway: "GatewayApp") -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_ours = scope["type"] == "http" and is_gateway_path(scope["path"])
        await (self._gateway if is_ours else self._app)(scope, receive, send)


class GatewayApp:
    """The gateway as an application."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings
        self._bodies = _Bodies(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = _Client(send, api_of(scope["path"]))
        try:
            await self._served(scope, receive, client)
        except ProjectError as exc:
            failure = client.failure(exc)
            await client.whole(failure.status, failure.headers, failure.body)
        except _ClientLeft:
            pass

    async def _served(self, scope: Scope, receive: Receive, client: "_Client") -> None:
        path, method = scope["path"], scope["method"]
        if path in HEALTH_PATHS:
            await client.whole(*self._health())
        elif method == "GET" and (name := _model_name(path)) is not None:
            await client.whole(200, (), self._gateway.models(name))
        else:
            await self._passed_on(_route(method, path), scope, receive, client)

    def _health(self) -> tuple[int, Sequence[tuple[str, str]], Mapping[str, Any]]:
        """As llama-server says it: whether a request would be answered now."""
        if self._gateway.is_ready:
            return 200, (), {"status": "ok"}
        error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        return 503, (), {"error": error}

    async def _passed_on(
        self, route: GatewayRoute, scope: Scope, receive: Receive, client: "_Client"
    ) -> None:
        headers = Headers(scope=scope)
        caller: Caller = scope[CALLER]
        query = scope["query_string"].decode("latin-1")
        prefer = ", ".join(headers.getlist("prefer"))
        with self._bodies.held() as body:
            await body.read(headers, receive)
            parsed = await body.parsed() if route.method == "POST" else None
            if parsed is not None and not caller.may(KeyScope.ADMIN):
                _refuse_remote_media(parsed)
            call = Call(
                route=route,
                caller=caller,
                query=query,
                content_type=headers.get("content-type", "application/json"),
                body=body.whole,
                parsed=parsed,
                model=_model(parsed, query),
                wait_s=wait_s(prefer, caller.wait_s, self._settings.queue_wait_s),
            )
            async with _present(receive, client):
                await self._answered(call, client)

    async def _answered(self, call: Call, client: "_Client") -> None:
        outlet = Outlet(client, call.route.api)
        try:
            await self._gateway.answer(call, outlet)
        except AnswerBroken:
            # Without an end of the body the server closes the connection, which tells the client.
            return
        except asyncio.CancelledError:
            await outlet.abandon()
            raise


def _route(method: str, path: str) -> GatewayRoute:
    """What is asked for.

    Raises:
        RouteWithheld, RouteUnknown
    """
    route = ROUTES.get((method, path))
    if route is not None:
        return route
    if why := why_withheld(path):
        raise RouteWithheld(f"the gateway does not offer {path}: {why}")
    other = next((known for known, at in ROUTES if at == path), None)
    hint = f"; it wants {other}" if other else "; docs/gateway.md lists those that are there"
    raise RouteUnknown(f"there is no {method} {path}{hint}")


def _model_name(path: str) -> str | None:
    """Which model is looked at: empty for all; ``None``: the path is about something else."""
    if path in MODELS_PATHS:
        return ""
    return next(
        (path.removeprefix(f"{at}/") for at in MODELS_PATHS if path.startswith(f"{at}/")), None
    )


def _model(parsed: Mapping[str, Any] | None, query: str) -> str | None:
    model = parsed.get("model") if parsed is not None else QueryParams(query).get("model")
    return model if isinstance(model, str) else None


def _refuse_remote_media(parsed: Mapping[str, Any]) -> None:
    address = remote_media(parsed)
    if address is not None:
        raise RemoteMediaRefused(
            f"the request names media at {address!r}, which this host would fetch; send the "
            "content itself, or use a key with the scope admin"
        )


class _ClientLeft(Exception):
    """Nobody waits for the answer any more."""


@contextlib.asynccontextmanager
async def _present(receive: Receive, client: "_Client") -> AsyncIterator[None]:
    """Cancels the block when the client leaves, as :func:`asyncio.timeout` does at its time."""
    working = asyncio.current_task()
    assert working is not None
    has_left = False

    async def watch() -> None:
        nonlocal has_left
        while (await receive())["type"] != "http.disconnect":
            pass
        if not client.is_complete:  # else it is told that all was sent
            has_left = True
            working.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if has_left and working.uncancel() == 0:
            raise _ClientLeft from None
        raise
    finally:
        watching.cancel()


class _Client:
    """One client, over ASGI."""

    def __init__(self, send: Send, api: Api) -> None:
        self._send = send
        self._api = api
        self.is_complete = False

    async def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, data: bytes, *, more: bool) -> None:
        self.is_complete = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def whole(
        self, status: int, headers: Sequence[tuple[str, str]], body: Mapping[str, Any]
    ) -> None:
        """An answer of our own."""
        data = json.dumps(body).encode()
        more = [("content-type", "application/json"), ("content-length", str(len(data)))]
        await self.start(status, [*(h for h in headers if h[0] != "content-type"), *more])
        await self.send(data, more=False)

    def failure(self, error: ProjectError) -> Failure:
        status = status_of(error)
        if status == 422 and isinstance(error, InputError):
            status = 400  # what clients of these APIs know
        more = error.more if isinstance(error, WaitedTooLong) else None
        body = error_body(self._api, status, error.code, str(error), more)
        return Failure(status, _error_headers(error), body)


def _error_headers(error: ProjectError) -> list[tuple[str, str]]:
    """Content type, and when to try again."""
    headers = [("content-type", "application/json")]
    if isinstance(error, RateLimited | QueueFull | WaitedTooLong):
        after_s = error.retry_after_s
        headers += [("retry-after", str(max(round(after_s), 1)))] if after_s is not None else []
    return headers


def _strict_json(data: bytes) -> Any:
    """As the engine reads it: UTF-8, and no NaN.

    Raises:
        ValueError: It is no JSON.
    """
    return json.loads(data.decode(), parse_constant=_no_number)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


class _Bodies:
    """The bodies of all requests that are at work: each is bounded, and so are all together."""

    def __init__(self, settings: Settings) -> None:
        self.limit_bytes = settings.body_limit_mib * _MIB
        self.total_limit_bytes = max(settings.bodies_limit_mib * _MIB, self.limit_bytes)
        self.total_bytes = 0
        self.parsing = asyncio.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator["_Body"]:
        """One body; it is let go at the end of the block."""
        body = _Body(self)
        try:
            yield body
        finally:
            self.total_bytes -= body.size_bytes


class _Body:
    """The body of one request. It is needed again if the engine is lost."""

    def __init__(self, all_bodies: _Bodies) -> None:
        self._all = all_bodies
        self.size_bytes = 0
        self.whole = b""

    async def read(self, headers: Headers, receive: Receive) -> None:
        """Read it.

        Raises:
            RequestTooLarge: As soon as that is known.
            QueueFull: All together are too large; a little later it may fit.
        """
        announced = headers.get("content-length", "")
        if announced.isdigit():
            self._check(int(announced))
        data, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeft
            chunk = message.get("body", b"")
            self._check(self.size_bytes + len(chunk))
            if self._all.total_bytes + len(chunk) > self._all.total_limit_bytes:
                raise QueueFull(
                    f"all requests together hold {self._all.total_limit_bytes // _MIB} MiB, which "
                    "is the most (setting bodies_limit_mib); try again"
                )
            data += chunk
            self.size_bytes += len(chunk)
            self._all.total_bytes += len(chunk)
            more = message.get("more_body", False)
        self.whole = bytes(data)

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._all.limit_bytes:
            raise RequestTooLarge(
                f"the request has more than {self._all.limit_bytes // _MIB} MiB (setting "
                "body_limit_mib); send less"
            )

    async def parsed(self) -> Mapping[str, Any]:
        """As JSON.

        Raises:
            BadRequest: It is not a JSON object.
        """
        try:
            if len(self.whole) > _BIG_BYTES:
                async with self._all.parsing:
                    found = await asyncio.to_thread(_strict_json, self.whole)
            else:
                found = _strict_json(self.whole)
        except (ValueError, RecursionError) as exc:
            raise BadRequest(f"the request is not JSON: {exc}") from exc
        if not isinstance(found, dict):
            raise BadRequest("the request is not a JSON object")
        return found
