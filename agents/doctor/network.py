"""Checks of the ways between this device and its main host, and of its own ports."""

import asyncio
import contextlib
import email.utils
import errno
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agents import network_findings, networks, ports, tls
from agents.contract import AGENT_PORT, LINK_PORT, RPC_PORTS, SUPERVISOR_NAME, Finding
from agents.doctor import reading, sockets
from agents.doctor.findings import blocks, ok, unknown, warning
from agents.doctor.macos import local_network
from agents.doctor.subject import Subject
from agents.local_network import no_route

CONNECT_S: Final = 4.0
SLOW_ROUND_TRIP_S: Final = 0.020
"""Every token waits at least one round trip for each device."""
SKEW_WARNS_S: Final = 30.0
_TRIPS: Final = 5
_DATE_STEP_S: Final = 2.0
"""A ``Date`` has whole seconds, and servers keep one for a second."""


# -- ports -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortState:
    """One port that the agent listens on, unless it is told otherwise."""

    port: int
    purpose: str
    is_free: bool
    holder: str = ""
    is_ours: bool = False


def agent_ports(states: Sequence[PortState]) -> Finding:
    """Whether the usual ports can be had. Without them the agent takes others."""
    strangers = [state for state in states if not state.is_free and not state.is_ours]
    if strangers:
        who = " and ".join(
            f"{s.port} ({s.purpose}) is held by {s.holder or 'another program'}" for s in strangers
        )
        return warning(
            "agent_ports",
            f"{who}; the agent takes free ports instead",
            "stop that program, or open the agent's ports in the firewall (join --port, "
            "--link-port)",
        )
    said = ", ".join(f"{s.port} {'is our own' if s.is_ours else 'is free'}" for s in states)
    return ok("agent_ports", said)


def rpc_ports(free: int, count: int, first: int, last: int) -> Finding:
    """Whether an rpc-server finds a port."""
    if not free:
        return blocks(
            "rpc_ports",
            f"all {count} ports from {first} to {last} are in use",
            "stop programs that listen there",
        )
    return ok("rpc_ports", f"{free} of {count} ports from {first} to {last} are free")


async def check_ports(subject: Subject) -> list[Finding]:
    low, high = RPC_PORTS[0], RPC_PORTS[-1]
    free = await reading.in_thread(lambda: sum(ports.is_free("127.0.0.1", p) for p in RPC_PORTS))
    engines = rpc_ports(free, len(RPC_PORTS), low, high)
    if subject.is_main_host:
        return [engines]
    if subject.agent_ports:
        numbers = " and ".join(map(str, subject.agent_ports))
        return [ok("agent_ports", f"the agent listens on {numbers}"), engines]
    states = [
        await _port_state(subject, port, purpose)
        for port, purpose in ((AGENT_PORT, "the agent's REST API"), (LINK_PORT, "the link"))
    ]
    return [agent_ports(states), engines]


async def _port_state(subject: Subject, port: int, purpose: str) -> PortState:
    address = await reading.in_thread(lambda: _own_address(subject))
    if ports.is_free(address, port):
        return PortState(port, purpose, is_free=True)
    is_ours = await _is_our_agent(subject, address, port)
    who = "" if is_ours else await sockets.holder(port)
    return PortState(port, purpose, is_free=False, holder=who, is_ours=is_ours)


def _own_address(subject: Subject) -> str:
    first = subject.endpoints[0].rpartition(":")[0] if subject.endpoints else "192.0.2.1"
    return ports.local_address_towards(first)


async def _is_our_agent(subject: Subject, address: str, port: int) -> bool:
    """Whether the agent of this very folder listens there: it shows this device's certificate.

    Agent and link both greet whoever connects, and a greeting disturbs neither.
    """
    identity = subject.identity
    agent_id = reading.text_of(subject.folder / "agent-id")
    if agent_id is None or not identity.authority.is_file():
        return False
    try:
        context = tls.client_context(
            identity.authority.read_text(), identity.certificate, identity.key
        )
        way = await _connected(address, port, context, tls.agent_name(agent_id.strip()))
    except (OSError, ValueError, TimeoutError):
        return False
    way.close()
    return True


async def check_wires(subject: Subject) -> list[Finding]:
    """What is wrong or special about the networks themselves; their reader judges that."""
    if subject.facts is not None:
        found = subject.facts.wires
    else:
        found = network_findings.findings(await reading.in_thread(networks.read))
    return list(found) or [ok("wires", "nothing unusual about them")]


# -- the main host -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reached:
    """What became of one try to reach the main host. ``problem`` says why it failed."""

    endpoint: str
    problem: str = ""
    code: int = 0
    """``errno`` of the failure, if it has one."""
    is_trusted: bool = False
    round_trip_s: float | None = None
    skew_s: float | None = None
    """How much this device's clock is ahead of the main host's."""


def main_host(tries: Sequence[Reached], *, has_joined: bool) -> Finding:
    """Whether the main host can be reached from here, and is the right one."""
    if not tries:
        return unknown(
            "main_host",
            "where the main host is, is not known here before this device has joined",
            "run the line that 'supervisor invite' prints on the main host",
        )
    if good := next((each for each in tries if not each.problem), None):
        proof = "with the pinned authority" if has_joined else "its authority is not checked yet"
        return ok("main_host", f"{good.endpoint} answers, {proof}")
    if distrusted := next((each for each in tries if "certificate" in each.problem), None):
        return blocks(
            "main_host",
            f"{distrusted.endpoint} answers, but not as our main host: {distrusted.problem}",
            "check the clock of this device, and whether the main host was set up anew; if it "
            "was, join again with a new line",
        )
    said = "; ".join(f"{each.endpoint}: {each.problem}" for each in tries)
    return blocks(
        "main_host",
        f"the main host cannot be reached ({said})",
        "check that 'supervisor up' runs there, that both are on one network, and that its "
        "firewall lets this port in",
    )


def round_trip(round_trip_s: float | None, platform: str) -> Finding:
    """Whether tokens need not wait for the network."""
    if round_trip_s is None:
        return unknown("round_trip", "the main host was not reached")
    said = f"{round_trip_s * 1e3:.1f} ms to the main host and back"
    if round_trip_s <= SLOW_ROUND_TRIP_S:
        return ok("round_trip", said)
    if platform == "android":
        return warning(
            "round_trip",
            f"{said}, more than {SLOW_ROUND_TRIP_S * 1e3:.0f} ms: every token waits for it",
            "keep the screen on (dim): with it off, Wi-Fi sleeps between packets; or use a cable",
        )
    return warning(
        "round_trip",
        f"{said}, more than {SLOW_ROUND_TRIP_S * 1e3:.0f} ms: every token waits for it",
        "use a cable, or a better place for the Wi-Fi",
    )


def clock(skew_s: float | None) -> Finding:
    """Whether both clocks agree; certificates are refused before they begin to be valid."""
    if skew_s is None:
        return unknown("clock", "the main host did not tell its time")
    side = "ahead of" if skew_s > 0 else "behind"
    said = f"{abs(skew_s):.0f} s {side} the main host's"
    if abs(skew_s) > SKEW_WARNS_S:
        return warning("clock", said, "set date and time of this device to automatic")
    return ok("clock", said if abs(skew_s) >= _DATE_STEP_S else "agrees with the main host's")


async def check_main_host(subject: Subject) -> list[Finding]:
    has_joined = subject.identity.authority.is_file()
    tries = await asyncio.gather(*(_reached(subject, each) for each in subject.endpoints))
    good = next((each for each in tries if not each.problem), None)
    found = [
        main_host(tries, has_joined=has_joined),
        round_trip(good.round_trip_s if good else None, subject.platform),
        clock(good.skew_s if good else None),
    ]
    if subject.platform == "macos":
        is_blocked = not good and any(each.code == no_route(subject.platform) for each in tries)
        gateway = await _answering_gateway() if is_blocked else ""
        found.append(local_network(is_blocked=is_blocked, gateway=gateway, was_tried=bool(tries)))
    return found


async def _reached(subject: Subject, endpoint: str) -> Reached:
    host, _, port = endpoint.rpartition(":")
    identity = subject.identity
    context = tls.unverified_context()
    try:
        if identity.authority.is_file():
            context = tls.client_context(
                identity.authority.read_text(), identity.certificate, identity.key
            )
        return await _asked(endpoint, host.strip("[]"), int(port), context)
    except ssl.SSLCertVerificationError as exc:
        return Reached(endpoint, f"its certificate is refused: {exc.verify_message}")
    except ssl.SSLError as exc:
        return Reached(endpoint, f"it does not speak TLS as our main host ({exc.reason})")
    except TimeoutError:
        return Reached(endpoint, f"no answer within {CONNECT_S:g} s")
    except OSError as exc:
        return Reached(endpoint, exc.strerror or str(exc), exc.errno or 0)
    except asyncio.IncompleteReadError:
        return Reached(endpoint, "it closed the connection without an answer")


async def _asked(endpoint: str, host: str, port: int, context: ssl.SSLContext) -> Reached:
    """Ask for the one thing that everybody may read, a few times over one connection."""
    way = await _connected(host, port, context, SUPERVISOR_NAME)
    try:
        trips, skew_s = [], None
        for _ in range(_TRIPS):
            began_s, asked_at_s = time.perf_counter(), time.time()
            async with asyncio.timeout(CONNECT_S):
                date = await way.date_of("/authority.pem")
            trips.append(time.perf_counter() - began_s)
            skew_s = _skew_s(date, asked_at_s, trips[-1])
        return Reached(endpoint, round_trip_s=sorted(trips)[len(trips) // 2], skew_s=skew_s)
    finally:
        way.close()


def _skew_s(date: str, asked_at_s: float, trip_s: float) -> float | None:
    """Our clock less theirs; a ``Date`` has whole seconds, cut off, hence the half."""
    try:
        theirs_s = email.utils.parsedate_to_datetime(date).timestamp() + 0.5
    except ValueError:
        return None
    return asked_at_s + trip_s / 2 - theirs_s


class _Way:
    """One connection for a few small requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def date_of(self, path: str) -> str:
        """``Date`` of the answer, whose body is read and thrown away; empty if it has none."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: {SUPERVISOR_NAME}\r\n\r\n".encode())
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError as exc:
            raise OSError(errno.EPROTO, "its answer is not HTTP") from exc
        lines = (line.partition(":") for line in head.decode("latin-1").splitlines()[1:])
        fields = {name.strip().lower(): value.strip() for name, _, value in lines}
        await self._reader.readexactly(int(fields.get("content-length") or 0))
        return fields.get("date", "")

    def close(self) -> None:
        self._writer.transport.abort()


async def _connected(host: str, port: int, context: ssl.SSLContext, name: str) -> _Way:
    async with asyncio.timeout(CONNECT_S):
        return _Way(*await asyncio.open_connection(host, port, ssl=context, server_hostname=name))


async def _answering_gateway() -> str:
    """The router, if an Apple program reaches it; those are exempt from what blocks us."""
    said = await reading.command("route", "-n", "get", "default")
    rows = (line.partition(":") for line in said.text.splitlines())
    gateway = next((value.strip() for name, _, value in rows if name.strip() == "gateway"), "")
    if not gateway:
        return ""
    with contextlib.suppress(OSError):
        answer = await reading.command("ping", "-c", "1", "-t", "2", gateway)
        return gateway if answer.status == 0 else ""
    return ""
