"""Command line of the agent: ``join CODE`` runs it until it is told to stop."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from agents import __version__, datafolder, engine, facts, log, ports, web
from agents.api import create_app
from agents.contract import AGENT_PORT, DeviceFacts, EngineFacts, GgmlDevice, Heartbeat
from agents.errors import AgentRunning, PortInUse, ProjectError
from agents.join import Identity, JoinCode, MainHost, keep_alive
from agents.rpc_server import RpcServer

logger = logging.getLogger(__name__)

CODE_VARIABLE = "SUPERVISOR_JOIN_CODE"
"""Where ``join -`` reads the join code."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_GOODBYE_S = 2.0

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


def default_folder() -> Path:
    """Data folder of the agent on this platform."""
    return Path(platformdirs.user_data_dir("llama-rpc-supervisor", appauthor=False)) / "agent"


def add_join_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "code", help="join code, as printed by 'supervisor up'; - reads SUPERVISOR_JOIN_CODE"
    )
    parser.add_argument("--data", type=Path, default=default_folder(), help="data folder")
    parser.add_argument("--engine", type=Path, help="folder of the llama.cpp programs")
    parser.add_argument(
        "--host", help="address to listen on (default: the one facing the main host)"
    )
    parser.add_argument(
        "--port", type=int, help=f"REST port (default: {AGENT_PORT}, or a free one)"
    )
    parser.add_argument("--name", help="name of this device (default: host name or phone model)")
    parser.add_argument(
        "--threads", type=int, help="threads of the rpc-server (default: all cores)"
    )
    parser.add_argument("--json-logs", action="store_true", help="one JSON object per log line")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a stop, 1 for an expected error, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="agent", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_join_arguments(commands.add_parser("join", help="join a cluster and serve it"))
    parsed = parser.parse_args(arguments)
    log.configure("agent", json_lines=parsed.json_logs)
    try:
        asyncio.run(run(options_from(parsed)))
    except ProjectError as exc:
        print(f"error: {exc}", file=sys.stderr)  # noqa: T201 - this is the command line
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def options_from(parsed: argparse.Namespace) -> Options:
    """Options of a parsed command line.

    Raises:
        BadJoinCode: The code cannot be read.
    """
    return Options(
        code=join_code(parsed.code),
        folder=parsed.data,
        engine=parsed.engine,
        host=parsed.host,
        port=parsed.port,
        name=parsed.name,
        threads=parsed.threads,
    )


def join_code(text: str) -> JoinCode:
    """The join code of a command line; ``-`` reads it from the environment.

    That keeps the token out of the process list, where every user of a host can see it.

    Raises:
        BadJoinCode: It cannot be read.
    """
    return JoinCode.parse(os.environ.get(CODE_VARIABLE, "") if text == "-" else text)


async def run(options: Options) -> None:
    """Join, then serve until a stop signal; the rpc-server never outlives us.

    Raises:
        ProjectError: Any expected reason why it cannot run.
    """
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
    chosen = await _choose_engine(options)
    agent_id = facts.agent_id(options.folder)
    name = options.name or facts.device_name()
    identity = Identity(options.folder / "identity")
    main_host = MainHost(options.code, identity)
    server = RpcServer(chosen, options.folder, engine.inherited(), options.threads)
    server.sweep()
    try:
        await main_host.join(agent_id, name)
        threads = options.threads or facts.default_threads()
        reader = facts.FactsReader(agent_id, name, chosen, threads)
        await _serve(options, main_host, identity, server, reader)
    finally:
        await server.close()
        await main_host.close()


async def _serve(
    options: Options,
    main_host: MainHost,
    identity: Identity,
    server: RpcServer,
    reader: facts.FactsReader,
) -> None:
    address = options.host or ports.local_address_towards(main_host.endpoint.rpartition(":")[0])
    listener = _listen(address, options.port)
    devices = await _devices(reader.engine)

    async def read_facts() -> DeviceFacts:
        found = await reader.read(devices)
        # A launch ends a measurement before it takes memory, so plans may count on all of it.
        available_bytes = found.memory_available_bytes + server.reclaimable_bytes()
        return replace(found, memory_available_bytes=available_bytes)

    async def compose() -> Heartbeat:
        port = listener.getsockname()[1]
        return Heartbeat(await read_facts(), server.status(), port, options.host or "")

    server_web = web.mutual_tls(
        create_app(server, read_facts),
        certificate=identity.certificate,
        key=identity.key,
        authority=identity.authority,
        need_client=True,
    )
    logger.info(
        "agent.started",
        extra={
            "device": reader.name,
            "address": f"{address}:{listener.getsockname()[1]}",
            "main_host": main_host.endpoint,
            "engine": reader.engine.folder if reader.engine else "none",
        },
    )
    serving = asyncio.create_task(server_web.serve(sockets=[listener]))
    beating = asyncio.create_task(keep_alive(main_host, compose, server.changed))
    stopping = asyncio.create_task(_stop_signal())
    tasks = {serving, beating, stopping}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _say_goodbye(main_host, server, compose)
        server_web.should_exit = True
        beating.cancel()
        stopping.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.gather(*tasks, return_exceptions=True)
        logger.info("agent.stopped")


async def _say_goodbye(
    main_host: MainHost, server: RpcServer, compose: Callable[[], Awaitable[Heartbeat]]
) -> None:
    """End the rpc-server and say so, so that the main host need not wait for our silence."""
    await server.close()
    with contextlib.suppress(ProjectError, TimeoutError):
        async with asyncio.timeout(_GOODBYE_S):
            await main_host.heartbeat(await compose())


async def _stop_signal() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


async def _choose_engine(options: Options) -> EngineFacts | None:
    """The first engine that can serve; else the first one, with its problem; else nothing."""
    inherited = engine.inherited()
    found = engine.discover(
        inherited, explicit=options.engine, own_engines=options.folder / "engines"
    )
    inspected = None
    for candidate in found:
        inspected = await engine.inspect(candidate, inherited)
        if not inspected.problem:
            return inspected
        logger.warning("engine.unusable", extra={"reason": inspected.problem})
    return inspected


async def _devices(chosen: EngineFacts | None) -> list[GgmlDevice]:
    if chosen is None or not chosen.has_rpc:
        return []
    return await engine.ggml_devices(chosen, engine.inherited())


def _listen(address: str, port: int | None) -> socket.socket:
    """A port that was asked for must be free; the usual one may be taken by another agent."""
    if port is not None:
        return ports.listen(address, port, "the agent's REST API")
    try:
        return ports.listen(address, AGENT_PORT, "the agent's REST API")
    except PortInUse:
        return ports.listen(address, 0, "the agent's REST API")
