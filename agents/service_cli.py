"""``agent.pyz service install|uninstall|status``: the agent as a service of its host."""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agents import service
from agents.background import Service, carried, own_argv

_NOT_OPTIONS = ("command", "action", "code")


def add_arguments(
    parser: argparse.ArgumentParser,
    add_join_arguments: Callable[[argparse.ArgumentParser], None],
    folder: Path,
) -> None:
    """The subcommands; ``install`` takes what ``join`` takes. ``folder``: the usual data folder."""
    actions = parser.add_subparsers(dest="action", required=True)
    add_join_arguments(actions.add_parser("install", help="start the agent now and at every boot"))
    uninstall = actions.add_parser("uninstall", help="stop it, and start it no more")
    uninstall.add_argument("--data", type=Path, default=folder, help="data folder")
    status = actions.add_parser("status", help="whether it runs, since when, and where its log is")
    status.add_argument("--json", action="store_true", help="one JSON object")


def main(
    parsed: argparse.Namespace, say: Callable[[str], None], read_code: Callable[[str, Path], object]
) -> int:
    """Exit status: 0 when all is done, 1 when something is left to a person.

    Args:
        parsed: Of ``add_arguments``.
        say: Prints one line.
        read_code: Of the text on the command line and the data folder.

    Raises:
        BadJoinCode: The code cannot be read.
        ServiceRefused: The service manager did not do it, or there is none.
    """
    if parsed.action == "install":
        return _install(parsed, say, str(read_code(parsed.code, parsed.data)))
    chosen = service.manager(" ".join([*own_argv("agents"), "join", "CODE"]))
    if parsed.action == "uninstall":
        outcome = chosen.uninstall("agent")
        if not outcome.commands:
            service.forget_code(parsed.data)
        return service.report(outcome, say)
    status = chosen.status("agent")
    for line in [json.dumps(asdict(status))] if parsed.json else status.lines():
        say(line)
    return 0 if status.is_running else 1


def _install(parsed: argparse.Namespace, say: Callable[[str], None], code: str) -> int:
    wanted = agent_service(vars(parsed))
    chosen = service.manager(service.shown(wanted))
    is_new = service.keep_code(wanted.folder, code)
    outcome = chosen.install(wanted)
    if is_new and not outcome.done and not outcome.commands:
        outcome = chosen.restart(wanted.name)
    return service.report(outcome, say)


def agent_service(options: dict[str, Any]) -> Service:
    """The agent with the options of its command line, without the join code."""
    folder = Path(options["data"]).absolute()
    return Service(
        "agent",
        (*own_argv("agents"), "join", "-", *_words(options)),
        folder,
        carried(os.environ),
    )


def _words(options: dict[str, Any]) -> Iterator[str]:
    """Options as they are typed, with absolute paths: a service runs in another folder."""
    for name, value in options.items():
        if name in _NOT_OPTIONS or value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            yield flag
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            yield f"{flag}={each.expanduser().absolute() if isinstance(each, Path) else each}"
