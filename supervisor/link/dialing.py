"""Calls a far end: TLS in both directions, the right device, HELLO, and what it says to that."""

import asyncio
import logging
import ssl
from dataclasses import asdict
from typing import Final

from agents import local_network, tls
from agents.contract import read
from agents.errors import LinkLost, LinkRefused, ProjectError
from agents.link_frames import (
    LINK_PROTOCOL,
    MEASURING,
    Frame,
    Hello,
    Kind,
    Refused,
    Welcome,
    pack_json,
    read_json,
)
from agents.link_stream import LinkStream
from supervisor.link.job import LinkJob, WorkerJob

log = logging.getLogger(__name__)

_NEXT_ADDRESS_S: Final = 0.25
"""Until another address of a name is tried as well."""
_WIRE_S: Final = 3.0
"""For TCP and TLS over a wire that was chosen, while there is a steady one behind it."""


class Call:
    """One call; the frames of the link and its end are shown to it until it was answered."""

    def __init__(self, link: LinkStream, job: LinkJob, worker: WorkerJob) -> None:
        self._link = link
        self._job = job
        self._worker = worker
        self._answer: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.note = ""
        """Why the link goes another way than was wanted; empty: it does not."""

    @property
    def where(self) -> str:
        """The far end that was called last, for people."""
        return self._worker.where

    async def admitted(self, context: ssl.SSLContext) -> Welcome:
        """Dial, and be let in.

        Raises:
            LinkLost: Nobody answers, or not within ``connect_s`` seconds.
            LinkRefused: It is not the device that joined, or does not want us.
        """
        try:
            async with asyncio.timeout(self._job.connect_s):
                await self._dial(context)
                return await self._answer
        except TimeoutError:
            others = {0: "a push", MEASURING: "a measurement"}
            wanted = others.get(self._job.launch, f"launch {self._job.launch}")
            raise LinkLost(
                f"the far end of {self._worker.name} at {self._worker.where} did not admit "
                f"{wanted} within {self._job.connect_s:g} s; see the log of its agent"
            ) from None

    async def _dial(self, context: ssl.SSLContext) -> None:
        """Over the wire that was chosen; over the steady one if that one does not work."""
        steady = self._worker.steady
        if steady is None:
            await _dial(self._link, self._job, self._worker, context)
            return
        try:
            async with asyncio.timeout(_WIRE_S):
                await _dial(self._link, self._job, self._worker, context)
            return
        except TimeoutError:
            reason = f"no answer within {_WIRE_S:g} s"
        except (LinkLost, LinkRefused) as exc:
            reason = str(exc)
        origin = f" from {self._worker.near}" if self._worker.near else ""
        self.note = (
            f"{self._worker.where} did not work{origin} ({reason}), so {steady.where} is used"
        )
        log.warning("link.wire_failed", extra={"device": self._worker.name, "reason": reason})
        self._worker = steady
        await _dial(self._link, self._job, self._worker, context)

    def hears(self, frame: Frame) -> bool:
        """Whether a frame is the answer, or another of its kind.

        Raises:
            LinkRefused: It is a refusal, or from another version.
        """
        if frame.kind is Kind.REFUSED:
            refused = read(Refused, read_json(frame.body))
            raise LinkRefused(f"{self._worker.name}: {refused.detail}")
        if frame.kind is not Kind.WELCOME:
            return False
        welcome = read(Welcome, read_json(frame.body))
        if welcome.protocol != LINK_PROTOCOL:
            raise LinkRefused(
                f"{self._worker.name} speaks link protocol {welcome.protocol}, we "
                f"{LINK_PROTOCOL}; update the older one"
            )
        if not self._answer.done():
            self._answer.set_result(welcome)
        return True

    def end(self, error: ProjectError) -> None:
        """The link has ended, perhaps before it was answered."""
        if not self._answer.done():
            self._answer.set_exception(error)
            self._answer.exception()  # nobody may be waiting any more


async def _dial(link: LinkStream, job: LinkJob, worker: WorkerJob, context: ssl.SSLContext) -> None:
    """Connect ``link`` and say what we want; the answer comes as a frame. The caller bounds it.

    Raises:
        LinkLost: Nobody answers there, or macOS lets nobody be asked.
        LinkRefused: It is not the device that joined.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_connection(
            lambda: link,
            worker.address,
            worker.link_port,
            ssl=context,
            server_hostname=tls.agent_name(worker.agent_id),
            happy_eyeballs_delay=_NEXT_ADDRESS_S,
            local_addr=(worker.near, 0) if worker.near else None,
        )
    except ssl.SSLError as exc:
        raise LinkRefused(
            f"{worker.name} at {worker.where} does not prove that it is the device that joined "
            f"({exc.reason or exc}); join it again"
        ) from exc
    except OSError as exc:
        if denied := await local_network.denial(exc, worker.where):
            lost = LinkLost(f"no link to {worker.name}: {denied}")
            lost.code = denied.code
            raise lost from exc
        raise LinkLost(
            f"no link to {worker.name} at {worker.where} ({exc.strerror or exc}); check its "
            "network and firewall"
        ) from exc
    _check_serial(transport, worker)
    hello = Hello(job.launch, job.main_host, job.silence_s, job.window_bytes)
    link.send(Kind.HELLO, pack_json(asdict(hello)))
    link.start_beating(job.silence_s)


def _check_serial(transport: asyncio.BaseTransport, worker: WorkerJob) -> None:
    """A device that was removed and joined again has a new certificate; the old one is void."""
    certificate = transport.get_extra_info("peercert") or {}
    seen = str(certificate.get("serialNumber", ""))
    if int(seen or "0", 16) != int(worker.serial or "0", 16):
        transport.abort()  # type: ignore[attr-defined]
        raise LinkRefused(
            f"{worker.name} shows certificate {seen}, not the one that it got when it joined; "
            "join it again"
        )
