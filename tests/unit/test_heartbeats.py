"""Heartbeats of an agent: when they are sent, and what their silence means."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from agents import join, tls
from agents.contract import (
    DeviceFacts,
    Heartbeat,
    HeartbeatReply,
    JoinReply,
    RpcServerStatus,
    WorkerState,
)
from agents.errors import MainHostUnreachable
from agents.join import Identity, JoinCode, MainHost, keep_alive, retry_pause_s
from agents.lease import Lease
from supervisor.adapters.authority import Authority

MESSAGE = Heartbeat(
    DeviceFacts("id", "pixel", "android"), RpcServerStatus(WorkerState.STOPPED), rest_port=8102
)
LEASE_S = 10.0


# -- the lease ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lease_s", "asked_at_s", "has_run_out"),
    [(10, 109.9, False), (10, 110, True), (10, 1e6, True), (0, 1e6, False)],
)
def test_a_lease_runs_out_with_a_heartbeat_that_began_after_it(
    lease_s: float, asked_at_s: float, has_run_out: bool
) -> None:
    lease = Lease(heard_at_s=50)
    lease.renew(100, lease_s)
    assert lease.has_run_out(asked_at_s) is has_run_out
    lease.renew(asked_at_s, lease_s)
    assert not lease.has_run_out(asked_at_s)


def test_an_agent_that_never_heard_of_a_lease_has_none() -> None:
    assert not Lease(heard_at_s=0).has_run_out(1e9)


# -- the pause after a failure -----------------------------------------------------------------


@pytest.mark.parametrize("rhythm_s", [0.5, 5.0, 60.0])
def test_pauses_grow_and_stay_short_enough_to_hear_of_a_restart(rhythm_s: float) -> None:
    longest = [retry_pause_s(n, rhythm_s, 1.0) for n in range(1, 2000)]
    assert longest == sorted(longest)
    assert longest[0] == 0.2
    assert longest[-1] == min(rhythm_s, 1.5)
    shortest = [retry_pause_s(n, rhythm_s, 0.0) for n in range(1, 2000)]
    assert shortest == [pause_s / 2 for pause_s in longest], "devices do not come all at once"


# -- sending -----------------------------------------------------------------------------------


class Script:
    """A main host by the book: each heartbeat is answered or not, on a clock of ours."""

    def __init__(self, *answers: Callable[["Script"], HeartbeatReply]) -> None:
        self.now_s = 0.0
        self.endpoint = "desk:8101"
        self.expired: list[str] = []
        self.began_s: list[float] = []
        self.changed = asyncio.Event()
        self._answers = list(answers)
        self.is_over = asyncio.Event()

    async def heartbeat(self, message: Heartbeat) -> HeartbeatReply:
        assert message is MESSAGE
        self.began_s.append(self.now_s)
        if not self._answers:
            self.is_over.set()
            await asyncio.Event().wait()
        return self._answers.pop(0)(self)

    def has_hung_up(self) -> bool:
        return False

    async def expire(self, reason: str) -> None:
        self.expired.append(reason)

    async def compose(self) -> Heartbeat:
        return MESSAGE

    async def play(self) -> None:
        work = keep_alive(
            cast(MainHost, self), self.compose, self.changed, self.expire, lambda: self.now_s
        )
        beating = asyncio.create_task(work)
        ended = asyncio.create_task(self.is_over.wait())
        async with asyncio.timeout(10):
            await asyncio.wait({beating, ended}, return_when=asyncio.FIRST_COMPLETED)
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating


def answered(*, at_s: float = 0.0, lease_s: float = LEASE_S) -> Callable[[Script], HeartbeatReply]:
    def answer(script: Script) -> HeartbeatReply:
        script.now_s = max(script.now_s, at_s)
        return HeartbeatReply(0.001, lease_s)

    return answer


def failed(*, at_s: float, next_at_s: float | None = None) -> Callable[[Script], HeartbeatReply]:
    """Fails at ``at_s``; the next one begins at ``next_at_s``."""

    def answer(script: Script) -> HeartbeatReply:
        script.now_s = at_s if next_at_s is None else next_at_s
        raise MainHostUnreachable("no answer")

    return answer


async def test_the_rpc_server_is_given_up_when_nobody_was_heard_for_the_lease() -> None:
    script = Script(
        answered(),
        failed(at_s=9),
        failed(at_s=10.5),
        failed(at_s=12),
        answered(),
        failed(at_s=21),
    )
    await script.play()
    assert script.expired == ["the supervisor was not heard for 12 s (lease 10 s)"]


async def test_a_device_that_slept_asks_once_more_before_it_gives_up() -> None:
    """It may have begun a heartbeat just before, which cannot come through."""
    slept = Script(answered(), failed(at_s=3600), answered())
    await slept.play()
    assert slept.expired == []
    gone = Script(answered(), failed(at_s=3600), failed(at_s=3610))
    await gone.play()
    assert gone.expired == ["the supervisor was not heard for 3610 s (lease 10 s)"]


async def test_a_main_host_of_before_leases_is_waited_for_for_ever() -> None:
    script = Script(answered(lease_s=0.0), *(failed(at_s=1e6 * n) for n in range(1, 4)))
    await script.play()
    assert script.expired == []


async def test_news_are_told_at_once_though_the_next_heartbeat_is_far() -> None:
    script = Script(lambda _: HeartbeatReply(3600.0), answered())
    playing = asyncio.create_task(script.play())
    await asyncio.sleep(0.05)
    assert len(script.began_s) == 1
    script.changed.set()
    async with asyncio.timeout(1):
        await playing


async def test_news_during_a_heartbeat_are_told_in_the_next_one() -> None:
    def with_news(script: Script) -> HeartbeatReply:
        script.changed.set()
        return HeartbeatReply(3600.0)

    async with asyncio.timeout(1):
        await Script(with_news, answered()).play()


async def test_the_end_of_a_main_host_is_noticed_before_the_next_heartbeat_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(join, "_LOOK_EVERY_S", 0.01)
    script = Script(lambda _: HeartbeatReply(3600.0), answered())
    monkeypatch.setattr(script, "has_hung_up", lambda: True)
    async with asyncio.timeout(1):
        await script.play()


# -- on the wire -------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def member_of(authority: Authority, folder: Path, port: int) -> AsyncIterator[MainHost]:
    """A main host as a device sees it that has joined."""
    issued = authority.issue(tls.agent_name("id"))
    identity = Identity(folder / "identity")
    identity.store(JoinReply(issued.certificate_pem, issued.key_pem, authority.certificate_pem))
    code = JoinCode((f"127.0.0.1:{port}",), "token", authority.fingerprint)
    made = MainHost(code, identity)
    try:
        yield made
    finally:
        await made.close()


async def fails_soon(main_host: MainHost) -> None:
    began_s = time.monotonic()
    for _ in range(3):
        with pytest.raises(MainHostUnreachable, match=main_host.endpoint):
            await main_host.heartbeat(MESSAGE)
    assert time.monotonic() - began_s < 3
    assert not main_host.has_hung_up()


async def test_a_main_host_that_was_stopped_is_not_waited_for_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel takes connections."""
    monkeypatch.setattr(join, "_CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with member_of(Authority(tmp_path / "authority"), tmp_path, port) as main_host:
            await fails_soon(main_host)


async def test_an_answer_that_never_ends_is_not_waited_for_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "_REQUEST_S", 0.5)
    authority = Authority(tmp_path / "authority")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.supervisor_certificate, authority.supervisor_key)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        async with member_of(authority, tmp_path, port) as main_host:
            await fails_soon(main_host)
        server.close()
