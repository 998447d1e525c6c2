"""This host's networks: read by platform, remembered for half a minute."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from agents import facts, networks_linux, networks_macos, ports
from agents.contract import DeviceFacts, Finding, NetworkAddress
from agents.interfaces import Interface, Networks, addresses, is_reachable
from agents.network_findings import findings, rdma_state

log = logging.getLogger(__name__)

KEPT_S: Final = 30.0


def read() -> Networks:
    """What there is now. Blocks, for some seconds at the worst."""
    platform = facts.platform_name()
    if platform == "macos":
        return networks_macos.read()
    found = networks_linux.interfaces()
    return Networks(
        platform=platform,
        interfaces=tuple(found),
        default_route=networks_linux.default_route(),
        thunderbolt_ports=tuple(each.name for each in found if each.kind == "thunderbolt"),
        rdma_ports=tuple(networks_linux.rdma_ports()),
        was_read=bool(found),
    )


def with_known(networks: Networks, address: str) -> Networks:
    """With an address that is known to be ours where the platform shows none: newer Androids."""
    known = {each for interface in networks.interfaces for each, _ in interface.addresses}
    if address in known or not is_reachable(address):
        return networks
    found = Interface("", addresses=((address, None),))
    return replace(networks, interfaces=(*networks.interfaces, found))


class NetworkReader:
    """The networks as they were at most ``KEPT_S`` seconds ago. Only the first caller waits."""

    def __init__(
        self,
        read_now: Callable[[], Networks] = read,
        *,
        known: str = "",
        kept_s: float = KEPT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``known``: an address of this host, for where the platform shows none."""
        self._known_address = known
        self._read_now = read_now
        self._kept_s = kept_s
        self._clock = clock
        self._known: Networks | None = None
        self._read_at_s = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def knows(self, address: str) -> None:
        """Another address of this host instead of the one that was known."""
        self._known_address = address

    async def networks(self) -> Networks:
        """The last that was read; a new reading goes on beside it."""
        if self._reading is None and self._clock() - self._read_at_s >= self._kept_s:
            self._reading = asyncio.create_task(self._look())
        if self._known is None and self._reading is not None:
            await asyncio.wait({self._reading})
        return self._known or self._with_known(Networks(facts.platform_name(), was_read=False))

    def _with_known(self, found: Networks) -> Networks:
        return with_known(found, self._known_address) if self._known_address else found

    async def addresses(self) -> list[NetworkAddress]:
        """Of this host, the default route's first."""
        return addresses(await self.networks())

    async def findings(self) -> list[Finding]:
        return findings(await self.networks())

    async def rdma(self) -> str:
        return rdma_state(await self.networks())

    async def told(self, found: DeviceFacts, link_ports: Mapping[str, int]) -> DeviceFacts:
        """The facts with what there is to say of networks; the link's ports go by address."""
        listed = await self.addresses()
        return replace(
            found,
            addresses=[replace(a, link_port=link_ports.get(a.address, 0)) for a in listed],
            wires=await self.findings(),
            rdma=await self.rdma(),
        )

    async def is_ours(self, endpoint: str) -> bool:
        """Whether ``ADDRESS:PORT`` is on this host: then there is no network between."""
        host = endpoint.rpartition(":")[0].strip("[]")
        return not is_reachable(host) or host in {each.address for each in await self.addresses()}

    async def _look(self) -> None:
        try:
            self._known = self._with_known(await asyncio.to_thread(self._read_now))
        except (OSError, ValueError) as exc:  # a kernel that words it in a way of its own
            log.warning("networks.not_read", extra={"reason": repr(exc)})
        finally:
            self._read_at_s = self._clock()
            self._reading = None


def first_address() -> str:
    """That of the default route; loopback without one. Sends nothing."""
    return ports.local_address_towards("192.0.2.1")
