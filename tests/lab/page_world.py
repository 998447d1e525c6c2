"""A server of the real page whose main host is invented: every state of it at once, by a name.

    cd tests && ../.venv/bin/python -m lab.page_world --scene loading --live

serves the page with its real headers, and the API from a scene (``page_scenes``). A test shows
another scene, changes a device or a deployment, or sends an event as the supervisor would.
"""

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from lab.page_home import MAIN_HOST
from lab.page_records import log_lines, stamp
from lab.page_routes import create_app
from lab.page_scenes import SCENES, Scene
from supervisor import __version__
from supervisor.api.views import Snapshot
from supervisor.api.web import SecurityHeaders
from supervisor.core.engine_change import EngineChange
from supervisor.core.keys import ApiKey
from supervisor.core.request_record import RequestRecord

PAGE_FOLDER: Final = Path(__file__).parents[2] / "dashboard"
FROZEN: Final = datetime(2026, 5, 4, 9, 30, tzinfo=UTC)
"""Of pictures: with the browser's clock at the same time, two runs show the same."""

Json = dict[str, Any]


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class World:
    """The scene that is shown, and the streams that follow it."""

    scene: Scene
    clock: Callable[[], datetime] = now
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path and body of each request that changes something."""
    answer_pace_s: float = 0.01
    """Between the tokens of an answer."""
    first_token: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, it holds answers back before their first token."""
    measure_step_s: float = 0.6
    engine_step_s: float = 0.02
    engine_change: EngineChange | None = None
    change_fails: bool = False
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared, it holds back what the doctor finds, and work on engines half-way."""
    model_settings: dict[str, Json] = field(default_factory=dict)
    keys: list[ApiKey] | None = None
    """None: nobody asked for them yet."""
    _streams: set[asyncio.Queue[bytes | None]] = field(default_factory=set)
    _logs: set[asyncio.Queue[bytes | None]] = field(default_factory=set)

    @classmethod
    def of(cls, name: str, clock: Callable[[], datetime] = now) -> "World":
        """A world that begins with the scene of that name."""
        world = cls(SCENES[name](clock()), clock)
        world.first_token.set()
        world.goes_on.set()
        world.check()
        return world

    def show(self, name: str) -> Scene:
        """Another scene, from now on; open pages get a snapshot."""
        self.scene = SCENES[name](self.clock())
        self.asked.clear()
        self.keys = self.engine_change = None
        self.change_fails = False
        self.model_settings.clear()
        self.first_token.set()
        self.goes_on.set()
        self.check()
        self.send("snapshot", self.snapshot())
        return self.scene

    def stamp(self) -> str:
        """The time of the scene, as the supervisor writes it."""
        return stamp(self.clock())

    # -- what is there -----------------------------------------------------------------------

    def snapshot(self) -> Json:
        """As ``GET /api/status``."""
        scene = self.scene
        return {
            "version": __version__,
            "main_host": MAIN_HOST,
            "url": "http://192.168.1.10:8100",
            "time": self.stamp(),
            "engine": asdict(scene.engine),
            "problem": scene.problem,
            "devices": scene.devices,
            "deployments": scene.deployments,
            "traffic": scene.traffic,
            "requests": [each.model_dump(mode="json") for each in scene.requests[:50]],
            "pulls": scene.pulls,
        }

    def check(self) -> None:
        """What is sent is what the real server could send.

        Raises:
            ValidationError: A shape has changed, or a scene is wrong.
        """
        Snapshot.model_validate(self.snapshot())

    def device(self, name: str) -> Json | None:
        """By its name or its id."""
        return _named(self.scene.devices, name, ("id", "name"))

    def deployment(self, name: str) -> Json | None:
        return _named(self.scene.deployments, name, ("id",))

    # -- what happens ------------------------------------------------------------------------

    def send(self, event: str, data: Any) -> None:
        """An event of ``GET /api/events``, to all who follow."""
        block = sse(event, data)
        for queue in self._streams:
            queue.put_nowait(block)

    def change_device(self, name: str, **fields: Any) -> Json:
        """Fields of a device, and its event."""
        found = self.device(name)
        assert found is not None, name
        found.update(fields)
        self.send("device", found)
        return found

    def change_deployment(self, name: str, **fields: Any) -> Json:
        """Fields of a deployment, and its event; a new state begins now."""
        found = self.deployment(name)
        assert found is not None, name
        if fields.get("state", found["state"]) != found["state"]:
            fields.setdefault("since", stamp(self.clock()))
        found.update(fields)
        self.send("deployment", found)
        return found

    def add_device(self, body: Json) -> None:
        self.scene.devices.append(body)
        self.send("device", body)

    def add_deployment(self, body: Json) -> None:
        self.scene.deployments.append(body)
        self.scene.traffic.append(
            {"deployment": body["id"], "active": 0, "waiting": 0, "slots": body["spec"]["slots"]}
        )
        self.send("deployment", body)

    def remove_device(self, name: str) -> None:
        found = self.device(name)
        assert found is not None, name
        self.scene.devices.remove(found)
        self.send("device_removed", {"id": found["id"]})

    def remove_deployment(self, name: str) -> None:
        found = self.deployment(name)
        assert found is not None, name
        self.scene.deployments.remove(found)
        self.send("deployment_removed", {"id": name})

    def change_traffic(self, name: str, **fields: int) -> None:
        row = next(row for row in self.scene.traffic if row["deployment"] == name)
        row.update(fields)
        self.send("traffic", row)

    def add_request(self, record: RequestRecord) -> None:
        self.scene.requests.insert(0, record)
        self.send("request", record.model_dump(mode="json"))

    def log(self, process: str, lines: Iterable[str], file: str = "", **more: Any) -> None:
        """Lines that a process writes, to all who follow its log; ``more`` goes beside them."""
        text = "".join(f"{line}\n" for line in lines)
        body = {"process": process, "file": file or f"{process}-41.log", "text": text, **more}
        for queue in self._logs:
            queue.put_nowait(sse("lines", body))

    def close(self) -> None:
        """End all streams, as a supervisor that stops does."""
        for queue in self._streams | self._logs:
            queue.put_nowait(None)

    # -- streams -----------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[bytes]:
        """The snapshot, and what happens from then on."""
        with _joined(self._streams) as queue:
            yield sse("snapshot", self.snapshot())
            while (block := await queue.get()) is not None:
                yield block

    async def logs(self, name: str, processes: list[str]) -> AsyncIterator[bytes]:
        """All lines that there are, and those that come."""
        found = self.deployment(name)
        workers = worker_names(found) if found else []
        with _joined(self._logs) as queue:
            for process in processes or ["llama-server", "link", *workers]:
                if process == "pixel-8" and found and found["state"] == "backoff":
                    detail = "the agent of pixel-8 does not answer"
                    yield sse("silent", {"process": process, "detail": detail})
                    continue
                text = "".join(f"{line}\n" for line in log_lines(process, self.scene.log_lines))
                body = {"process": process, "file": f"{process}-41.log", "text": text}
                yield sse("lines", body)
            while (block := await queue.get()) is not None:
                yield block


def worker_names(deployment: Json) -> list[str]:
    """Devices that a deployment uses, in the order of its plan."""
    shards = deployment["plan"]["shards"] if deployment["plan"] else []
    return list(dict.fromkeys(shard["device"] for shard in shards))


def sse(event: str, data: Any) -> bytes:
    """One server-sent event."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()


def _named(rows: list[Json], name: str, fields: tuple[str, ...]) -> Json | None:
    return next((row for row in rows if name in [row[each] for each in fields]), None)


@contextlib.contextmanager
def _joined(
    streams: set[asyncio.Queue[bytes | None]],
) -> Any:
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()
    streams.add(queue)
    try:
        yield queue
    finally:
        streams.discard(queue)


# -- the server --------------------------------------------------------------------------------


@dataclass
class PageServer:
    """A world on a port of loopback."""

    world: World
    url: str


@contextlib.asynccontextmanager
async def serving(world: World, *, port: int = 0) -> AsyncIterator[PageServer]:
    """Serve the page and the world until the block ends."""
    app: ASGIApp = SecurityHeaders(create_app(world, PAGE_FOLDER))
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="error", timeout_graceful_shutdown=1,
        lifespan="off",
    )  # fmt: skip
    server = uvicorn.Server(config)
    task = asyncio.create_task(_serve(server))
    try:
        while not server.started:
            if task.done():
                await task
            await asyncio.sleep(0.01)
        found = server.servers[0].sockets[0].getsockname()[1]
        yield PageServer(world, f"http://127.0.0.1:{found}")
    finally:
        world.close()
        server.should_exit = True
        await task


async def _serve(server: uvicorn.Server) -> None:
    """Without uvicorn's own handlers of signals: the program or the test has its own."""
    with contextlib.suppress(asyncio.CancelledError):
        await server._serve()


async def _main(arguments: argparse.Namespace) -> None:
    from lab.page_live import live

    clock = (lambda: FROZEN) if arguments.frozen else now
    world = World.of(arguments.scene, clock)
    async with serving(world, port=arguments.port) as server:
        print(server.url, flush=True)
        if arguments.live:
            await live(world)
        await asyncio.Event().wait()


def main() -> None:
    """Serve one scene until Ctrl+C."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0: any")
    parser.add_argument("--scene", choices=list(SCENES), default="ready")
    parser.add_argument("--live", action="store_true", help="things move")
    parser.add_argument("--frozen", action="store_true", help=f"it is always {FROZEN:%Y-%m-%d}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
