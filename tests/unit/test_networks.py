"""What is read of a host's networks, from recorded outputs of its programs and trees of files."""

from pathlib import Path

import pytest

from agents import networks_linux, networks_macos
from agents.contract import Verdict
from agents.engine_rdma import has_rdma
from agents.interfaces import (
    Networks,
    RdmaPort,
    addresses,
)
from agents.network_findings import findings, rdma_state

PORTS = """
Hardware Port: Ethernet
Device: en0
Ethernet Address: 1c:f6:4c:00:00:01

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 36:00:00:00:00:40

Hardware Port: Wi-Fi
Device: en1
Ethernet Address: 84:2f:57:00:00:02

Hardware Port: Thunderbolt 1
Device: en2
Ethernet Address: 36:00:00:00:00:41

Hardware Port: Thunderbolt 2
Device: en3
Ethernet Address: 36:00:00:00:00:42

Hardware Port: USB 10/100/1000 LAN
Device: en7
Ethernet Address: 00:e0:4c:00:00:07

Hardware Port: Thunderbolt Ethernet Slot 1
Device: en8
Ethernet Address: 00:e0:4c:00:00:08

VLAN Configurations
===================
"""

BRIDGED = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\toptions=1203<RXCSUM,TXCSUM,TXSTATUS,SW_TIMESTAMP>
\tinet 127.0.0.1 netmask 0xff000000
\tinet6 ::1 prefixlen 128
\tinet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether 1c:f6:4c:00:00:01
\tinet6 fe80::10b2:1%en0 prefixlen 64 secured scopeid 0x4
\tinet6 fd12:3456::7 prefixlen 64 autoconf secured
\tinet 192.168.1.20 netmask 0xffffff00 broadcast 192.168.1.255
\tmedia: autoselect (10Gbase-T <full-duplex>)
\tstatus: active
en1: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether 84:2f:57:00:00:02
\tinet 192.168.1.31 netmask 0xffffff00 broadcast 192.168.1.255
\tmedia: autoselect
\tstatus: active
en2: flags=8963<UP,BROADCAST,SMART,RUNNING,PROMISC,SIMPLEX,MULTICAST> mtu 1500
\tmedia: autoselect <full-duplex>
\tstatus: active
en7: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 10.5.0.2 netmask 0xffffff00 broadcast 10.5.0.255
\tmedia: autoselect (none)
\tstatus: inactive
awdl0: flags=8843<UP,BROADCAST,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet6 fe80::88aa%awdl0 prefixlen 64 scopeid 0xc
\tinet 169.254.9.9 netmask 0xffff0000 broadcast 169.254.255.255
\tstatus: active
bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether 36:00:00:00:00:40
\tinet 169.254.77.3 netmask 0xffff0000 broadcast 169.254.255.255
\tConfiguration:
\t\tid 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0
\tmember: en2 flags=3<LEARNING,DISCOVER>
\t        ifmaxaddr 0 port 8 priority 0 path cost 0
\tmember: en3 flags=3<LEARNING,DISCOVER>
\t        ifmaxaddr 0 port 9 priority 0 path cost 0
\tmedia: <unknown type>
\tstatus: active
bridge100: flags=8a63<UP,BROADCAST,SMART,RUNNING,ALLMULTI,SIMPLEX,MULTICAST> mtu 1500
\tinet 192.168.64.1 netmask 0xffffff00 broadcast 192.168.64.255
\tmember: vmenet0 flags=10003<LEARNING,DISCOVER,CSUM>
\tstatus: active
utun4: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1280
\tinet 100.101.2.3 --> 100.101.2.3 netmask 0xffffffff
"""

PER_PORT = """\
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 192.168.1.20 netmask 0xffffff00 broadcast 192.168.1.255
\tmedia: autoselect (1000baseT <full-duplex>)
\tstatus: active
en2: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tinet 10.77.1.1 netmask 0xfffffffc broadcast 10.77.1.3
\tmedia: autoselect <full-duplex>
\tstatus: active
"""

ROUTE = """   route to: default
destination: default
       mask: default
    gateway: 192.168.1.1
  interface: en0
      flags: <UP,GATEWAY,DONE,STATIC,PRCLONING,GLOBAL>
"""

DEVINFO = """hca_id:\trdma_en2
\ttransport:\t\t\tThunderbolt (5)
\tfw_ver:\t\t\t\t1.0
\tnode_guid:\t\t\t3600:00ff:fe00:0041
\tphys_port_cnt:\t\t\t1
\t\tport:\t1
\t\t\tstate:\t\t\t{en2} (4)
\t\t\tmax_mtu:\t\t4096 (5)
\t\t\tlink_layer:\t\tThunderbolt

hca_id:\trdma_en3
\ttransport:\t\t\tThunderbolt (5)
\tphys_port_cnt:\t\t\t1
\t\tport:\t1
\t\t\tstate:\t\t\tPORT_DOWN (1)
\t\t\tlink_layer:\t\tThunderbolt
"""


def mac(
    ifconfig: str = PER_PORT, route: str = ROUTE, rdma: str = "", devinfo: str = ""
) -> Networks:
    return networks_macos.parsed(ifconfig, PORTS, route, rdma, devinfo)


def said(networks: Networks) -> dict[str, tuple[Verdict, str, str]]:
    return {f.check: (f.verdict, f.found, f.remedy) for f in findings(networks)}


# -- macOS ----------------------------------------------------------------------------------------


def test_a_mac_tells_each_address_and_what_carries_it() -> None:
    found = {each.address: each for each in addresses(mac(BRIDGED))}
    assert {a: each.kind for a, each in found.items()} == {
        "192.168.1.20": "ethernet",
        "fd12:3456::7": "ethernet",
        "192.168.1.31": "wifi",
        "169.254.77.3": "thunderbolt",
        "100.101.2.3": "vpn",
    }
    first = addresses(mac(BRIDGED))[0]
    assert (first.interface, first.is_default_route) == ("en0", True)
    assert (first.prefix_length, first.speed_mbit_per_s) == (64, 10_000)
    assert found["192.168.1.20"].prefix_length == 24


def test_the_kind_of_a_port_is_that_of_its_hardware() -> None:
    assert networks_macos.hardware_ports(PORTS) == {
        "en0": "ethernet",
        "bridge0": "bridge",
        "en1": "wifi",
        "en2": "thunderbolt",
        "en3": "thunderbolt",
        "en7": "usb",
        "en8": "ethernet",
    }


def test_thunderbolt_ports_inside_the_bridge_are_told_with_how_to_take_them_out() -> None:
    verdict, found, remedy = said(mac(BRIDGED))["thunderbolt_bridge"]
    assert verdict is Verdict.WARNING
    assert "en2, en3 are inside bridge0" in found
    assert "sudo ifconfig bridge0 deletem en2 && sudo ifconfig bridge0 deletem en3" in remedy


def test_wifi_in_the_subnet_of_a_cable_is_told_and_so_is_a_self_assigned_address() -> None:
    found = said(mac(BRIDGED))
    assert "en0 (192.168.1.20/24) and en1 (192.168.1.31/24) overlap" in found["subnet_overlap"][1]
    assert "bridge0 has 169.254.77.3" in found["self_assigned"][1]
    assert said(mac(PER_PORT)) == {}


def test_two_cables_in_one_subnet_are_no_overlap_with_wifi() -> None:
    wired = PORTS.replace("Hardware Port: Wi-Fi", "Hardware Port: Ethernet Adapter (en1)")
    networks = networks_macos.parsed(BRIDGED, wired, ROUTE, "", "")
    assert "subnet_overlap" not in said(networks)


def test_a_default_route_through_a_thunderbolt_cable_is_told() -> None:
    verdict, found, remedy = said(mac(route=ROUTE.replace("en0", "en2")))["default_route"]
    assert verdict is Verdict.WARNING
    assert "en2, a cable to another device" in found
    assert "en2" in remedy


def test_no_command_answers() -> None:
    networks = networks_macos.parsed("", "", "", "", "")
    assert (addresses(networks), findings(networks), networks.was_read) == ([], [], False)


# -- RDMA -----------------------------------------------------------------------------------------


def test_rdma_that_is_enabled_without_a_device_is_thunderbolt_4() -> None:
    networks = mac(rdma="enabled\n")
    verdict, found, _ = said(networks)["rdma"]
    assert (verdict, rdma_state(networks)) == (Verdict.OK, "")
    assert "Thunderbolt 4" in found


def test_rdma_that_is_off_is_nothing_to_tell() -> None:
    assert "rdma" not in said(mac(rdma="disabled\n"))


def test_ports_that_are_down_say_why() -> None:
    down = DEVINFO.format(en2="PORT_DOWN")
    networks = mac(BRIDGED, rdma="enabled", devinfo=down)
    verdict, found, remedy = said(networks)["rdma"]
    assert (verdict, rdma_state(networks)) == (Verdict.WARNING, "down")
    assert "rdma_en2 is DOWN, rdma_en3 is DOWN" in found
    assert "take en2 out of bridge0" in remedy
    _, _, remedy = said(mac(rdma="enabled", devinfo=down))["rdma"]
    assert "Thunderbolt 5 cable" in remedy


def test_an_active_port_marks_the_address_that_it_has() -> None:
    networks = mac(rdma="enabled", devinfo=DEVINFO.format(en2="PORT_ACTIVE"))
    verdict, found, _ = said(networks)["rdma"]
    assert (verdict, rdma_state(networks)) == (Verdict.OK, "active")
    assert found == "active: rdma_en2; without a peer: rdma_en3"
    assert [each.address for each in addresses(networks) if each.has_rdma] == ["10.77.1.1"]


def test_linux_tells_the_state_of_every_rdma_port(tmp_path: Path) -> None:
    for device, state, netdev in (("mlx5_0", "4: ACTIVE", "enp1s0"), ("mlx5_1", "1: DOWN", "")):
        port = tmp_path / device / "ports" / "1"
        (port / "gid_attrs" / "ndevs").mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        if netdev:
            (port / "gid_attrs" / "ndevs" / "0").write_text(f"{netdev}\n")
    assert networks_linux.rdma_ports(tmp_path) == [
        RdmaPort("mlx5_0", "active", "enp1s0"),
        RdmaPort("mlx5_1", "down", ""),
    ]
    assert networks_linux.rdma_ports(tmp_path / "none") == []


def test_an_engine_tells_by_its_library_whether_it_has_rdma(tmp_path: Path) -> None:
    program, library = tmp_path / "bin" / "ggml-rpc-server", tmp_path / "lib" / "libggml-rpc.so"
    assert has_rdma(str(program)) is None
    for file in (program, library):
        file.parent.mkdir()
        file.write_bytes(b"\x7fELF nothing of it")
    assert has_rdma(str(program)) is None
    library.write_bytes(b"\0" * 9000 + b"GGML_RPC_DEBUG\0  transport      : TCP\n")
    assert has_rdma(str(program)) is False
    library.write_bytes(b"GGML_RPC_DEBUG\0  transport : TCP (RDMA auto-negotiate enabled)\n")
    assert has_rdma(str(program)) is True


# -- Linux ----------------------------------------------------------------------------------------


class Sys:
    """A tree like ``/sys/class/net``."""

    def __init__(self, root: Path) -> None:
        self.net = root / "class" / "net"
        self.root = root
        self.net.mkdir(parents=True)

    def add(self, name: str, *, state: str = "up", device: str = "", driver: str = "") -> Path:
        folder = self.net / name
        folder.mkdir()
        (folder / "operstate").write_text(f"{state}\n")
        (folder / "type").write_text("1\n")
        if device:
            where = self.root / "devices" / device
            where.mkdir(parents=True)
            (folder / "device").symlink_to(where)
            if driver:
                drivers = self.root / "drivers" / driver
                drivers.mkdir(parents=True)
                (where / "driver").symlink_to(drivers)
        return folder


def test_the_kinds_of_linux_interfaces(tmp_path: Path) -> None:
    sys = Sys(tmp_path)
    sys.add("lo", state="unknown")
    (sys.add("enp3s0", device="pci0/net") / "speed").write_text("2500\n")
    (sys.add("wlp2s0", device="pci1/net") / "phy80211").mkdir()
    sys.add("enxaabb", device="pci2/usb1/1-2/net")
    sys.add("tb", device="pci3/domain0/0-1", driver="thunderbolt-net")
    (sys.add("tailscale0", state="unknown") / "tun_flags").write_text("0x1001\n")
    (sys.add("office", state="unknown") / "uevent").write_text("DEVTYPE=wireguard\n")
    (sys.add("wwan0") / "uevent").write_text("DEVTYPE=wwan\n")
    names = ["lo", "enp3s0", "wlp2s0", "enxaabb", "tb", "tailscale0", "office", "wwan0"]
    found = networks_linux.interfaces(
        sys.net, {name: [(f"10.0.{n}.1", 24)] for n, name in enumerate(names)}
    )
    assert [(each.name, each.kind) for each in found] == [
        ("lo", "loopback"),
        ("enp3s0", "ethernet"),
        ("wlp2s0", "wifi"),
        ("enxaabb", "usb"),
        ("tb", "thunderbolt"),
        ("tailscale0", "vpn"),
        ("office", "vpn"),
        ("wwan0", "cellular"),
    ]
    assert found[1].speed_mbit_per_s == 2500


def test_where_nobody_may_look_the_name_has_to_do(tmp_path: Path) -> None:
    forbidden = tmp_path / ("x" * 300)  # asking for it is an error, as on Android
    assert networks_linux.kind_of(forbidden, "wlan0") == "wifi"
    assert networks_linux.kind_of(forbidden, "rmnet_data0") == "cellular"
    assert networks_linux.kind_of(forbidden, "eth0") == ""


def test_bridges_of_containers_and_interfaces_that_are_down_are_left_out(tmp_path: Path) -> None:
    sys = Sys(tmp_path)
    sys.add("enp3s0", device="pci0/net")
    sys.add("eth9", state="down", device="pci9/net")
    for name, members in (("docker0", []), ("br0", ["enp3s0"]), ("mine", ["veth0"])):
        folder = sys.add(name)
        (folder / "bridge").mkdir()
        (folder / "brif").mkdir()
        for member in members:
            (folder / "brif" / member).touch()
    sys.add("veth0")
    names = ["eth9", "docker0", "br0", "mine"]
    found = networks_linux.interfaces(
        sys.net, {name: [(f"10.0.{n}.1", 24)] for n, name in enumerate(names)}
    )
    networks = Networks("linux", tuple(found))
    assert [each.interface for each in addresses(networks)] == ["br0"]


def test_the_default_route_is_the_one_with_the_smallest_metric(tmp_path: Path) -> None:
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    table = tmp_path / "route"
    table.write_text(
        head
        + "wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
        + "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        + "eth1\t00000000\t0101A8C0\t0000\t0\t0\t1\t00000000\t0\t0\t0\n"
        + "eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
    )
    assert networks_linux.default_route(table) == "eth0"
    assert networks_linux.default_route(tmp_path / "forbidden") == ""


def test_what_ip_prints_is_understood_or_nothing() -> None:
    text = (
        '[{"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},'
        '{"ifname":"eth0","addr_info":[{"family":"inet","local":"10.1.2.3","prefixlen":24},{}]}]'
    )
    assert networks_linux.from_ip(text) == {"lo": [("127.0.0.1", 8)], "eth0": [("10.1.2.3", 24)]}
    for wrong in ("", "Cannot bind netlink socket", "[1]", '[{"ifname": "x"}]'):
        assert networks_linux.from_ip(wrong) == {}


def test_every_way_to_read_addresses_of_this_host_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    def ipv4(found: networks_linux.Addresses) -> set[tuple[str, str]]:
        return {(n, a) for n, each in found.items() for a, _ in each if ":" not in a}

    with_psutil = networks_linux.read_addresses()
    monkeypatch.setattr(networks_linux, "psutil", None)
    with_ip = networks_linux.read_addresses()
    monkeypatch.setattr(networks_linux, "_ip_output", lambda: "")
    assert ipv4(networks_linux.read_addresses()) <= ipv4(with_ip)
    assert ("lo", "127.0.0.1") in ipv4(with_psutil) & ipv4(networks_linux.read_addresses())
