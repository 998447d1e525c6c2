"""Command line of the agent: ``join CODE`` runs it until it is told to stop."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from agents import __version__, log, power_options, service, service_cli
from agents.agent import Options, run
from agents.contract import AGENT_PORT, LINK_PORT
from agents.doctor import command as doctor
from agents.errors import ProjectError
from agents.join import JoinCode

CODE_VARIABLE = "SUPERVISOR_JOIN_CODE"
"""Where ``join -`` reads the join code."""


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
        "--host",
        help="the only address to listen on (default: the one facing the main host, and for the "
        "link every private one)",
    )
    parser.add_argument(
        "--port", type=int, help=f"REST port (default: {AGENT_PORT}, or a free one)"
    )
    parser.add_argument(
        "--link-port", type=int, help=f"port of the link (default: {LINK_PORT}, or a free one)"
    )
    parser.add_argument(
        "--link-address",
        metavar="HOST:PORT",
        help="where the main host reaches the link, if a router or tunnel is between",
    )
    parser.add_argument(
        "--store-gib",
        type=float,
        help="most disk for weights of earlier launches (default: a quarter of what is free, at "
        "most 32; 0: none)",
    )
    parser.add_argument(
        "--models",
        type=Path,
        action="append",
        help="folder of GGUF files whose weights need not be sent; may be repeated (default: "
        "~/models, if it is there)",
    )
    parser.add_argument("--name", help="name of this device (default: host name or phone model)")
    parser.add_argument(
        "--threads",
        type=int,
        help="threads of the rpc-server (default: all cores; on a phone, the fast ones)",
    )
    power_options.add_arguments(parser)
    parser.add_argument("--json-logs", action="store_true", help="one JSON object per log line")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a stop, 1 for an expected error, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="agent", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_join_arguments(commands.add_parser("join", help="join a cluster and serve it"))
    service_cli.add_arguments(
        commands.add_parser("service", help="start this agent at boot, by systemd or launchd"),
        add_join_arguments,
        default_folder(),
    )
    doctor.add_arguments(
        commands.add_parser("doctor", help="say what keeps this device from serving"),
        default_folder(),
    )
    parsed = parser.parse_args(arguments)
    log.configure("agent", json_lines=getattr(parsed, "json_logs", False))
    try:
        if parsed.command == "service":
            return service_cli.main(parsed, print, join_code)
        if parsed.command == "doctor":
            return doctor.run(parsed)
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
        code=join_code(parsed.code, parsed.data),
        folder=parsed.data,
        engine=parsed.engine,
        host=parsed.host,
        port=parsed.port,
        name=parsed.name,
        threads=parsed.threads,
        link_port=parsed.link_port,
        link_address=parsed.link_address,
        store_gib=parsed.store_gib,
        models=tuple(parsed.models or [Path.home() / "models"]),
        power=power_options.limits(parsed),
    )


def join_code(text: str, folder: Path | None = None) -> JoinCode:
    """The join code of a command line; ``-`` reads it from the environment or the data folder.

    That keeps the token out of the process list, where every user of a host can see it.

    Raises:
        BadJoinCode: It cannot be read.
    """
    if text == "-":
        text = os.environ.get(CODE_VARIABLE) or service.kept_code(folder or default_folder())
    return JoinCode.parse(text)
