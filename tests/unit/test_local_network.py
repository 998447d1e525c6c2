"""macOS keeps programs from their own network; that is told as what it is, and never elsewhere."""

import asyncio
import errno
import ssl
import sys
from pathlib import Path

import httpx
import pytest

from agents import join, local_network, tls
from agents.contract import NetworkAddress
from agents.errors import LinkLost, LocalNetworkDenied, MainHostUnreachable
from agents.join import Identity, JoinCode, MainHost
from agents.link_stream import LinkStream
from supervisor.adapters import agent_client
from supervisor.adapters.agent_client import AgentClient
from supervisor.errors import AgentUnreachable
from supervisor.link.dialing import _dial
from supervisor.link.job import LinkJob, WorkerJob

NEAR, FAR = "10.77.0.9:8101", "10.78.0.9:8101"
OWN = [
    NetworkAddress("10.77.0.2", "en0", prefix_length=24),
    NetworkAddress("fe80::2%en0", "en0", prefix_length=64),
    NetworkAddress("2001:db8::2", "en1", prefix_length=64),
]
SELECTOR_LOOP = "asyncio.selector_events.BaseSelectorEventLoop.sock_connect"


def own() -> list[NetworkAddress]:
    return OWN


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection ends at once, as on a Mac that does not allow it."""

    async def connect(*_: object) -> None:
        raise OSError(65, "No route to host")

    monkeypatch.setattr(SELECTOR_LOOP, connect)
    monkeypatch.setattr(join, "own_addresses", own)
    monkeypatch.setattr(agent_client, "own_addresses", own)
    monkeypatch.setattr(join, "_JOIN_PATIENCE_S", 0.01)


def main_host(tmp_path: Path, endpoints: str, platform: str) -> MainHost:
    code = JoinCode.parse(f"{endpoints}/token/{'F' * 43}")
    return MainHost(code, Identity(tmp_path / "identity"), platform)


@pytest.mark.usefixtures("refused")
async def test_a_new_device_is_told_where_to_allow_it(tmp_path: Path) -> None:
    with pytest.raises(LocalNetworkDenied) as caught:
        await main_host(tmp_path, f"{FAR},{NEAR}", "macos").join("id", "mac")
    said = str(caught.value)
    for words in ("errno 65", NEAR, "Privacy & Security > Local Network", "service install"):
        assert words in said


@pytest.mark.usefixtures("refused")
@pytest.mark.parametrize(
    ("endpoint", "platform"), [(FAR, "macos"), (NEAR, "linux"), (NEAR, "android")]
)
async def test_another_network_or_system_is_unreachable(
    tmp_path: Path, endpoint: str, platform: str
) -> None:
    with pytest.raises(MainHostUnreachable):
        await main_host(tmp_path, endpoint, platform).join("id", "mac")


@pytest.mark.usefixtures("refused")
async def test_the_main_host_tells_it_of_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    client = AgentClient("id", "phone", "10.77.0.9", 8102, tls.unverified_context())
    with pytest.raises(AgentUnreachable) as caught:
        await client.facts()
    assert caught.value.code == "local_network_denied"
    assert "the agent of phone cannot be asked: macOS keeps" in str(caught.value)
    await client.close()


@pytest.mark.usefixtures("refused")
async def test_the_link_tells_it_of_a_far_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    worker = WorkerJob("id", "phone", "10.77.0.9", 8103, "1")
    link = LinkStream(lambda _: None, lambda _: None)
    job = LinkJob(1, "main-host", 6, 5, 1 << 20, "", "", "", "", [worker])
    with pytest.raises(LinkLost, match="no link to phone: macOS keeps this program") as caught:
        await _dial(link, job, worker, tls.unverified_context())
    assert caught.value.code == "local_network_denied"


async def test_a_real_refusal_of_this_system_is_none_of_a_mac() -> None:
    """The real number of this system, through the library's wrapping."""
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.ConnectError) as caught:
            await http.get("http://127.0.0.1:9/")
    assert errno.ECONNREFUSED in set(local_network._numbers(caught.value))
    assert await local_network.denial(caught.value, "127.0.0.1:9", platform="macos") is None


def test_the_number_is_the_platforms() -> None:
    assert local_network.no_route("macos") == 65
    assert local_network.no_route("linux") == errno.EHOSTUNREACH


async def test_several_addresses_of_a_name_may_fail_together() -> None:
    failures = [OSError(64, "Host is down"), OSError(65, "No route to host")]
    error = OSError("All connection attempts failed")
    error.__cause__ = ExceptionGroup("multiple connection attempts failed", failures)
    assert await local_network.denial(error, NEAR, platform="macos", own=own)
    error.__cause__ = ExceptionGroup("multiple connection attempts failed", failures[:1])
    assert await local_network.denial(error, NEAR, platform="macos", own=own) is None


async def test_errors_that_name_each_other_end_the_search() -> None:
    one, two = OSError(1, "a"), ssl.SSLError("b")
    one.__cause__, two.__cause__ = two, one
    assert await asyncio.wait_for(local_network.denial(one, NEAR, platform="macos"), 5) is None


@pytest.mark.parametrize(
    ("host", "near"),
    [
        ("10.77.0.200", True),
        ("10.77.1.1", False),
        ("2001:db8::77", True),
        ("2001:db8:1::77", False),
        ("fe80::9%en0", True),
        ("169.254.3.4", True),
        ("127.0.0.1", False),
        ("mac.local", True),
        ("example.org", False),
    ],
)
def test_what_is_near(host: str, near: bool) -> None:
    assert local_network.is_near(host, OWN) is near


@pytest.mark.parametrize(("host", "near"), [("192.168.3.4", True), ("1.1.1.1", False)])
def test_where_nothing_is_known_private_addresses_are_near(host: str, near: bool) -> None:
    assert local_network.is_near(host, []) is near
