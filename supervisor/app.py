"""Runs one supervisor until it is told to stop."""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agents import datafolder, privatefile
from agents.agent import STOP_SIGNALS
from agents.join import JoinCode
from agents.networks import NetworkReader
from supervisor.adapters.link_probe import LinkProbe
from supervisor.adapters.local_agent import LocalAgent
from supervisor.adapters.store import Store
from supervisor.adapters.wire_probe import WireProbe
from supervisor.api.join_lines import line_of_each
from supervisor.api.rest import Services
from supervisor.api.views import Platform
from supervisor.composition import compose
from supervisor.core.lifecycle import State
from supervisor.errors import SupervisorRunning
from supervisor.listening import listen
from supervisor.service.doubting import Doubts
from supervisor.service.idle_measuring import IdleMeasurer
from supervisor.service.tidying import Tidier
from supervisor.service.wire_measuring import WireMeasurer
from supervisor.settings import Settings

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
"""Written while a supervisor runs: its address, for commands on the same host."""


@dataclass(frozen=True, slots=True)
class Running:
    """What a started supervisor tells its user."""

    url: str
    join_code: str
    join_lines: dict[Platform, str]
    join_expires_at: str


async def serve(settings: Settings, announce: Callable[[Running], None]) -> None:
    """Run a supervisor until SIGTERM, SIGINT or SIGHUP; leaves no process behind.

    Raises:
        ProjectError: It cannot start; says what to change.
    """
    folder = settings.data_folder
    taken = SupervisorRunning(
        f"another supervisor uses {folder}; stop it, or choose another folder with --data"
    )
    async with datafolder.held(folder, "supervisor.lock", taken=taken):
        store = Store(folder / "supervisor.db")
        try:
            await _run(settings, folder, store, announce)
        finally:
            store.close()


async def _run(
    settings: Settings, folder: Path, store: Store, announce: Callable[[Running], None]
) -> None:
    own_networks = NetworkReader()
    addresses = listen(settings, await own_networks.addresses())
    parts = await compose(settings, folder, store, addresses, own_networks)
    services = parts.services
    stop = asyncio.Event()

    def on_signal() -> None:
        """The second one is in a hurry."""
        if stop.is_set():
            services.reconciler.hurry()
        else:
            how = f"running requests have {settings.drain_s:g} s; a second Ctrl-C does not wait"
            log.info("supervisor.stopping", extra={"how": how})
        stop.set()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    serving = [asyncio.create_task(web_.serve(sockets=socks)) for web_, socks in parts.servers]
    idle = IdleMeasurer(
        services.measurer, services.registry, settings, lambda: _is_launching(services)
    )
    doubts = Doubts(services.registry, LinkProbe(parts.context))
    wires = WireMeasurer(
        services.registry,
        WireProbe(parts.context, services.main_host.name),
        own_networks.addresses,
        lambda: any(each.state is State.STARTING for each in services.reconciler.all()),
    )
    works = [services.registry.watch_silence(), idle.run(), parts.journal.run()]
    works += [wires.run(), doubts.run(), Tidier(services.registry).run(), services.keyring.run()]
    works += [services.request_log.run(), services.metrics.run(), parts.supply.run()]
    works += [services.gateway.run(services.bus), services.library.run()]
    others = [asyncio.create_task(work) for work in works]
    if settings.local_agent:
        own = LocalAgent(
            settings,
            folder,
            services.main_host.boot_id,
            services.join_endpoints,
            lambda: _join_code(services, hours=1.0, once=True)[0],
        )
        others.append(asyncio.create_task(own.run()))
    try:
        await _go_on(services)
        # Loopback, not ``url``: from any other address, our own included, the key is needed.
        _write_run_file(folder, addresses.local_url)
        started = {"url": addresses.url, "agents_at": ", ".join(addresses.agents_endpoints)}
        log.info("supervisor.started", extra=started)
        announce(_running(services))
        await _until_stopped(stop, [*serving, *others])
    finally:
        services.gateway.begin_to_end()
        await _end_work(services)
        (folder / RUN_FILE).unlink(missing_ok=True)
        services.bus.close()
        await services.doctoring.close()
        for server, _ in parts.servers:
            server.should_exit = True
        for task in others:
            task.cancel()
        await asyncio.gather(*serving, *others, return_exceptions=True)
        await parts.links.close()  # nobody measures any more
        await services.registry.close()
        await services.request_log.close()
        await services.keyring.close()
        await parts.journal.close()
        log.info("supervisor.stopped")


async def _go_on(services: Services) -> None:
    """With what was wanted before we were stopped or killed."""
    await services.pulls.restore()
    await services.reconciler.restore(services.engine_changer.recover())


async def _end_work(services: Services) -> None:
    """Pulls before the deployments that wait for them, which would pause them."""
    await services.engine_changer.close()
    await services.pulls.close()
    await services.reconciler.close()


async def _until_stopped(stop: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Wait for a stop signal; a part that ends by itself is a bug and is raised."""
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    for task in done:
        if task is not stopping:
            task.result()


def _is_launching(services: Services) -> bool:
    starting = (State.PENDING, State.FETCHING, State.STARTING)
    return any(deployment.state in starting for deployment in services.reconciler.all())


def _join_code(
    services: Services, *, hours: float, once: bool = False
) -> tuple[JoinCode, datetime]:
    token, expires_at = services.registry.new_token(hours=hours, once=once)
    return JoinCode(services.join_endpoints, token, services.fingerprint), expires_at


def _running(services: Services) -> Running:
    code, expires_at = _join_code(services, hours=services.settings.join_hours)
    return Running(
        url=services.url,
        join_code=str(code),
        join_lines=line_of_each(services.termux_command(code), services.join_command(code)),
        join_expires_at=expires_at.isoformat(),
    )


def _write_run_file(folder: Path, url: str) -> None:
    facts_of_run = {"url": url, "pid": os.getpid(), "host": socket.gethostname()}
    privatefile.write(folder / RUN_FILE, json.dumps(facts_of_run))
