"""Networks of a Linux host, from ``/sys`` and ``/proc``; Android tells next to nothing."""

import contextlib
import fcntl
import ipaddress
import json
import re
import socket
import struct
from pathlib import Path
from typing import Final

from agents import short_commands
from agents.interfaces import ACTIVE, Interface, RdmaPort

try:
    import psutil
except ImportError:  # a phone without the package
    psutil = None

Addresses = dict[str, list[tuple[str, int | None]]]
"""Address and length of its prefix, by interface."""

_COMMAND_S: Final = 2.0
_SIOCGIFADDR: Final = 0x8915
_SIOCGIFNETMASK: Final = 0x891B
_LOOPBACK_TYPE: Final = "772"
_RTF_UP: Final = 1
_VIRTUAL_BRIDGE: Final = re.compile(
    r"(docker|br-[0-9a-f]{12}|virbr|lxc|lxd|incusbr|podman|cni|vmnet)"
)
_VIRTUAL_PORT: Final = re.compile(r"(veth[0-9a-f]{7}|vnet\d|cali|flannel|kube)")
_VPN: Final = re.compile(r"(tun|tap|wg|tailscale|zt|ppp|nebula|utun)")
_CELLULAR: Final = re.compile(r"(rmnet|ccmni|wwan|pdp)")
_WIFI: Final = re.compile(r"(wlan|wlp|swlan)")


def interfaces(
    net: Path = Path("/sys/class/net"), found: Addresses | None = None
) -> list[Interface]:
    """The interfaces that are up and have an address."""
    found = read_addresses() if found is None else found
    return [
        _interface(net / name, name, tuple(addresses))
        for name, addresses in found.items()
        if addresses and _is_up(net / name)
    ]


def _interface(folder: Path, name: str, addresses: tuple[tuple[str, int | None], ...]) -> Interface:
    kind = kind_of(folder, name)
    members = tuple(_names_in(folder / "brif"))
    return Interface(
        name=name,
        kind=kind,
        speed_mbit_per_s=_speed(folder) if kind in ("ethernet", "thunderbolt", "usb") else None,
        members=members,
        addresses=addresses,
        is_virtual=_is_virtual(folder, name, kind, members),
    )


def kind_of(folder: Path, name: str) -> str:
    """What carries an interface, by its folder in ``/sys/class/net``."""
    device_type = re.search(r"DEVTYPE=(\w+)", _text(folder / "uevent"))
    told = device_type.group(1) if device_type else ""
    if name == "lo" or _text(folder / "type") == _LOOPBACK_TYPE:
        return "loopback"
    if _is_there(folder / "wireless") or _is_there(folder / "phy80211") or told == "wlan":
        return "wifi"
    if _is_there(folder / "bridge"):
        return "bridge"
    if told == "wwan" or _CELLULAR.match(name):
        return "cellular"
    return _kind_by_driver(folder, name, told)


def _kind_by_driver(folder: Path, name: str, told: str) -> str:
    if _is_there(folder / "tun_flags") or told == "wireguard" or _VPN.match(name):
        return "vpn"
    if not _is_there(folder):  # Android hides the folder; only the name is left
        return "wifi" if _WIFI.match(name) else ""
    driver = _link(folder / "device" / "driver").rpartition("/")[2].replace("_", "-")
    if driver == "thunderbolt-net" or name.startswith("thunderbolt"):
        return "thunderbolt"
    return "usb" if re.search(r"/usb\d", _link(folder / "device")) else "ethernet"


def _is_virtual(folder: Path, name: str, kind: str, members: tuple[str, ...]) -> bool:
    if kind != "bridge":
        return _VIRTUAL_PORT.match(name) is not None
    # A bridge whose ports are all inside this host is for containers, whatever it is called.
    has_outside = any(_is_there(folder.parent / member / "device") for member in members)
    return _VIRTUAL_BRIDGE.match(name) is not None or not has_outside


def _is_up(folder: Path) -> bool:
    return _text(folder / "operstate") not in ("down", "lowerlayerdown", "notpresent", "dormant")


def _speed(folder: Path) -> int | None:
    with contextlib.suppress(ValueError):
        speed = int(_text(folder / "speed"))
        return speed if speed > 0 else None
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # missing, forbidden, or (speed of a port without a cable) "invalid argument"
        return ""


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # Android lets nobody look
        return False


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir())
    except OSError:
        return []


def _link(path: Path) -> str:
    try:
        return str(path.resolve())
    except (OSError, RuntimeError):
        return ""


# -- addresses ------------------------------------------------------------------------------------


def read_addresses() -> Addresses:
    """By whatever works here; empty where nothing does."""
    return _from_psutil() or from_ip(_ip_output()) or _from_ioctl()


def _from_psutil() -> Addresses:
    if psutil is None:
        return {}
    try:
        found = psutil.net_if_addrs()
    except Exception:  # noqa: BLE001 - psutil raises its own types, differing per platform
        return {}
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [
            (a.address.partition("%")[0], _prefix(a.netmask)) for a in each if a.family in families
        ]
        for name, each in found.items()
    }


def _ip_output() -> str:
    return short_commands.output(["ip", "-j", "addr"], _COMMAND_S)


def from_ip(text: str) -> Addresses:
    """The same from what ``ip -j addr`` prints."""
    try:
        rows = json.loads(text)
        return {
            str(row["ifname"]): [
                (str(a["local"]), int(a["prefixlen"])) for a in row["addr_info"] if "local" in a
            ]
            for row in rows
        }
    except (ValueError, KeyError, TypeError):
        return {}


def _from_ioctl() -> Addresses:
    """IPv4 alone, one address per interface."""
    found: Addresses = {}
    try:
        names = [name for _, name in socket.if_nameindex()]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for name in names:
                with contextlib.suppress(OSError):
                    address = _asked(probe, _SIOCGIFADDR, name)
                    found[name] = [(address, _prefix(_asked(probe, _SIOCGIFNETMASK, name)))]
    except (OSError, AttributeError):  # newer Androids forbid both
        return {}
    return found


def _asked(probe: socket.socket, question: int, name: str) -> str:
    answer = fcntl.ioctl(probe.fileno(), question, struct.pack("256s", name.encode()[:15]))
    return socket.inet_ntoa(answer[20:24])


def _prefix(mask: str | None) -> int | None:
    if not mask:
        return None
    try:
        return int(ipaddress.ip_address(mask)).bit_count()
    except ValueError:
        return None


# -- routes and RDMA ------------------------------------------------------------------------------


def default_route(table: Path = Path("/proc/net/route")) -> str:
    """Interface of the default route with the smallest metric; empty: none, or not to be read."""
    routes = []
    for row in _text(table).splitlines()[1:]:
        fields = row.split()
        is_default = len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000"
        if is_default and int(fields[3], 16) & _RTF_UP:
            routes.append((int(fields[6]), fields[0]))
    return min(routes)[1] if routes else ""


def rdma_ports(root: Path = Path("/sys/class/infiniband")) -> list[RdmaPort]:
    """Every port of every RDMA device."""
    found = []
    for state in sorted(root.glob("*/ports/*/state")):
        device = state.parents[2]
        word = _text(state).rpartition(":")[2].strip().lower()
        names = _names_in(device / "device" / "net")
        interface = _text(state.parent / "gid_attrs" / "ndevs" / "0") or next(iter(names), "")
        found.append(RdmaPort(device.name, ACTIVE if word == "active" else word, interface))
    return found
