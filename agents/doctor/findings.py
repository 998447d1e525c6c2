"""The checks by name, and findings in short."""

from typing import Final

from agents.contract import Finding, Verdict

TITLES: Final = {
    "python": "Python",
    "agent": "Agent",
    "data_folder": "Data folder",
    "engine": "Engine",
    "agent_ports": "Ports of the agent",
    "rpc_ports": "Ports of engines",
    "firewall": "Firewall",
    "main_host": "Way to the main host",
    "round_trip": "Round trip",
    "local_network": "Local Network privacy",
    "clock": "Clock",
    "wires": "Networks",
    "memory": "Memory",
    "swap": "Swap",
    "gpu_memory": "Memory of the GPU",
    "disk": "Disk",
    "battery": "Battery",
    "sleep": "Sleep",
    "lid": "Lid",
    "phantom_processes": "Phantom processes",
    "wake_lock": "Wake lock",
    "battery_exemption": "Battery exemption",
    "termux_origin": "Termux",
    "termux_api": "Termux:API",
    "termux_boot": "Termux:Boot",
    "launch_item": "Start at boot",
    "linger": "Start at boot",
    "service_memory": "Memory of the service",
    "wsl": "WSL",
}
"""Of every check in this package, in the order in which people read them."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, TITLES[check], Verdict.OK, found)


def warning(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, TITLES[check], Verdict.WARNING, found, remedy)


def blocks(check: str, found: str, remedy: str) -> Finding:
    return Finding(check, TITLES[check], Verdict.BLOCKS, found, remedy)


def unknown(check: str, why: str, remedy: str = "") -> Finding:
    return Finding(check, TITLES[check], Verdict.UNKNOWN, why, remedy)


def gib(count_bytes: float) -> str:
    """``3.1 GiB``, or ``512 MiB`` below one."""
    if count_bytes < 1 << 30:
        return f"{count_bytes / (1 << 20):.0f} MiB"
    return f"{count_bytes / (1 << 30):.1f} GiB"
