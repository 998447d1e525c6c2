"""Calls a far end: TLS in both directions, the right device, HELLO, and what it says to that."""

import asyncio
import ssl
from dataclasses import asdict
from typing import Final

from agents import tls
from agents.contract import read
from agents.errors import LinkLost, LinkRefused, ProjectError
from agents.link_frames import (
    LINK_PROTOCOL,
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

_NEXT_ADDRESS_S: Final = 0.25
"""Until another address of a name is tried as well."""


class Call:
    """One call; the frames of the link and its end are shown to it until it was answered."""

    def __init__(self, link: LinkStream, job: LinkJob, worker: WorkerJob) -> None:
        self._link = link
        self._job = job
        self._worker = worker
        self._answer: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

    async def admitted(self, context: ssl.SSLContext) -> Welcome:
        """Dial, and be let in.

        Raises:
            LinkLost: Nobody answers, or not within ``connect_s`` seconds.
            LinkRefused: It is not the device that joined, or does not want us.
        """
        try:
            async with asyncio.timeout(self._job.connect_s):
                await _dial(self._link, self._job, self._worker, context)
                return await self._answer
        except TimeoutError:
            wanted = f"launch {self._job.launch}" if self._job.launch else "a push"
            raise LinkLost(
                f"the far end of {self._worker.name} at {self._worker.where} did not admit "
                f"{wanted} within {self._job.connect_s:g} s; see the log of its agent"
            ) from None

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
        LinkLost: Nobody answers there.
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
        )
    except ssl.SSLError as exc:
        raise LinkRefused(
            f"{worker.name} at {worker.where} does not prove that it is the device that joined "
            f"({exc.reason or exc}); join it again"
        ) from exc
    except OSError as exc:
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
