"""Ports: chosen without a race between our own programs, and never a public rpc-server."""

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import ports
from agents.contract import RPC_PORTS
from agents.errors import BadMessage, NoFreePort, PortInUse, PublicAddressRefused


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Locks of this test alone; other supervisors of this host are not disturbed."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_port_that_is_listened_on_is_not_free(taken: int) -> None:
    assert not ports.is_free("127.0.0.1", taken)
    assert ports.is_free("127.0.0.1", free_port())


def test_reservations_never_overlap() -> None:
    first, second = ports.reserve("127.0.0.1"), ports.reserve("127.0.0.1")
    try:
        assert first.port != second.port
        assert {first.port, second.port} <= set(RPC_PORTS)
    finally:
        first.release()
        second.release()


def test_a_released_port_may_be_chosen_again() -> None:
    first = ports.reserve("127.0.0.1")
    first.release()
    first.release()
    again = ports.reserve("127.0.0.1", first.port)
    assert again.port == first.port
    again.release()


def test_another_program_of_ours_keeps_off_a_reserved_port(tmp_path: Path) -> None:
    mine = ports.reserve("127.0.0.1", free_port())
    script = (
        "import sys, tempfile; from agents import ports, errors; tempfile.tempdir = sys.argv[1]\n"
        "try: ports.reserve('127.0.0.1', int(sys.argv[2]))\n"
        "except errors.PortInUse: sys.exit(7)\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path), str(mine.port)]
    assert subprocess.run(argv, check=False, timeout=20).returncode == 7
    mine.release()
    assert subprocess.run(argv, check=False, timeout=20).returncode == 0


def test_a_wanted_port_that_is_taken_is_refused(taken: int) -> None:
    with pytest.raises(PortInUse, match=f"127.0.0.1:{taken} is in use"):
        ports.reserve("127.0.0.1", taken)


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(PortInUse, match="not an address of this device"):
        ports.reserve("192.0.2.1", free_port())


def test_a_full_range_is_said_with_its_bounds(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "RPC_PORTS", range(taken, taken + 1))
    with pytest.raises(NoFreePort, match=f"ports {taken}-{taken} on 127.0.0.1 are all in use"):
        ports.reserve("127.0.0.1")


def test_listening_takes_any_free_port_and_refuses_a_taken_one(taken: int) -> None:
    with ports.listen("127.0.0.1", 0, "a test") as listener:
        assert listener.getsockname()[1] > 0
    with pytest.raises(PortInUse, match=rf"cannot listen on 127.0.0.1:{taken} for a test: \w+"):
        ports.listen("127.0.0.1", taken, "a test")


def test_our_address_towards_loopback_is_loopback() -> None:
    assert ports.local_address_towards("127.0.0.1") == "127.0.0.1"
    assert ports.local_address_towards("no such host") == "127.0.0.1"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "10.0.0.2", "192.168.1.9", "172.16.0.1", "169.254.1.1", "100.64.3.4", "fd00::1"],
)
def test_private_and_vpn_addresses_may_be_listened_on(host: str) -> None:
    ports.refuse_public(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "8.8.8.8", "::", "2606:4700::1111", "224.0.0.1"])
def test_an_rpc_server_never_listens_in_public(host: str) -> None:
    with pytest.raises(PublicAddressRefused, match=re.escape(f"may not listen on {host}")):
        ports.refuse_public(host)


@pytest.mark.parametrize("host", ["", "localhost", "desk.local", "10.0.0.256"])
def test_a_name_is_no_address_to_listen_on(host: str) -> None:
    with pytest.raises(BadMessage, match=re.escape(f"cannot listen on {host!r}")):
        ports.refuse_public(host)
