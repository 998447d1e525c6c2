"""What can be read of a firewall without being root. It never blocks: reaching decides that."""

import asyncio
import re
import shutil
from collections.abc import Mapping
from typing import Final

from agents.contract import AGENT_PORT, JOIN_PORT, LINK_PORT, Finding
from agents.doctor import reading
from agents.doctor.findings import blocks, ok, unknown, warning
from agents.doctor.reading import Output
from agents.doctor.subject import Subject

MACOS_PROGRAM: Final = "/usr/libexec/ApplicationFirewall/socketfilterfw"
_OPEN_THEM: Final = "let TCP ports {ports} in from your own network"
_FORBIDDEN: Final = (
    "need to be root",
    "must be root",
    "ermission denied",
    "not permitted",
    "Authorization failed",
)
LINUX_COMMANDS: Final[Mapping[str, tuple[str, ...]]] = {
    "ufw": ("ufw", "status"),
    "firewalld": ("firewall-cmd", "--list-all"),
    "nft": ("nft", "list", "ruleset"),
    "iptables": ("iptables", "-S", "INPUT"),
}


def macos(said: Output) -> Finding:
    """``socketfilterfw --getglobalstate``."""
    match = re.search(r"State = (\d)", said.text)
    if match is None:
        return unknown("firewall", said.problem or f"socketfilterfw said: {said.text.strip()[:80]}")
    if match[1] == "0":
        return ok("firewall", "the application firewall is off")
    settings = "System Settings > Network > Firewall"
    if match[1] == "2":
        return blocks(
            "firewall",
            "the application firewall blocks all incoming connections",
            f"{settings} > Options: switch off 'Block all incoming connections'",
        )
    return warning(
        "firewall",
        "the application firewall is on and asks for each program",
        f"{settings} > Options: allow incoming connections for Python",
    )


def linux(outputs: Mapping[str, Output], ports: tuple[int, ...]) -> Finding:
    """What the tools of Linux said, by the names in ``LINUX_COMMANDS``."""
    there = {name: said for name, said in outputs.items() if not said.is_missing}
    if not there:
        return ok("firewall", "no firewall program is installed")
    remedy = _OPEN_THEM.format(ports=" and ".join(map(str, ports)))
    read = {name: said for name, said in there.items() if _is_read(said)}
    for name, said in read.items():
        if _closes(name, said.text, ports):
            return warning("firewall", f"{name} drops what it does not know", remedy)
    # nft shows every rule there is; ufw and firewalld know their own.
    if read and (set(read) & {"nft", "ufw", "firewalld"} or len(read) == len(there)):
        return ok("firewall", f"{' and '.join(read)} let ports {_numbers(ports)} in")
    names = ", ".join(there)
    return unknown("firewall", f"only root may read it ({names})", f"if in doubt, {remedy}")


def _is_read(said: Output) -> bool:
    return said.status is not None and not any(mark in said.text for mark in _FORBIDDEN)


def _closes(name: str, text: str, ports: tuple[int, ...]) -> bool:
    """Whether a tool's rules keep out what they do not name, and do not name these ports."""
    is_named = all(re.search(rf"\b{port}\b", text) for port in ports)
    is_strict = {
        "ufw": "Status: active" in text,
        "firewalld": "target:" in text and "target: ACCEPT" not in text,
        "nft": bool(re.search(r"hook input[^}]*policy drop", text)),
        "iptables": "-P INPUT DROP" in text,
    }[name]
    return is_strict and not is_named


def _numbers(ports: tuple[int, ...]) -> str:
    return " and ".join(map(str, ports))


async def check_firewall(subject: Subject) -> list[Finding]:
    if subject.platform == "android":
        return [ok("firewall", "Android has none for programs under Termux")]
    if subject.platform == "macos":
        program = shutil.which("socketfilterfw") or MACOS_PROGRAM
        return [macos(await reading.command(program, "--getglobalstate"))]
    said = await asyncio.gather(*(reading.command(*argv) for argv in LINUX_COMMANDS.values()))
    outputs = dict(zip(LINUX_COMMANDS, said, strict=True))
    usual = (JOIN_PORT,) if subject.is_main_host else (AGENT_PORT, LINK_PORT)
    return [linux(outputs, subject.agent_ports or usual)]
