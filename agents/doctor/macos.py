"""Checks of what macOS does to programs that nobody started by hand."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agents import facts
from agents.contract import Finding
from agents.doctor import reading
from agents.doctor.findings import blocks, gib, ok, unknown, warning
from agents.doctor.reading import Output
from agents.doctor.subject import Subject

DAEMONS: Final = Path("/Library/LaunchDaemons")
_OURS: Final = re.compile(r"agent\.pyz|llama-rpc-supervisor|<string>supervisor</string>")
_TOO_MUCH: Final = 0.9
"""Of all memory; macOS itself stops when the rest is too little."""
_MIB: Final = 1 << 20


def local_network(*, is_blocked: bool, gateway: str, was_tried: bool) -> Finding:
    """Whether macOS keeps us from this network, as it does with what launchd starts for a user.

    Args:
        is_blocked: Connecting to the main host failed with errno 65, "No route to host".
        gateway: The router, if Apple's own programs reach it; empty: they do not either.
        was_tried: There was a main host to connect to.
    """
    if not was_tried:
        return unknown("local_network", "shows only when a main host is connected to")
    if not is_blocked:
        return ok("local_network", "this program is let into the local network")
    if not gateway:
        return warning(
            "local_network",
            "no route to the main host, nor to the router: this looks like the network itself",
            "check cable or Wi-Fi",
        )
    return blocks(
        "local_network",
        f"errno 65 (no route) to the main host while {gateway} answers: macOS keeps this program "
        "from the local network",
        "System Settings > Privacy & Security > Local Network: allow it; or run it as a "
        "LaunchDaemon ('agent.pyz service install'), from Terminal, or over SSH",
    )


# -- launchd -----------------------------------------------------------------------------------


def launch_item(agents: Iterable[Path], daemons: Iterable[Path]) -> Finding:
    """How it starts with the Mac: launchd's agents are kept from the local network, daemons not."""
    as_agent, as_daemon = sorted(agents), sorted(daemons)
    if as_daemon:
        return ok("launch_item", f"as a daemon: {as_daemon[0]}")
    install = "'agent.pyz service install' makes a LaunchDaemon"
    if as_agent:
        return warning(
            "launch_item",
            f"as a LaunchAgent ({as_agent[0]}), which macOS keeps from the local network, and "
            "which ends at logout",
            install,
        )
    return ok("launch_item", f"it does not start with the Mac; {install}")


async def check_launch_item(subject: Subject) -> list[Finding]:
    agents = _ours_in(subject.home / "Library" / "LaunchAgents")
    return [launch_item(agents, _ours_in(DAEMONS))]


def _ours_in(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.plist")) if folder.is_dir() else []
    return [file for file in files if _OURS.search(reading.text_of(file) or "")]


# -- memory of the GPU -------------------------------------------------------------------------


def gpu_memory(limit: Output, total_bytes: int, working_set_bytes: int = 0) -> Finding:
    """How much of the shared memory the GPU may hold.

    Args:
        limit: ``sysctl -n iogpu.wired_limit_mb``; 0 is macOS's own choice.
        total_bytes: Of this Mac.
        working_set_bytes: What Metal said through the engine; 0: not asked.
    """
    told = f"the GPU may hold {gib(working_set_bytes)}, " if working_set_bytes else ""
    if not limit.text.strip().isdigit():
        return unknown("gpu_memory", limit.problem or "sysctl knows no iogpu.wired_limit_mb")
    wired = int(limit.text) * _MIB
    if not wired:
        return ok(
            "gpu_memory",
            f"{told}macOS's own choice, two thirds to three quarters of all memory; "
            "'sudo sysctl iogpu.wired_limit_mb=N' raises it until the next boot",
        )
    said = f"{told}iogpu.wired_limit_mb is {wired // _MIB} ({gib(wired)})"
    if total_bytes and wired > _TOO_MUCH * total_bytes:
        return warning(
            "gpu_memory",
            f"{said}, nearly all of {gib(total_bytes)}: macOS itself may stop",
            f"sudo sysctl iogpu.wired_limit_mb={int(0.8 * total_bytes) // _MIB}",
        )
    return ok("gpu_memory", f"{said}; the next boot forgets it")


async def check_gpu_memory(subject: Subject) -> list[Finding]:
    limit = await reading.command("sysctl", "-n", "iogpu.wired_limit_mb")
    total = await reading.command("sysctl", "-n", "hw.memsize")
    total_bytes = int(total.text) if total.text.strip().isdigit() else facts.memory()[0]
    known = subject.facts.ggml_devices if subject.facts else []
    metal = max((d.total_bytes for d in known if not d.is_cpu), default=0)
    return [gpu_memory(limit, total_bytes, metal)]
