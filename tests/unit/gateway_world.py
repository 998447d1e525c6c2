"""A gateway with deployments that are just values, and engines that are real HTTP servers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.errors import ProjectError
from supervisor.adapters.engine_http import EngineHttp
from supervisor.core.api_errors import error_body
from supervisor.core.callers import LOCAL, Caller
from supervisor.core.calls import Call
from supervisor.core.entities import (
    Deployment,
    DeploymentId,
    DeploymentSpec,
    LaunchId,
    ModelFacts,
    Plan,
    Prediction,
)
from supervisor.core.gateway_routes import ROUTES, Api
from supervisor.core.library import LibraryModel, NameIndex
from supervisor.core.lifecycle import State
from supervisor.core.model_settings import ModelSettings, merged
from supervisor.core.request_record import RequestRecord
from supervisor.errors import ModelMissing
from supervisor.service.gateway import Gateway
from supervisor.service.on_demand import OnDemand
from supervisor.service.outlet import Failure, Outlet
from supervisor.settings import Settings

CHAT = ROUTES["POST", "/v1/chat/completions"]


def plan(slots: int = 1, load_s: float = 20.0) -> Plan:
    """A plan whose load takes ``load_s``."""
    model = ModelFacts(
        path="/m/gem-Q4.gguf", name="Gem", architecture="llama", block_count=4, size_bytes=100
    )
    prediction = Prediction(
        decode_tokens_per_s=10,
        prefill_tokens_per_s=100,
        load_s=load_s,
        prompt_tokens=100,
        output_s=0.01,
        stages=(),
        is_guess=True,
    )
    return Plan(model=model, ctx_tokens=4096, slots=slots, shards=(), prediction=prediction)


def deployment(name: str = "gem", state: State = State.READY, **more: Any) -> Deployment:
    """One that has a plan."""
    spec = more.pop("spec", None) or DeploymentSpec(model=f"/m/{name}-Q4.gguf")
    given = {"plan": plan(), "launch_id": LaunchId(1), **more}
    return Deployment(id=DeploymentId(name), spec=spec, state=state, **given)


def call(
    body: Mapping[str, Any] | None = None,
    *,
    caller: Caller = LOCAL,
    wait_s: float = 5.0,
    path: str = CHAT.path,
) -> Call:
    """A request of a client."""
    parsed = dict(body or {"messages": [{"role": "user", "content": "Hi"}]})
    route = ROUTES["POST", path]
    model = parsed.get("model")
    data = json.dumps(parsed).encode()
    return Call(route, caller, body=data, parsed=parsed, model=model, wait_s=wait_s)


@dataclass
class Client:
    """What one client has got."""

    api: Api = Api.CHAT
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, it reads nothing."""

    def __post_init__(self) -> None:
        self.gate.set()

    async def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.status, self.headers = status, dict(headers)

    async def send(self, data: bytes, *, more: bool) -> None:
        await self.gate.wait()
        self.body += data
        self.is_complete = not more

    def failure(self, error: ProjectError) -> Failure:
        body = error_body(self.api, 599, error.code, str(error))
        return Failure(599, [("content-type", "application/json")], body)

    @property
    def code(self) -> str:
        """Of the error that it was told."""
        return str(json.loads(self.body)["error"]["code"])


Answering = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Engine:
    """An HTTP server in place of llama-server; ``answering`` gets the body of a request."""

    answering: Answering
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    hung_up: int = 0
    """Clients that left before their answer was complete."""
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            await self._served(reader, writer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.serving.discard(task)

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        size = next((int(x[15:]) for x in lines if x.startswith("content-length:")), 0)
        body = await reader.readexactly(size)
        self.requests.append(body)
        answering = asyncio.ensure_future(self.answering(body, writer))
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        self.hung_up += not answering.done()
        for task in (answering, gone):
            task.cancel()
        await asyncio.gather(answering, gone, return_exceptions=True)


@contextlib.asynccontextmanager
async def engine(answering: Answering) -> AsyncIterator[Engine]:
    """One that answers on a port of its own."""
    made = Engine(answering)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    async with server:
        yield made
    await asyncio.gather(*made.serving)


def whole(body: Any, status: int = 200) -> bytes:
    """An answer that comes at once."""
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Of a stream."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@dataclass
class Accounts:
    """No limits; remembers usage."""

    used: list[tuple[str, int, int]] = field(default_factory=list)

    @contextlib.contextmanager
    def entered(self, caller: Caller) -> Iterator[None]:
        yield

    def note_usage(self, caller_name: str, prompt_tokens: int, generated_tokens: int) -> None:
        self.used.append((caller_name, prompt_tokens, generated_tokens))


@dataclass
class World:
    """Deployments that tests change, and the gateway before them."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    deployments: dict[str, Deployment] = field(default_factory=dict)
    records: list[RequestRecord] = field(default_factory=list)
    accounts: Accounts = field(default_factory=Accounts)
    started: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    created: list[DeploymentSpec] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)
    """Settings of every model."""

    def __post_init__(self) -> None:
        given = {"data_folder": self.folder, **self.settings}
        settings = Settings.model_validate(given)
        self.engines = EngineHttp("key")
        self.on_demand = OnDemand(settings, self, self._find_model, self._with_kept)
        self.gateway = Gateway(
            settings, self, self.engines, self.accounts, self.on_demand, self.records.append
        )

    def _find_model(self, text: str) -> LibraryModel | None:
        listed = [
            LibraryModel(path=f, parts=(f,), name=Path(f).stem, source="folder") for f in self.files
        ]
        try:
            return NameIndex(listed).find(text)
        except ModelMissing:
            return None

    def _with_kept(self, spec: DeploymentSpec) -> DeploymentSpec:
        return merged(spec, ModelSettings(model=spec.model, values=self.kept))

    def all(self) -> list[Deployment]:
        return list(self.deployments.values())

    def put(self, each: Deployment) -> None:
        """Change a deployment, as the reconciler would."""
        self.deployments[each.id] = each
        self.gateway.lanes.look_again()

    async def create(self, spec: DeploymentSpec) -> Deployment:
        self.created.append(spec)
        made = deployment(Path(spec.model).stem, State.PENDING, spec=spec)
        self.put(made)
        return made

    async def start(self, name: str) -> Deployment:
        self.started.append(name)
        self.put(self.deployments[name].model_copy(update={"state": State.PENDING}))
        return self.deployments[name]

    async def stop(self, name: str) -> Deployment:
        self.stopped.append(name)
        self.put(self.deployments[name].model_copy(update={"state": State.STOPPED}))
        return self.deployments[name]

    async def ask(self, asked: Call, client: Client | None = None) -> Client:
        """Have a request answered."""
        client = client or Client(asked.route.api)
        await self.gateway.answer(asked, Outlet(client, asked.route.api))
        return client
