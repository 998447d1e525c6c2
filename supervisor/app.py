"""Composition root: builds one supervisor from its parts and runs it until it is told to stop."""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from agents import engine, facts, ports, process, tls, web
from agents.cli import CODE_VARIABLE, STOP_SIGNALS
from agents.contract import EngineFacts
from agents.errors import FolderNotWritable
from agents.join import JoinCode
from agents.rpc_protocol import probe
from supervisor import files
from supervisor.adapters import agent_archive
from supervisor.adapters.agent_client import AgentClient
from supervisor.adapters.authority import Authority
from supervisor.adapters.llama_server import LlamaServerClient, LlamaServerStarter
from supervisor.adapters.models import list_models, read_model
from supervisor.adapters.store import Store
from supervisor.api.auth import load_or_make_key
from supervisor.api.join_api import create_join_app
from supervisor.api.rest import Services
from supervisor.api.web import create_app
from supervisor.errors import SupervisorRunning
from supervisor.service.events import EventBus
from supervisor.service.reconciler import Reconciler
from supervisor.service.registry import Registry
from supervisor.service.tools import MainHost, Tools
from supervisor.settings import Settings

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""Written while a supervisor runs: its address, for commands on the same host."""

_AGENT_GRACE_S = 8.0
_AGENT_PAUSE_S = 3.0


@dataclass(frozen=True, slots=True)
class Running:
    """What a started supervisor tells its user."""

    url: str
    join_code: str
    join_command: str
    termux_command: str
    join_expires_at: str


async def serve(settings: Settings, announce: Callable[[Running], None]) -> None:
    """Run a supervisor until SIGTERM, SIGINT or SIGHUP; leaves no process behind.

    Raises:
        ProjectError: It cannot start; says what to change.
    """
    with _data_folder(settings.data_folder) as folder:
        store = Store(folder / "supervisor.db")
        try:
            await _run(settings, folder, store, announce)
        finally:
            store.close()


async def _run(
    settings: Settings, folder: Path, store: Store, announce: Callable[[Running], None]
) -> None:
    authority = Authority(folder / "authority")
    inherited = engine.inherited()
    engines = engine.discover(
        inherited, explicit=settings.engine_folder, own_engines=folder / "engines"
    )
    engines = [await engine.inspect(found, inherited) for found in engines]
    main_host = await _main_host(folder, inherited, engines)
    join_host = settings.join_host or ports.local_address_towards("192.0.2.1")
    join_listener = ports.listen(join_host, settings.join_port, "agents (setting join_port)")
    listeners = [ports.listen(settings.host, settings.port, "the dashboard (setting port)")]
    port = listeners[0].getsockname()[1]
    if settings.host not in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - compared, not bound
        listeners.append(ports.listen("127.0.0.1", port, "the dashboard (setting port)"))
    shown = join_host if settings.host == "0.0.0.0" else settings.host  # noqa: S104 - compared
    url = f"http://{shown}:{port}"

    bus = EventBus()
    context = tls.client_context(
        authority.certificate_pem, authority.supervisor_certificate, authority.supervisor_key
    )

    def connect(agent_id: str, name: str, address: str, rest_port: int) -> AgentClient:
        return AgentClient(agent_id, name, address, rest_port, context)

    registry = Registry(settings, store, authority, connect, bus)
    registry.rpc_protocol = main_host.engine.rpc_protocol if main_host.engine else ""
    starter = LlamaServerStarter(folder / "children.json")
    tools = Tools(
        settings=settings,
        registry=registry,
        store=store,
        read_model=read_model,
        probe=probe,
        start_engine=starter.start,
        connect_engine=LlamaServerClient,
        main_host=lambda: main_host,
    )
    reconciler = Reconciler(tools, bus)
    endpoint = f"{join_host}:{join_listener.getsockname()[1]}"
    services = Services(
        settings=settings,
        registry=registry,
        reconciler=reconciler,
        launches=store,
        bus=bus,
        main_host=lambda: main_host,
        engines=lambda: engines,
        list_models=lambda: list_models([*settings.model_folders, Path.home() / "models"]),
        join_endpoints=(endpoint,),
        fingerprint=authority.fingerprint,
        server_pin=authority.server_pin(),
        url=url,
        key=load_or_make_key(folder),
    )
    # A slow phone may think for minutes before its first byte: no read time-out towards the engine.
    http = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=5.0), trust_env=False)
    join_app = create_join_app(
        registry, authority.certificate_pem, _downloads(folder), settings.heartbeat_s
    )
    servers = [
        (web.plain(create_app(services, http, files.dashboard())), listeners),
        (
            web.mutual_tls(
                join_app,
                certificate=authority.supervisor_certificate,
                key=authority.supervisor_key,
                authority=authority.certificate_path,
                need_client=False,
            ),
            [join_listener],
        ),
    ]
    local_agent = _LocalAgent(settings, folder, services) if settings.local_agent else None
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(server.serve(sockets=socks)) for server, socks in servers]
    tasks.append(asyncio.create_task(registry.watch_silence()))
    if local_agent is not None:
        tasks.append(asyncio.create_task(local_agent.run()))
    try:
        reconciler.restore()
        # Loopback, not ``url``: from any other address, our own included, the key is needed.
        _write_run_file(folder, f"http://127.0.0.1:{port}")
        log.info("supervisor.started", extra={"url": url, "agents_at": endpoint})
        announce(_running(services, registry))
        await _until_stopped(stop, tasks)
    finally:
        await reconciler.close()
        (folder / RUN_FILE).unlink(missing_ok=True)
        bus.close()
        for server, _ in servers:
            server.should_exit = True
        for task in tasks[len(servers) :]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await http.aclose()
        await registry.close()
        log.info("supervisor.stopped")


async def _until_stopped(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for a stop signal; a part that ends by itself is a bug and is raised."""
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for task in done:
        if task is not stopping:
            task.result()


async def _main_host(
    folder: Path, inherited: dict[str, str], engines: list[EngineFacts]
) -> MainHost:
    usable = [found for found in engines if found.llama_server and not found.problem]
    chosen = next(iter(usable), next(iter(engines), None))
    help_text = ""
    if chosen is not None and chosen.llama_server and not chosen.problem:
        _, help_text = await engine.run([chosen.llama_server, "--help"], inherited)
    (folder / "empty-config").mkdir(exist_ok=True)
    return MainHost(
        name=facts.device_name(),
        boot_id=facts.boot_id(),
        engine=chosen,
        help_text=help_text,
        inherited=inherited,
        folder=folder,
    )


def _downloads(folder: Path) -> Callable[[str], Path | None]:
    """Files for devices. ``agent.pyz`` is built once, when it is first asked for."""
    scripts = {"install.sh": "install.sh", "boot-agent": "boot/agent"}
    built: list[Path] = []
    one_at_a_time = threading.Lock()

    def find(name: str) -> Path | None:
        if name == "agent.pyz":
            # Two devices may ask at once; replacing the file under a download would break it.
            with one_at_a_time:
                if not built:
                    built.append(agent_archive.build(folder))
                return built[0]
        script = files.termux() / scripts.get(name, "")
        return script if name in scripts and script.is_file() else None

    return find


def _running(services: Services, registry: Registry) -> Running:
    token, expires_at = registry.new_token(hours=services.settings.join_hours)
    code = JoinCode(services.join_endpoints, token, services.fingerprint)
    return Running(
        url=services.url,
        join_code=str(code),
        join_command=services.join_command(code),
        termux_command=services.termux_command(code),
        join_expires_at=expires_at.isoformat(),
    )


class _LocalAgent:
    """The main host's own agent: a child of ours, started again when it ends."""

    def __init__(self, settings: Settings, folder: Path, services: Services) -> None:
        self._settings = settings
        self._folder = folder
        self._services = services

    async def run(self) -> None:
        """Keep one agent running until cancelled."""
        for number in range(1, sys.maxsize):
            child = await self._start(number)
            try:
                status = await child.wait()
            except asyncio.CancelledError:
                await child.stop(grace_s=_AGENT_GRACE_S)
                raise
            how = process.describe_exit(status)
            log.warning("local_agent.ended", extra={"how": how, "log": str(child.log_path)})
            await asyncio.sleep(_AGENT_PAUSE_S)

    async def _start(self, number: int) -> process.Child:
        token, _ = self._services.registry.new_token(hours=1.0, once=True)
        code = JoinCode(self._services.join_endpoints, token, self._services.fingerprint)
        argv = [sys.executable, "-m", "agents", "join", "-", "--data", str(self._folder / "agent")]
        # Its rpc-server is for the llama-server beside it, and nobody else's to reach.
        argv += ["--host", "127.0.0.1"]
        if self._settings.engine_folder is not None:
            argv += ["--engine", str(self._settings.engine_folder)]
        if self._settings.log_format == "json":
            argv.append("--json-logs")
        import signal

        return await process.spawn(
            "agent",
            argv,
            log_path=self._folder / "logs" / f"agent-{number}.log",
            environment={**os.environ, CODE_VARIABLE: str(code)},
            # SIGTERM, not SIGKILL: the agent must still end its rpc-server.
            parent_death_signal=signal.SIGTERM,
        )


@contextlib.contextmanager
def _data_folder(folder: Path) -> Iterator[Path]:
    """The data folder, made and locked: one supervisor per folder.

    Raises:
        FolderNotWritable, SupervisorRunning
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / "supervisor.lock").open("a")
    except OSError as exc:
        raise FolderNotWritable(
            f"cannot write the data folder {folder}: {exc.strerror}; choose another with --data"
        ) from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise SupervisorRunning(
                f"another supervisor uses {folder}; stop it, or choose another folder with --data"
            ) from exc
        yield folder


def _write_run_file(folder: Path, url: str) -> None:
    temporary = folder / f"{RUN_FILE}.new"
    temporary.write_text(json.dumps({"url": url, "pid": os.getpid(), "host": socket.gethostname()}))
    temporary.replace(folder / RUN_FILE)
