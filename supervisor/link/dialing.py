"""Calls a far end: TLS in both directions, the right device, HELLO."""

import asyncio
import ssl
from dataclasses import asdict
from typing import Final

from agents import tls
from agents.errors import LinkLost, LinkRefused
from agents.link_frames import Hello, Kind, pack_json
from agents.link_stream import LinkStream
from supervisor.link.job import LinkJob, WorkerJob

_NEXT_ADDRESS_S: Final = 0.25
"""Until another address of a name is tried as well."""


async def dial(link: LinkStream, job: LinkJob, worker: WorkerJob, context: ssl.SSLContext) -> None:
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
