"""Joining a cluster, and the heartbeats that keep a device in it.

Trust runs in one direction first: the join code carries the fingerprint of the main host's
authority, and the token leaves this device only after that fingerprint was seen.
"""

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    stop_never,
    wait_exponential,
    wait_random,
)

from agents import local_network, privatefile, tls
from agents.contract import (
    SUPERVISOR_NAME,
    Heartbeat,
    HeartbeatReply,
    JoinReply,
    JoinRequest,
    read,
)
from agents.errors import (
    BadJoinCode,
    JoinRefused,
    LocalNetworkDenied,
    MainHostNotTrusted,
    MainHostUnreachable,
    RemovedByMainHost,
)
from agents.lease import Lease
from agents.own_networks import own_addresses

log = logging.getLogger(__name__)

_CONNECT_S = 4.0
"""TCP repeats what was lost after 1 and 3 s; a new attempt comes before it does so again."""
_REQUEST_S = 10.0
"""A supervisor that was stopped takes connections and says nothing. More than TCP and TLS may take
together: httpx leaves a socket open that is given up while TLS greets."""
_KEEP_ALIVE_S = 60.0
"""Longer than the pause between heartbeats, so that they share one connection."""

_JOIN_PATIENCE_S = 30.0

_LOOK_EVERY_S = 1.0
"""At the connection, which tells of a main host's end before the next heartbeat is due."""
_FIRST_RETRY_S = 0.2
_LONGEST_RETRY_S = 1.5
"""A restarted supervisor starts no launch before it has heard its devices."""


@dataclass(frozen=True, slots=True)
class JoinCode:
    """``ADDRESS:PORT[,ADDRESS:PORT...]/TOKEN/FINGERPRINT``: safe in shells, URLs and QR codes."""

    endpoints: tuple[str, ...]
    token: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{','.join(self.endpoints)}/{self.token}/{self.fingerprint}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a join code.

        Raises:
            BadJoinCode: It is not one, or was cut while copying.
        """
        parts = text.strip().split("/")
        if len(parts) != 3 or not all(parts):
            raise BadJoinCode(
                "the join code is not of the form ADDRESS:PORT/TOKEN/FINGERPRINT; "
                "copy the whole line that 'supervisor up' or 'supervisor invite' printed"
            )
        endpoints = tuple(parts[0].split(","))
        if not all(e.rpartition(":")[2].isdigit() and e.rpartition(":")[0] for e in endpoints):
            raise BadJoinCode(f"{parts[0]!r} in the join code is not ADDRESS:PORT")
        if len(parts[2]) != 43:
            raise BadJoinCode(
                f"the fingerprint in the join code has {len(parts[2])} characters, not 43; "
                "copy the whole code"
            )
        return cls(endpoints, parts[1], parts[2])


@dataclass(frozen=True, slots=True)
class Identity:
    """Where the agent keeps what it got at join: its key, certificate and the authority's."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "agent.crt"

    @property
    def key(self) -> Path:
        return self.folder / "agent.key"

    @property
    def authority(self) -> Path:
        return self.folder / "authority.crt"

    def belongs_to(self, fingerprint: str) -> bool:
        """Whether we already joined the cluster with this fingerprint."""
        files = (self.certificate, self.key, self.authority)
        if not all(file.is_file() for file in files):
            return False
        return tls.fingerprint(self.authority.read_text()) == fingerprint

    def client_context(self) -> ssl.SSLContext:
        """For calls to others of this cluster; shows who we are."""
        return tls.client_context(self.authority.read_text(), self.certificate, self.key)

    def store(self, reply: JoinReply) -> None:
        """Write everything; the key readable by us alone."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The authority's file decides whether we have joined, so it comes last.
        texts = (reply.key_pem, reply.certificate_pem, reply.authority_pem)
        for path, text in zip((self.key, self.certificate, self.authority), texts, strict=True):
            privatefile.write(path, text)

    def forget(self) -> None:
        """Remove what the main host no longer accepts."""
        for file in (self.certificate, self.key, self.authority):
            file.unlink(missing_ok=True)


class MainHost:
    """Client of the supervisor's join and heartbeat address."""

    def __init__(self, code: JoinCode, identity: Identity, platform: str = "") -> None:
        """``platform``: as ``facts.platform_name`` has it, which is the default."""
        self._platform = platform
        self._code = code
        self._identity = identity
        self._client: httpx.AsyncClient | None = None
        self._stream: Any = None
        self._failures = 0
        self._first_endpoint = ""
        self.endpoint = code.endpoints[0]

    async def join(self, agent_id: str, name: str) -> None:
        """Get an identity, unless we have one of this cluster already.

        A member waits for its main host for ever: after a boot the phone's Wi-Fi comes late, and
        nobody is there to start the agent again.

        Raises:
            MainHostUnreachable, LocalNetworkDenied: No answer to a new device for 30 seconds.
            MainHostNotTrusted: Somebody else answered.
            JoinRefused: The token is wrong, used up or expired.
        """
        is_member = self._identity.belongs_to(self._code.fingerprint)
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((MainHostUnreachable, LocalNetworkDenied)),
            wait=wait_exponential(0.25, max=1) + wait_random(0, _LONGEST_RETRY_S - 1),
            stop=stop_never if is_member else stop_after_delay(_JOIN_PATIENCE_S),
            before_sleep=_warn_once,
            reraise=True,
        ):
            with attempt:
                authority_pem = await self._authority()
        if is_member:
            return
        request = JoinRequest(self._code.token, agent_id, name)
        async with self._http(tls.client_context(authority_pem)) as client:
            response = await client.post("/join", json=asdict(request), extensions=_SNI)
        if response.status_code != 200:
            raise JoinRefused(_detail(response))
        self._identity.store(read(JoinReply, response.json()))
        log.info("agent.joined", extra={"main_host": self.endpoint})

    async def _authority(self) -> str:
        """Certificate of the authority, from the first endpoint that answers."""
        failures, denied = [], None
        for endpoint in self._code.endpoints:
            self.endpoint = endpoint
            try:
                async with self._http(tls.unverified_context()) as client:
                    response = await client.get("/authority.pem")
                seen = tls.fingerprint(response.text)
            except (httpx.HTTPError, ssl.SSLError) as exc:
                failures.append(f"{endpoint}: {str(exc) or type(exc).__name__}")
                denied = denied or await self._denial(exc, endpoint)
                continue
            except ValueError:
                seen = "(no certificate)"
            if seen == self._code.fingerprint:
                return response.text
            raise MainHostNotTrusted(
                f"{endpoint} shows fingerprint {seen}, the join code says "
                f"{self._code.fingerprint}; get a new join code from the main host"
            )
        if denied is not None:
            raise denied
        raise MainHostUnreachable(
            f"no main host answers ({'; '.join(failures)}); check that 'supervisor up' runs "
            "there, that both are on one network, and that no firewall blocks the port"
        )

    async def _denial(self, exc: Exception, endpoint: str) -> LocalNetworkDenied | None:
        return await local_network.denial(exc, endpoint, platform=self._platform, own=own_addresses)

    async def heartbeat(self, message: Heartbeat) -> HeartbeatReply:
        """Send one heartbeat.

        Raises:
            MainHostUnreachable, LocalNetworkDenied: No answer; the caller tries again.
            RemovedByMainHost: This device was removed there.
        """
        if self._client is None:
            context = tls.client_context(
                self._identity.authority.read_text(), self._identity.certificate, self._identity.key
            )
            self._client = self._http(context)
        self._stream = None
        try:
            async with asyncio.timeout(_REQUEST_S):
                response = await self._client.post(
                    "/heartbeat", json=asdict(message), extensions=_SNI
                )
        except (httpx.HTTPError, TimeoutError) as exc:
            failed = self.endpoint
            await self._try_another()
            if denied := await self._denial(exc, failed):
                raise denied from exc
            raise MainHostUnreachable(f"{failed}: {str(exc) or type(exc).__name__}") from exc
        if response.status_code in (401, 403):
            # Otherwise a new code would not help: we would show the refused certificate again.
            self._identity.forget()
            raise RemovedByMainHost(_detail(response))
        if response.status_code != 200:
            raise MainHostUnreachable(_detail(response))
        self._failures, self._first_endpoint = 0, self._first_endpoint or self.endpoint
        self._stream = response.extensions.get("network_stream")
        return read(HeartbeatReply, response.json())

    @property
    def has_roamed(self) -> bool:
        """It was heard last at another address of it than at first."""
        return bool(self._first_endpoint) and self.endpoint != self._first_endpoint

    async def _try_another(self) -> None:
        """Turn to the next address of the main host; to the steady one again every other time."""
        self._failures += 1
        steady, others = self._first_endpoint or self.endpoint, self._code.endpoints
        others = tuple(each for each in others if each != steady)
        if not others:
            return
        turn, is_odd = divmod(self._failures, 2)
        self.endpoint = others[turn % len(others)] if is_odd else steady
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def has_hung_up(self) -> bool:
        """Whether it has closed the connection of the last heartbeat: it ended, or its host did."""
        return self._stream is not None and bool(self._stream.get_extra_info("is_readable"))

    def _http(self, context: ssl.SSLContext) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"https://{self.endpoint}",
            verify=context,
            timeout=httpx.Timeout(_REQUEST_S, connect=_CONNECT_S),
            limits=httpx.Limits(keepalive_expiry=_KEEP_ALIVE_S),
            trust_env=False,
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


_SNI = {"sni_hostname": SUPERVISOR_NAME}


def _warn_once(attempt: RetryCallState) -> None:
    if attempt.attempt_number == 1 and attempt.outcome is not None:
        log.warning("main_host.waiting", extra={"reason": str(attempt.outcome.exception())})


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"


async def keep_alive(
    main_host: MainHost,
    compose: Callable[[], Awaitable[Heartbeat]],
    changed: asyncio.Event,
    expire: Callable[[str], Awaitable[None]],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Send heartbeats for ever: when due, and at once when ``changed`` is set.

    ``expire`` is called with the reason when none was answered for as long as the lease says.

    Raises:
        RemovedByMainHost: The one reason to end.
    """
    lease, rhythm_s, failures = Lease(clock()), 1.0, 0
    while True:
        changed.clear()
        asked_at_s = clock()
        try:
            reply = await main_host.heartbeat(await compose())
        except (MainHostUnreachable, LocalNetworkDenied) as exc:
            if not failures:
                log.warning("main_host.lost", extra={"reason": str(exc)})
            failures += 1
            if lease.has_run_out(asked_at_s):
                await expire(
                    f"the supervisor was not heard for {lease.silent_s(clock()):.0f} s "
                    f"(lease {lease.lease_s:g} s)"
                )
            pause_s = retry_pause_s(failures, rhythm_s, random.random())
        else:
            if failures:
                silent_s = round(lease.silent_s(clock()), 1)
                extra = {"endpoint": main_host.endpoint, "silent_s": silent_s}
                log.info("main_host.back", extra=extra)
            failures = 0
            lease.renew(clock(), reply.lease_s)
            pause_s = rhythm_s = reply.next_s
        await _until_due(pause_s, changed, main_host)


async def _until_due(pause_s: float, changed: asyncio.Event, main_host: MainHost) -> None:
    """Sooner, if there is news, or if the main host restarts and does not know us yet."""
    while pause_s > 0:
        step_s = min(pause_s, _LOOK_EVERY_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(step_s):
                await changed.wait()
        if changed.is_set() or main_host.has_hung_up():
            return
        pause_s -= step_s


def retry_pause_s(failures: int, rhythm_s: float, luck: float) -> float:
    """Pause after so many failed heartbeats in a row; ``luck``, from 0 to 1, spreads the devices.

    Never much longer than a second: a supervisor that is back waits for its devices.
    """
    doubled_s: float = _FIRST_RETRY_S * 2 ** min(failures - 1, 10)
    return min(doubled_s, rhythm_s, _LONGEST_RETRY_S) * (1 + luck) / 2
