"""One running agent: put together from its parts, serving until it is told to stop."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from agents import datafolder, engine, facts, open_files, ports, rest_door, web
from agents.api import create_app
from agents.chunk_store import ChunkStore
from agents.contract import AGENT_PORT, LINK_PORT, DeviceFacts, Heartbeat
from agents.current_engine import CurrentEngine, choose
from agents.doctor.examination import Doctor
from agents.doctor.route import doctor_routes
from agents.doctor.subject import remember_main_host, seen_by_agent
from agents.engine_api import engine_routes
from agents.engine_fetch import Fetcher
from agents.engine_install import EngineInstaller
from agents.errors import AgentRunning, PortInUse, ProjectError
from agents.far_end import FarEnd, server_context
from agents.gguf_index import GgufIndex
from agents.interfaces import to_listen_at
from agents.join import Identity, JoinCode, MainHost, keep_alive
from agents.link_session import Stock
from agents.networks import NetworkReader
from agents.peer_api import peer_routes
from agents.peer_fetch import Fetches
from agents.power import Limits
from agents.rest_door import RestDoor
from agents.rpc_server import RpcServer

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_GOODBYE_S = 2.0
_STORE_THREADS = 3

_LOCK_PATIENCE_S = 5.0
"""For an agent that is just ending, as after a restart of the supervisor."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    code: JoinCode
    folder: Path
    engine: Path | None
    host: str | None
    port: int | None
    name: str | None
    threads: int | None
    link_port: int | None = None
    link_address: str | None = None
    store_gib: float | None = None
    models: tuple[Path, ...] = ()
    power: Limits = field(default_factory=Limits)


async def run(options: Options) -> None:
    """Join, then serve until a stop signal; the rpc-server never outlives us.

    Raises:
        ProjectError: Any expected reason why it cannot run.
    """
    open_files.raise_limit()
    # A second agent in the same folder would end the rpc-server of the first.
    taken = AgentRunning(
        f"another agent uses {options.folder} and serves this device already; stop it, "
        "or choose another folder with --data"
    )
    async with datafolder.held(
        options.folder, "agent.lock", taken=taken, patience_s=_LOCK_PATIENCE_S
    ):
        await _run(options)


async def _run(options: Options) -> None:
    inherited, own_engines = engine.inherited(), options.folder / "engines"
    current = await choose(inherited, explicit=options.engine, own_engines=own_engines)
    agent_id = facts.agent_id(options.folder)
    name = options.name or facts.device_name()
    identity = Identity(options.folder / "identity")
    main_host = MainHost(options.code, identity)
    battery = facts.battery_reader()
    server = RpcServer(current, options.folder, inherited, options.threads, battery)
    server.sweep()
    try:
        await main_host.join(agent_id, name)
        remember_main_host(options.folder, options.code)
        reader = facts.FactsReader(
            agent_id, name, current.engine, server.threads, battery, options.power
        )
        await _serve(options, main_host, identity, server, reader, current)
    finally:
        await server.close()
        await battery.close()
        await main_host.close()


async def _serve(
    options: Options,
    main_host: MainHost,
    identity: Identity,
    server: RpcServer,
    reader: facts.FactsReader,
    current: CurrentEngine,
) -> None:
    def facing() -> str:
        return ports.local_address_towards(main_host.endpoint.rpartition(":")[0].strip("[]"))

    address = options.host or facing()
    listener = _listen(address, options.port, AGENT_PORT, rest_door.PURPOSE)
    link_listener = _listen(address, options.link_port, LINK_PORT, "the link")
    installer = EngineInstaller(
        options.folder / "engines",
        Fetcher(lambda: [main_host.endpoint, *options.code.endpoints], identity),
        current,
        engine.inherited(),
        server.idle,
        server.changed.set,
    )
    networks = NetworkReader(known=address)

    async def read_facts() -> DeviceFacts:
        reader.engine = current.engine
        found = await reader.read(current.devices)
        found = await networks.told(found, far_end.ports)
        # A launch ends a measurement before it takes memory, so plans may count on all of it.
        available_bytes = found.memory_available_bytes + server.reclaimable_bytes()
        return replace(found, memory_available_bytes=available_bytes, threads=server.threads)

    async def compose() -> Heartbeat:
        link_host, _, link_port = (options.link_address or "").rpartition(":")
        return Heartbeat(
            facts=await read_facts(),
            rpc_server=server.status(),
            rest_port=door.port,
            # Where the REST API is, should we have come to the main host by another way since.
            address=options.host or (door.address if main_host.has_roamed else ""),
            link_port=int(link_port or far_end.ports.get(door.address, far_end.port)),
            link_address=link_host.strip("[]"),
            engine_install=installer.status(),
        )

    index = GgufIndex(options.folder / "index")
    far_end = FarEnd(
        link_listener,
        server_context(identity.certificate, identity.key, identity.authority),
        server,
        await _stock(options, index),
        lambda: facts.memory()[1],
    )
    fetches = Fetches(far_end.stock, identity.client_context)
    own_doctor = Doctor(
        lambda: seen_by_agent(
            options.folder, options.code, door.port, far_end.port, read_facts, server.status
        )
    )
    more = [
        *engine_routes(installer),
        *doctor_routes(own_doctor),
        *peer_routes(far_end.peers, fetches),
    ]

    def rest_server() -> web.Web:
        return web.mutual_tls(
            create_app(server, read_facts, more),
            certificate=identity.certificate,
            key=identity.key,
            authority=identity.authority,
            need_client=True,
        )

    door = RestDoor(listener, rest_server, facing, moves=options.host is None)
    logger.info(
        "agent.started",
        extra={
            "device": reader.name,
            "address": f"{door.address}:{door.port}",
            "link_port": far_end.port,
            "main_host": main_host.endpoint,
            "engine": reader.engine.folder if reader.engine else "none",
        },
    )
    serving = asyncio.create_task(door.serve())

    async def expire(reason: str) -> None:
        if await server.expire(reason):
            far_end.end_launch(reason)

    beating = asyncio.create_task(keep_alive(main_host, compose, server.changed, expire))
    linking = asyncio.create_task(far_end.serve())

    async def addresses() -> list[str]:
        facing_it = door.address
        networks.knows(facing_it)
        if options.host is not None or await networks.is_ours(main_host.endpoint):
            return [facing_it]
        return to_listen_at(await networks.addresses(), facing_it)

    following = asyncio.create_task(far_end.follow(addresses))
    stop_indexing = threading.Event()
    indexing = asyncio.create_task(_index_models(index, options, stop_indexing))
    stopping = asyncio.create_task(_stop_signal(server))
    tasks = {serving, beating, linking, following, stopping}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _say_goodbye(main_host, server, compose)
        door.end()
        for task in (beating, linking, following, stopping):
            task.cancel()
        stop_indexing.set()
        await asyncio.gather(own_doctor.close(), fetches.close(), installer.close())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.gather(*tasks, indexing, return_exceptions=True)
        logger.info("agent.stopped")


async def _say_goodbye(
    main_host: MainHost, server: RpcServer, compose: Callable[[], Awaitable[Heartbeat]]
) -> None:
    """End the rpc-server and say so, so that the main host need not wait for our silence."""
    await server.close()
    with contextlib.suppress(ProjectError, TimeoutError):
        async with asyncio.timeout(_GOODBYE_S):
            await main_host.heartbeat(await compose())


async def _stop_signal(server: RpcServer) -> None:
    """Wait for the first one. A second, from a person who will not wait, ends us where we are."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard(number: signal.Signals) -> None:
        if stop.is_set() and number != signal.SIGHUP:  # a closed terminal sends that as well
            _end_at_once(server, number)
        stop.set()

    for each in STOP_SIGNALS:
        loop.add_signal_handler(each, heard, each)
    await stop.wait()


def _end_at_once(server: RpcServer, number: signal.Signals) -> NoReturn:
    server.kill()
    logger.warning("agent.ended_at_once", extra={"signal": number.name})
    os._exit(128 + number)


async def _stock(options: Options, index: GgufIndex) -> Stock:
    """Weights of earlier launches; reading what is there takes a moment."""
    cap_bytes = None if options.store_gib is None else int(options.store_gib * (1 << 30))
    store = await asyncio.to_thread(ChunkStore, options.folder / "chunks", cap_bytes)
    return Stock(store, (index,), ThreadPoolExecutor(_STORE_THREADS, "chunks"))


async def _index_models(index: GgufIndex, options: Options, stop: threading.Event) -> None:
    """Name what this device has already, once; the next start finds the names."""
    if options.store_gib == 0:
        return  # nobody would ask for names

    def build() -> None:
        for folder in options.models:
            index.index_gguf(sorted(folder.rglob("*.gguf")), cancel=stop)

    try:
        await asyncio.to_thread(build)
    except OSError as exc:
        logger.warning("models.not_indexed", extra={"reason": str(exc)})


def _listen(address: str, wanted: int | None, usual: int, purpose: str) -> socket.socket:
    """A port that was asked for must be free; the usual one may be taken by another agent."""
    if wanted is not None:
        return ports.listen(address, wanted, purpose)
    try:
        return ports.listen(address, usual, purpose)
    except PortInUse:
        return ports.listen(address, 0, purpose)
