"""What is examined: this device, seen from its agent, from its shell, or as the main host."""

import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from agents import facts, privatefile, service
from agents.contract import DeviceFacts, EngineFacts, RpcServerStatus, WorkerState
from agents.errors import BadJoinCode
from agents.join import Identity, JoinCode

MAIN_HOST_FILE: Final = "main-host.json"
"""In the agent's data folder: where its main host is, for who asks while no agent runs."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One device, and what its examiner knows of it already."""

    folder: Path
    """Data folder of the program that is examined."""
    platform: str
    environ: Mapping[str, str] = field(repr=False)
    home: Path
    endpoints: tuple[str, ...] = ()
    """Of the main host; empty: unknown."""
    is_main_host: bool = False
    """Then it needs no agent, and no way to itself."""
    facts: DeviceFacts | None = None
    """As its running agent knows them."""
    engine: EngineFacts | None = None
    engine_is_known: bool = False
    """By a running program of ours, so that it is not run again; None is then none."""
    agent_ports: tuple[int, ...] = ()
    """Where the program listens that is examined, if it is that program who asks."""
    serving_bytes: int = 0
    """Memory that the rpc-server holds, and that would be free without it."""
    engine_folder: Path | None = None
    """The only folder to look for engines in."""

    @classmethod
    def here(cls, folder: Path, environ: Mapping[str, str], **known: object) -> Self:
        """This device as somebody in a shell sees it."""
        return cls(
            folder=folder,
            platform=facts.platform_name(),
            environ=environ,
            home=Path(environ.get("HOME") or "~").expanduser(),
            **known,  # type: ignore[arg-type]
        )

    @property
    def identity(self) -> Identity:
        return Identity(self.folder / "identity")


def remember_main_host(folder: Path, code: JoinCode) -> None:
    """Keep where the main host is, which is no secret; without it, only the doctor knows less."""
    with contextlib.suppress(OSError):
        privatefile.write(folder / MAIN_HOST_FILE, json.dumps({"endpoints": code.endpoints}))


def known_endpoints(folder: Path, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Where the main host is: by the join code that was given or kept, or by what joined here."""
    if found := _of_code(environ.get("SUPERVISOR_JOIN_CODE", "")):
        return found
    try:
        kept = json.loads((folder / MAIN_HOST_FILE).read_text())["endpoints"]
        return tuple(str(endpoint) for endpoint in kept)
    except (OSError, ValueError, KeyError, TypeError):
        return _of_code(service.kept_code(folder))


def _of_code(text: str) -> tuple[str, ...]:
    try:
        return JoinCode.parse(text).endpoints if text.strip() else ()
    except BadJoinCode:
        return ()


async def seen_by_agent(
    folder: Path,
    code: JoinCode,
    rest_port: int,
    link_port: int,
    read_facts: Callable[[], Awaitable[DeviceFacts]],
    status: Callable[[], RpcServerStatus],
) -> Subject:
    """This device as its running agent sees it."""
    server, known = status(), await read_facts()
    is_up = server.state in (WorkerState.STARTING, WorkerState.READY)
    return Subject.here(
        folder,
        dict(os.environ),
        endpoints=code.endpoints,
        facts=known,
        engine=known.engine,
        engine_is_known=True,
        agent_ports=(rest_port, link_port),
        serving_bytes=(server.resident_bytes or 0) if is_up else 0,
    )
