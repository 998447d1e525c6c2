"""Which addresses of this host are used, and how often they are looked at."""

import asyncio
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.contract import NetworkAddress
from agents.interfaces import (
    MOST_LISTENERS,
    Interface,
    Networks,
    addresses,
    is_reachable,
    may_listen,
    to_listen_at,
)
from agents.networks import NetworkReader, with_known


@pytest.mark.parametrize(
    ("address", "reachable", "listens"),
    [
        ("192.168.1.2", True, True),
        ("10.0.0.1", True, True),
        ("100.64.7.7", True, True),
        ("169.254.3.4", True, True),
        ("8.8.8.8", True, False),
        ("fd12::1", True, False),
        ("fe80::1%en0", False, False),
        ("192.0.0.4", False, False),
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("0.0.0.0", False, False),
        ("name", False, False),
    ],
)
def test_which_addresses_are_used(address: str, reachable: bool, listens: bool) -> None:
    assert (is_reachable(address), may_listen(address)) == (reachable, listens)


@given(
    st.lists(st.ip_addresses(v=4).map(str), max_size=12),
    st.sampled_from(["192.168.1.2", "127.0.0.1", "8.8.8.8"]),
)
def test_nobody_listens_at_more_than_a_few_private_addresses(found: list[str], first: str) -> None:
    chosen = to_listen_at([NetworkAddress(each) for each in found], first)
    assert chosen[0] == first
    assert len(chosen) == len(set(chosen)) <= MOST_LISTENERS
    for each in chosen[1:]:
        address = ipaddress.ip_address(each)
        assert not address.is_global
        assert not address.is_loopback
        assert not address.is_unspecified
    if first != "192.168.1.2":
        assert chosen == [first]


def test_an_address_that_is_known_is_kept_where_the_platform_shows_none() -> None:
    hidden = Networks("android", was_read=False)
    known = with_known(hidden, "192.168.1.9")
    assert [each.address for each in addresses(known)] == ["192.168.1.9"]
    assert with_known(known, "192.168.1.9") == known
    assert with_known(hidden, "127.0.0.1") == hidden


async def test_networks_are_read_once_for_many_who_ask_and_again_later() -> None:
    now_s, reads = 0.0, 0

    def read() -> Networks:
        nonlocal reads
        reads += 1
        made = Interface("eth0", "ethernet", addresses=((f"10.0.0.{reads}", 24),))
        return Networks("linux", (made,))

    reader = NetworkReader(read, kept_s=30, clock=lambda: now_s)
    both = await asyncio.gather(reader.addresses(), reader.addresses())
    assert [found[0].address for found in both] == ["10.0.0.1", "10.0.0.1"]
    now_s = 31.0
    assert (await reader.addresses())[0].address == "10.0.0.1"  # nobody waits for the second
    for _ in range(100):
        await asyncio.sleep(0.01)
        if (await reader.addresses())[0].address == "10.0.0.2":
            break
    assert reads == 2
