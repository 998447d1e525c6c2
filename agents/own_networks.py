"""The addresses of this host, for whoever wants them only when something failed."""

from agents import networks
from agents.contract import NetworkAddress
from agents.interfaces import addresses


def own_addresses() -> list[NetworkAddress]:
    """As they are now. Blocks, for some seconds at the worst."""
    return addresses(networks.read())
