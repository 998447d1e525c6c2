"""Networks of a Mac, from what its own commands print. They are only read from."""

import re
from typing import Final

from agents import short_commands
from agents.interfaces import ACTIVE, Interface, Networks, RdmaPort

_COMMAND_S: Final = 3.0
_HEAD: Final = re.compile(r"^(?P<name>[\w.-]+): flags=\w+<(?P<flags>[^>]*)>")
_INET: Final = re.compile(r"^\s+inet (?P<address>[\d.]+)(?: -->.*)? netmask (?P<mask>0x[0-9a-f]+)")
_INET6: Final = re.compile(
    r"^\s+inet6 (?P<address>[0-9a-f:]+)(?:%\S+)? .*prefixlen (?P<prefix>\d+)"
)
_MEMBER: Final = re.compile(r"^\s+member: (?P<name>\S+)")
_STATUS: Final = re.compile(r"^\s+status: (?P<status>\w+)")
_MEDIA: Final = re.compile(r"\((?P<speed>[\d.]+)(?P<unit>G?)base", re.IGNORECASE)
_THUNDERBOLT: Final = re.compile(r"Thunderbolt \d+$")
_HIDDEN: Final = re.compile(r"(awdl|llw|anpi|ap\d|gif|stf|feth|vmenet|vmnet|bridge1\d\d)")
"""Of the system's own: AirDrop, virtual machines, internet sharing."""


def read() -> Networks:
    """All of it; takes a fraction of a second, and some seconds at the most."""
    return parsed(
        short_commands.output(["ifconfig"], _COMMAND_S),
        short_commands.output(["networksetup", "-listallhardwareports"], _COMMAND_S),
        short_commands.output(["route", "-n", "get", "default"], _COMMAND_S),
        short_commands.output(["rdma_ctl", "status"], _COMMAND_S),
        short_commands.output(["ibv_devinfo"], _COMMAND_S),
    )


def parsed(ifconfig: str, ports: str, route: str, rdma_status: str, devinfo: str) -> Networks:
    """What the five commands said, each of which may have said nothing."""
    kinds = hardware_ports(ports)
    thunderbolt = tuple(name for name, kind in kinds.items() if kind == "thunderbolt")
    default = re.search(r"interface: (\S+)", route)
    status = rdma_status.strip().lower()
    return Networks(
        platform="macos",
        interfaces=tuple(interfaces(ifconfig, kinds)),
        default_route=default.group(1) if default else "",
        thunderbolt_ports=thunderbolt,
        rdma_enabled={"enabled": True, "disabled": False}.get(status),
        rdma_ports=tuple(rdma_ports(devinfo)),
        was_read=bool(ifconfig),
    )


def hardware_ports(text: str) -> dict[str, str]:
    """The kind of each interface, by what ``networksetup -listallhardwareports`` calls its port."""
    kinds: dict[str, str] = {}
    port = ""
    for line in text.splitlines():
        if line.startswith("Hardware Port:"):
            port = line.partition(":")[2].strip()
        elif line.startswith("Device:") and port:
            kinds[line.partition(":")[2].strip()] = _kind_of_port(port)
            port = ""
    return kinds


def _kind_of_port(port: str) -> str:
    if port in ("Wi-Fi", "AirPort"):
        return "wifi"
    if port == "Thunderbolt Bridge":
        return "bridge"
    if _THUNDERBOLT.match(port):
        return "thunderbolt"
    if "USB" in port:
        return "usb"
    return "ethernet" if "Ethernet" in port or "LAN" in port else ""


def interfaces(text: str, kinds: dict[str, str]) -> list[Interface]:
    """The interfaces of ``ifconfig`` that are up, connected, and have an address."""
    return [
        found
        for block in _blocks(text)
        if (found := _interface(block, kinds)) is not None and found.addresses
    ]


def _blocks(text: str) -> list[list[str]]:
    blocks: list[list[str]] = []
    for line in text.splitlines():
        if _HEAD.match(line):
            blocks.append([])
        if blocks:
            blocks[-1].append(line)
    return blocks


def _interface(block: list[str], kinds: dict[str, str]) -> Interface | None:
    head = _HEAD.match(block[0])
    if head is None or "UP" not in head["flags"].split(",") or _HIDDEN.match(head["name"]):
        return None
    status = next((m["status"] for line in block if (m := _STATUS.match(line))), "active")
    if status == "inactive":
        return None
    members = tuple(m["name"] for line in block if (m := _MEMBER.match(line)))
    name = head["name"]
    return Interface(
        name=name,
        kind=_kind(name, head["flags"], members, kinds),
        speed_mbit_per_s=next((s for line in block if (s := _speed(line))), None),
        members=members,
        addresses=tuple(a for line in block if (a := _address(line))),
    )


def _kind(name: str, flags: str, members: tuple[str, ...], kinds: dict[str, str]) -> str:
    if "LOOPBACK" in flags.split(","):
        return "loopback"
    if members and all(kinds.get(member) == "thunderbolt" for member in members):
        return "thunderbolt"
    if name in kinds:
        return kinds[name]
    if name.startswith(("utun", "ipsec", "ppp")):
        return "vpn"
    return "bridge" if members else ""


def _address(line: str) -> tuple[str, int | None] | None:
    if found := _INET.match(line):
        return found["address"], int(found["mask"], 16).bit_count()
    if found := _INET6.match(line):
        return found["address"], int(found["prefix"])
    return None


def _speed(line: str) -> int | None:
    """Of a line such as ``media: autoselect (1000baseT <full-duplex>)``."""
    found = _MEDIA.search(line) if line.strip().startswith("media:") else None
    return int(float(found["speed"]) * (1000 if found["unit"] else 1)) if found else None


def rdma_ports(text: str) -> list[RdmaPort]:
    """Of ``ibv_devinfo``; ``rdma_en5`` is the device of the port ``en5``."""
    found = []
    device = ""
    for line in text.splitlines():
        word, _, value = line.strip().partition(":")
        if word == "hca_id":
            device = value.strip()
        elif word == "state" and device:
            state = value.split()[0].removeprefix("PORT_").lower() if value.split() else ""
            interface = device.removeprefix("rdma_") if device.startswith("rdma_") else ""
            found.append(RdmaPort(device, ACTIVE if state == "active" else state, interface))
    return found
