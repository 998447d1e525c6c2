"""Fetches the archive of an engine from the main host: in pieces, however often it is cut."""

import asyncio
import hashlib
import logging
import os
import ssl
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx

from agents import tls
from agents.contract import SUPERVISOR_NAME, EngineOffer
from agents.errors import DiskFull, EngineDigestWrong, EngineNotFetched
from agents.join import Identity

log = logging.getLogger(__name__)

BLOCK_BYTES: Final = 256 * 1024
_CONNECT_S: Final = 5.0
_STALL_FIRST_S: Final = 10.0
_STALL_LONGEST_S: Final = 120.0
_PAUSE_FIRST_S: Final = 0.5
_PAUSE_LONGEST_S: Final = 15.0
_FRUITLESS: Final = 8
"""Attempts in a row that may bring nothing; with growing patience these take minutes."""
_NICE: Final = 10
_SNI: Final = {"sni_hostname": SUPERVISOR_NAME}


def quiet_thread() -> ThreadPoolExecutor:
    """One thread for disk work that must not disturb a serving rpc-server."""
    return ThreadPoolExecutor(1, "engine", initializer=_be_nice)


def _be_nice() -> None:
    if sys.platform in ("linux", "android"):  # there a thread has a priority of its own
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        except OSError as exc:
            log.debug("engine.not_nice", extra={"reason": str(exc)})


class Fetcher:
    """Downloads from any of the main host's addresses, the one that answered last first."""

    def __init__(
        self,
        endpoints: Callable[[], Sequence[str]],
        identity: Identity,
        *,
        stall_first_s: float = _STALL_FIRST_S,
        pause_first_s: float = _PAUSE_FIRST_S,
    ) -> None:
        self._endpoints = endpoints
        self._identity = identity
        self._stall_first_s = stall_first_s
        self._pause_first_s = pause_first_s

    async def fetch(
        self,
        offer: EngineOffer,
        part: Path,
        threads: ThreadPoolExecutor,
        tell: Callable[[int], None],
    ) -> None:
        """Make ``part`` the whole archive, going on where it ends; ``tell`` its bytes.

        Raises:
            EngineNotFetched: The main host does not have it any more, or brings nothing.
            EngineDigestWrong: It is another archive; ``part`` is removed.
            DiskFull: It could not be written.
        """
        stall_s, pause_s, fruitless, problem = self._stall_first_s, self._pause_first_s, 0, ""
        while (before := _size(part)) < offer.size_bytes:
            endpoints = self._endpoints()
            endpoint = endpoints[fruitless % len(endpoints)]
            try:
                await self._go_on(endpoint, offer, part, threads, stall_s, tell)
            except (httpx.HTTPError, TimeoutError, ssl.SSLError) as exc:
                problem = f"{endpoint}: {str(exc) or type(exc).__name__}"
            if _size(part) > before:
                fruitless, stall_s, pause_s = 0, self._stall_first_s, self._pause_first_s
                continue
            fruitless += 1
            if fruitless >= _FRUITLESS:
                raise EngineNotFetched(
                    f"{offer.archive}: {before} of {offer.size_bytes} bytes came, and nothing more "
                    f"in {fruitless} attempts ({problem}); it goes on when the main host offers it "
                    "again: check the network between the two"
                )
            await asyncio.sleep(pause_s)
            stall_s = min(stall_s * 2, _STALL_LONGEST_S)
            pause_s = min(pause_s * 2, _PAUSE_LONGEST_S)
        await asyncio.get_running_loop().run_in_executor(threads, _check, offer, part)

    async def _go_on(
        self,
        endpoint: str,
        offer: EngineOffer,
        part: Path,
        threads: ThreadPoolExecutor,
        stall_s: float,
        tell: Callable[[int], None],
    ) -> None:
        """One connection, up to its end."""
        loop, done_bytes = asyncio.get_running_loop(), _size(part)
        headers = {"Range": f"bytes={done_bytes}-"} if done_bytes else {}
        async with (
            self._http(endpoint, stall_s) as client,
            client.stream(
                "GET", f"/engines/{offer.archive}", headers=headers, extensions=_SNI
            ) as answer,
        ):
            if answer.status_code not in (200, 206):
                await answer.aread()
                raise _refused(answer, offer)
            if answer.status_code == 200:
                done_bytes = 0  # it begins anew
            async for block in answer.aiter_raw(BLOCK_BYTES):
                room_bytes = offer.size_bytes - done_bytes
                await loop.run_in_executor(
                    threads, _write, part, done_bytes, block[:room_bytes], offer
                )
                done_bytes += min(len(block), room_bytes)
                tell(done_bytes)
                if len(block) > room_bytes:
                    return  # more than was offered: its digest will tell

    def _http(self, endpoint: str, stall_s: float) -> httpx.AsyncClient:
        identity = self._identity
        context = tls.client_context(
            identity.authority.read_text(), identity.certificate, identity.key
        )
        return httpx.AsyncClient(
            base_url=f"https://{endpoint}",
            verify=context,
            timeout=httpx.Timeout(stall_s, connect=min(_CONNECT_S, stall_s)),
            headers={"Accept-Encoding": "identity"},
            trust_env=False,
        )


def _refused(answer: httpx.Response, offer: EngineOffer) -> Exception:
    """Said once is enough, except where the same request may be answered later."""
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"HTTP {answer.status_code}"
    if answer.status_code >= 500 or answer.status_code == 429:
        return httpx.HTTPError(detail)
    return EngineNotFetched(f"the main host does not give {offer.archive} ({detail})")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _write(part: Path, offset: int, block: bytes, offer: EngineOffer) -> None:
    try:
        with part.open("r+b" if offset else "wb") as file:
            file.seek(offset)
            file.write(block)
    except OSError as exc:
        raise DiskFull(
            f"{part.name} could not be written after {offset} of {offer.size_bytes} bytes "
            f"({exc.strerror}); free space on this device"
        ) from exc


def _check(offer: EngineOffer, part: Path) -> None:
    digest = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != offer.sha256:
        part.unlink()
        raise EngineDigestWrong(
            f"{offer.archive} has the digest {digest.hexdigest()[:16]}..., the main host said "
            f"{offer.sha256[:16]}...; it was thrown away"
        )
