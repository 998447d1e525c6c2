"""What a device's own checks make of programs and networks, with recorded outputs."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from agents.contract import EngineFacts, Finding, Verdict
from agents.doctor import (
    firewall,
    macos,
    network,
    programs,
    sockets,
)
from agents.doctor.network import PortState, Reached
from agents.doctor.reading import Output
from agents.errors import EngineUnusable, EngineWithoutRpc

OK, WARNS, BLOCKS, UNKNOWN = Verdict.OK, Verdict.WARNING, Verdict.BLOCKS, Verdict.UNKNOWN
MISSING = Output(problem="dumpsys is not installed")
HUNG = Output(problem="pmset did not answer within 5 s")


def is_(finding: Finding | None, verdict: Verdict, *words: str) -> None:
    """Whether a finding has this verdict and these words; what is not well says what to do."""
    assert finding is not None
    assert finding.verdict is verdict, finding
    for word in words:
        assert word in f"{finding.found} {finding.remedy}", finding
    if verdict in (WARNS, BLOCKS):
        assert finding.remedy


# -- programs ----------------------------------------------------------------------------------


def test_python() -> None:
    is_(programs.python((3, 14, 6), has_psutil=False, platform="android"), OK, "3.14.6")
    is_(programs.python((3, 10, 1), has_psutil=True, platform="android"), BLOCKS, "pkg upgrade")
    is_(programs.python((3, 12, 0), has_psutil=False, platform="macos"), WARNS, "psutil")


def test_agent() -> None:
    is_(programs.agent("1.0", runs=True, has_joined=True, platform="linux"), OK)
    is_(programs.agent("1.0", runs=False, has_joined=False, platform="linux"), WARNS, "invite")
    is_(programs.agent("1.0", runs=False, has_joined=True, platform="android"), WARNS, "boot")


def test_data_folder() -> None:
    folder = Path("/data/agent")
    is_(programs.data_folder(folder, "", exists=True), OK, "can be written")
    is_(programs.data_folder(folder, "", exists=False), OK, "can be made")
    is_(programs.data_folder(folder, "Permission denied", exists=True), BLOCKS, "chown")


ENGINE = EngineFacts("/opt/llama", "setting", rpc_server="/opt/llama/ggml-rpc-server")


@pytest.mark.parametrize(
    ("problem", "code", "words"),
    [
        (
            "/opt/llama/llama-server cannot be run here: Exec format error",
            EngineUnusable.code,
            "another kind of processor",
        ),
        (
            "llama-server --version failed (status 127): llama-server: error while loading shared "
            "libraries: libgomp.so.1: cannot open shared object file: No such file or directory",
            EngineUnusable.code,
            "the library libgomp.so.1 is missing",
        ),
        (
            'llama-server --version failed (status 1): CANNOT LINK EXECUTABLE "llama-server": '
            'library "libc++_shared.so" not found: needed by main executable',
            EngineUnusable.code,
            "the library libc++_shared.so is missing",
        ),
        (
            "llama-server --version failed (status -6): dyld[812]: Library not loaded: "
            "@rpath/libggml.dylib",
            EngineUnusable.code,
            "the library @rpath/libggml.dylib is missing",
        ),
        (
            "/opt/llama/llama-server cannot be run here: No such file or directory",
            EngineUnusable.code,
            "another C library",
        ),
        ("it was built without RPC", EngineWithoutRpc.code, "built without RPC"),
    ],
)
def test_what_is_wrong_with_an_engine_is_said_in_words(problem: str, code: str, words: str) -> None:
    found, remedy = programs.engine_problem(replace(ENGINE, problem=problem, problem_code=code))
    assert words in found
    assert "engine install" in remedy


def test_homebrew_and_quarantine_are_named() -> None:
    brewed = replace(
        ENGINE,
        folder="/opt/homebrew/opt/llama.cpp/bin",
        problem="no ggml-rpc-server",
        problem_code=EngineWithoutRpc.code,
    )
    assert "Homebrew" in programs.engine_problem(brewed)[0]
    found, remedy = programs.engine_problem(
        replace(ENGINE, problem="killed"), "/opt/llama/llama-server"
    )
    assert "quarantine" in found
    assert remedy == "xattr -dr com.apple.quarantine /opt/llama"


# -- network -----------------------------------------------------------------------------------


def test_agent_ports() -> None:
    free = PortState(8102, "the agent's REST API", is_free=True)
    ours = PortState(8103, "the link", is_free=False, is_ours=True)
    taken = PortState(8103, "the link", is_free=False, holder="nc (pid 7)")
    is_(network.agent_ports([free, ours]), OK, "8102 is free", "8103 is our own")
    is_(network.agent_ports([free, taken]), WARNS, "nc (pid 7)")


def test_rpc_ports() -> None:
    is_(network.rpc_ports(1, 90, 8110, 8199), OK)
    is_(network.rpc_ports(0, 90, 8110, 8199), BLOCKS, "8110 to 8199")


GOOD = Reached("10.0.0.1:8101", is_trusted=True, round_trip_s=0.004, skew_s=0.2)


def test_main_host() -> None:
    refused = Reached("10.0.0.9:8101", "Connection refused", 111)
    stranger = Reached("10.0.0.9:8101", "its certificate is refused: self-signed certificate")
    is_(network.main_host([], has_joined=False), UNKNOWN, "invite")
    is_(network.main_host([refused, GOOD], has_joined=True), OK, "pinned")
    is_(network.main_host([GOOD], has_joined=False), OK, "not checked")
    is_(network.main_host([refused], has_joined=True), BLOCKS, "refused", "supervisor up")
    is_(network.main_host([stranger], has_joined=True), BLOCKS, "clock", "join again")


def test_round_trip() -> None:
    is_(network.round_trip(None, "linux"), UNKNOWN)
    is_(network.round_trip(0.0199, "android"), OK, "19.9 ms")
    is_(network.round_trip(0.328, "android"), WARNS, "328.0 ms", "screen on")
    is_(network.round_trip(0.0201, "linux"), WARNS, "cable")


def test_clock() -> None:
    is_(network.clock(None), UNKNOWN)
    is_(network.clock(-0.9), OK, "agrees")
    is_(network.clock(29), OK, "29 s ahead")
    is_(network.clock(-31), WARNS, "31 s behind", "automatic")


def test_local_network() -> None:
    judge = macos.local_network
    is_(judge(is_blocked=False, gateway="", was_tried=False), UNKNOWN)
    is_(judge(is_blocked=False, gateway="", was_tried=True), OK)
    is_(judge(is_blocked=True, gateway="", was_tried=True), WARNS, "network itself")
    blocked = judge(is_blocked=True, gateway="192.168.1.1", was_tried=True)
    is_(blocked, BLOCKS, "errno 65", "192.168.1.1", "LaunchDaemon")


# A listener on 8102 and an open connection of it, as Linux shows them.
PROC_NET_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1FA6 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 41973 1 0
   1: 0100007F:1FA6 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 55555 1 0
   2: 0100007F:1FA7 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 41999 1 0
"""


def test_the_holder_of_a_port_is_read_from_both_platforms() -> None:
    assert sockets.listening_inodes(PROC_NET_TCP, 8102) == {"41973"}
    assert sockets.listening_inodes(PROC_NET_TCP, 8104) == set()
    assert sockets.named_by_lsof("p4711\ncpython3.11\nf5\n") == "python3.11 (pid 4711)"
    assert sockets.named_by_lsof("") == ""


# -- firewall ----------------------------------------------------------------------------------

NFT_DROPS = """\
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		tcp dport 22 accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
"""
NFT_ACCEPTS = NFT_DROPS.replace(
    "input priority filter; policy drop", "input priority 0; policy accept"
)
NFT_NAMES = NFT_DROPS.replace("tcp dport 22", "tcp dport { 22, 8102, 8103 }")
UFW = """\
Status: active

To                         Action      From
--                         ------      ----
22/tcp                     ALLOW       Anywhere
"""
FIREWALLD = """\
public (default, active)
  target: default
  interfaces: wlp1s0
  services: dhcpv6-client ssh
  ports:
"""
NO_ROOT = Output("Operation not permitted (you must be root)\n", 1)
NONE = {
    name: Output(problem=f"{argv[0]} is not installed")
    for name, argv in firewall.LINUX_COMMANDS.items()
}


@pytest.mark.parametrize(
    ("outputs", "verdict", "word"),
    [
        ({}, OK, "no firewall program"),
        ({"nft": NO_ROOT}, UNKNOWN, "root"),
        (
            {"nft": NO_ROOT, "iptables": Output("Permission denied (you must be root)", 4)},
            UNKNOWN,
            "",
        ),
        ({"nft": Output(problem="nft did not answer within 5 s")}, UNKNOWN, ""),
        ({"nft": Output(NFT_DROPS, 0)}, WARNS, "8102 and 8103"),
        ({"nft": Output(NFT_NAMES, 0)}, OK, "8102"),
        ({"nft": Output(NFT_ACCEPTS, 0)}, OK, ""),
        ({"ufw": Output(UFW, 0)}, WARNS, "ufw"),
        ({"ufw": Output(UFW + "8102,8103/tcp ALLOW Anywhere\n", 0)}, OK, "ufw"),
        ({"ufw": Output("Status: inactive\n", 0)}, OK, ""),
        ({"firewalld": Output(FIREWALLD, 0)}, WARNS, "firewalld"),
        ({"firewalld": Output("FirewallD is not running\n", 252)}, OK, ""),
        ({"firewalld": Output("Authorization failed.\n", 253)}, UNKNOWN, ""),
        (
            {"iptables": Output("-P INPUT DROP\n-A INPUT -p tcp --dport 22 -j ACCEPT\n", 0)},
            WARNS,
            "",
        ),
        ({"iptables": Output("-P INPUT ACCEPT\n", 0)}, OK, ""),
    ],
)
def test_firewall_of_linux(outputs: dict[str, Output], verdict: Verdict, word: str) -> None:
    is_(firewall.linux(NONE | outputs, (8102, 8103)), verdict, word)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (Output("Firewall is disabled. (State = 0) \n", 0), OK),
        (Output("Firewall is enabled. (State = 1) \n", 0), WARNS),
        (
            Output("Firewall is blocking all non-essential incoming connections. (State = 2)\n", 0),
            BLOCKS,
        ),
        (HUNG, UNKNOWN),
        (Output("usage: socketfilterfw\n", 1), UNKNOWN),
    ],
)
def test_firewall_of_macos(said: Output, verdict: Verdict) -> None:
    is_(firewall.macos(said), verdict)


def test_a_lock_tells_whether_an_agent_runs(tmp_path: Path) -> None:
    import fcntl

    lock = tmp_path / "agent.lock"
    assert not programs.is_held(lock)
    with lock.open("a") as file:
        assert not programs.is_held(lock)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert programs.is_held(lock)
    assert not programs.is_held(lock)
    assert os.listdir(tmp_path) == ["agent.lock"]
