"""The far ends of this device's links: who may come in, and one launch at a time.

Until TLS has proved who calls, a caller is one socket among a few, with a short time to prove
itself; the oldest goes when too many wait. The rpc-server never sees any of them.
"""

import asyncio
import logging
import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from agents.contract import SUPERVISOR_NAME, RpcServerStatus, WorkerState
from agents.errors import LinkLost, LinkRefused
from agents.free_memory import give_back
from agents.link_frames import MEASURING, Hello, OfferedDevice, Welcome
from agents.link_listeners import Listeners
from agents.link_session import Admission, Session, Stock
from agents.peer_chunks import PeerChunks
from agents.rpc_server import RpcServer

log = logging.getLogger(__name__)

HANDSHAKE_S: Final = 5.0
MOST_UNPROVEN: Final = 32
"""Callers that have not proved who they are; more would cost memory and nothing else."""
MOST_SESSIONS: Final = 8
_TIDY_AFTER_S: Final = 1.0
"""After the end of a link; by then nobody holds what belonged to it."""
_HELLO_S: Final = 5.0
_WORKER_S: Final = 30.0
"""For the rpc-server of a launch that calls before its agent was told to start it."""
_TAKEOVER_S: Final = 2.0
"""The same while another launch has the device: it is likelier refused than next."""


def server_context(certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Whoever calls must show a certificate of the cluster's authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    return context


class FarEnd:
    """Accepts links, admits the launch that the rpc-server belongs to, refuses the others."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext,
        rpc_server: RpcServer,
        stock: Stock,
        available_bytes: Callable[[], int],
    ) -> None:
        """``listener`` faces the main host; see :meth:`follow` for more."""
        self._listeners = Listeners(listener, self._take)
        self._context = context
        self._rpc_server = rpc_server
        self.stock = stock
        self._available_bytes = available_bytes
        self._unproven: OrderedDict[asyncio.Task[None], None] = OrderedDict()
        self._sessions: set[Session] = set()
        self._holder: Session | None = None
        self.peers = PeerChunks(stock, lambda: self._holder is not None)
        """Other devices that may read chunks here."""

    @property
    def port(self) -> int:
        return self._listeners.port

    @property
    def ports(self) -> dict[str, int]:
        """Port by address, of all that it listens at."""
        return self._listeners.ports

    async def follow(self, wanted: Callable[[], Awaitable[Iterable[str]]]) -> None:
        """Listen at these addresses too, as they come and go. Runs for ever."""
        await self._listeners.keep_following(wanted)

    async def serve(self) -> None:
        """Accept until cancelled; then nothing of any link is left."""
        try:
            await self._listeners.serve()
        finally:
            for task in list(self._unproven):
                task.cancel()
            for session in list(self._sessions):
                session.close(LinkLost("the agent ends"))
            self.peers.close()

    def end_launch(self, reason: str) -> None:
        """Cut the link of the launch that has the device, if any."""
        if self._holder is not None:
            self._holder.close(LinkLost(reason))

    # -- before TLS ------------------------------------------------------------------------

    def _take(self, caller: socket.socket) -> None:
        if len(self._unproven) >= MOST_UNPROVEN:
            oldest, _ = self._unproven.popitem(last=False)
            oldest.cancel()
        task = asyncio.create_task(self._prove(caller))
        self._unproven[task] = None
        task.add_done_callback(lambda done: self._unproven.pop(done, None))

    async def _prove(self, caller: socket.socket) -> None:
        """From a socket to a session; a caller that fails gets nothing, not even a reason."""
        session = Session(self.stock, self._admit, self._forget)
        try:
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: session.link,
                caller,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S,
            )
        except (OSError, ssl.SSLError) as exc:
            session.close(LinkLost("the handshake failed"))
            caller.close()
            # Its frames would keep asyncio's buffers of this caller until they are collected.
            exc.__traceback__ = None
            return
        except BaseException:
            session.close(LinkLost("too many callers"))
            caller.close()
            raise
        if self.peers.takes(session, _name_of(transport), _serial_of(transport)):
            return
        if _name_of(transport) != SUPERVISOR_NAME or len(self._sessions) >= MOST_SESSIONS:
            session.close(LinkRefused("only the supervisor may open a link"))
            return
        if session.link.is_over:
            return  # its first words were wrong; it was forgotten before it was known
        self._sessions.add(session)
        asyncio.get_running_loop().call_later(_HELLO_S, self._expect_hello, session)

    def _expect_hello(self, session: Session) -> None:
        if session.hello is None:
            session.close(LinkLost(f"no HELLO in {_HELLO_S:g} s"))

    def _forget(self, session: Session) -> None:
        self._sessions.discard(session)
        if session is self._holder:
            self._holder = None
            assert session.hello is not None
            log.info(
                "link.ended", extra={"launch": session.hello.launch, "reason": str(session.error)}
            )
            asyncio.get_running_loop().call_later(_TIDY_AFTER_S, give_back)

    # -- admission -------------------------------------------------------------------------

    async def _admit(self, hello: Hello, session: Session) -> Admission:
        """Let in the launch that our rpc-server was started for.

        Raises:
            LinkRefused: Another has it, or it does not come up; says who, or why.
        """
        if hello.launch == MEASURING:
            self._refuse_measuring()
            return Admission(0, Welcome(stores=False))
        usage = self.stock.store.usage()
        store = Welcome(stored_chunks=usage.chunks, stores=usage.cap_bytes > 0)
        if hello.launch == 0:
            return Admission(0, store)
        wait_s = _WORKER_S if self._holder is None else _TAKEOVER_S
        status = await self._rpc_server.wait_for(hello.launch, wait_s)
        self._refuse_unless_its(hello, status)
        if self._holder is not None:
            assert self._holder.hello is not None
            before = self._holder.hello
            if before.launch == hello.launch:
                raise _in_use(before.launch, before.main_host)
            # Its rpc-server is gone: the supervisor gave the device to a newer launch.
            self._holder.close(LinkLost(f"launch {hello.launch} took the device over"))
        self._holder = session
        self._end_measuring(f"launch {hello.launch} took the device")
        devices = self._devices(status)
        log.info("link.admitted", extra={"launch": hello.launch, "main_host": hello.main_host})
        welcome = replace(store, rpc_protocol=status.rpc_protocol, devices=devices)
        return Admission(status.port, welcome)

    def _refuse_measuring(self) -> None:
        """Nobody measures a wire that a launch waits for."""
        status = self._rpc_server.status()
        if self._holder is not None or status.state in (WorkerState.STARTING, WorkerState.READY):
            raise _in_use(status.generation, status.main_host)
        if status.is_measuring:
            raise LinkRefused("its speed is being measured; measure its wires after that")

    def _end_measuring(self, reason: str) -> None:
        for session in list(self._sessions):
            if session.hello is not None and session.hello.launch == MEASURING:
                session.close(LinkLost(reason))

    def _refuse_unless_its(self, hello: Hello, status: RpcServerStatus) -> None:
        is_up = status.state in (WorkerState.STARTING, WorkerState.READY)
        if is_up and status.generation != hello.launch:
            raise _in_use(status.generation, status.main_host)
        if status.generation > hello.launch:
            raise LinkRefused(f"launch {hello.launch} is over; launch {status.generation} came")
        if status.state is not WorkerState.READY:
            why = status.detail or f"its rpc-server is {status.state}"
            raise LinkRefused(f"not ready for launch {hello.launch}: {why}")

    def _devices(self, status: RpcServerStatus) -> list[OfferedDevice]:
        """ggml's CPU device reports all memory as free; the agent knows what may be taken."""
        available_bytes = self._available_bytes()
        offered = []
        for device, is_cpu in self._rpc_server.offered():
            free_bytes = min(device.free_bytes, available_bytes) if is_cpu else device.free_bytes
            offered.append(
                OfferedDevice(
                    free_bytes, device.total_bytes, device.alignment, device.max_buffer_bytes
                )
            )
        return offered


def _in_use(launch: int, main_host: str) -> LinkRefused:
    return LinkRefused(
        f"in use by launch {launch} of main host {main_host or 'unknown'}; stop that first"
    )


def _serial_of(transport: asyncio.BaseTransport) -> str:
    certificate = transport.get_extra_info("peercert") or {}
    return str(certificate.get("serialNumber", ""))


def _name_of(transport: asyncio.BaseTransport) -> str:
    certificate = transport.get_extra_info("peercert") or {}
    subject = dict(pair for group in certificate.get("subject", ()) for pair in group)
    return str(subject.get("commonName", ""))
