"""What was seen of a launch that ended or is stuck: the input of the diagnosis.

What is unknown is ``None`` or empty, never a guess.
"""

import sys
from dataclasses import dataclass
from typing import Final

from agents.contract import RpcServerStatus
from agents.errors import ProjectError

HERE: Final = "macos" if sys.platform == "darwin" else "linux"
"""Platform of the main host, whose signals and words llama-server gets."""


@dataclass(frozen=True, slots=True)
class WorkerEvidence:
    """One worker of a launch: what its agent, its log and its link say."""

    agent_id: str
    name: str
    platform: str = "linux"
    """``linux``, ``android`` or ``macos``."""
    endpoint: str = ""
    """``host:port`` as llama-server was given it; its log names a worker by this."""
    is_reachable: bool = True
    """Its agent answered just now."""
    silent_s: float = 0.0
    """Age of its agent's last word."""
    restarted: bool = False
    """Its agent began anew since the launch began."""
    status: RpcServerStatus | None = None
    """The agent's word on the rpc-server of this launch."""
    log_tail: tuple[str, ...] = ()
    """Last lines of that rpc-server."""
    link_state: str = ""
    """``connecting``, ``serving``, ``done`` or ``lost``; empty: no link."""
    link_code: str = ""
    link_detail: str = ""
    link_phase: str = ""
    last_command: str = ""
    waiting_s: float = 0.0
    """How long the oldest unanswered question waits."""
    round_trip_s: float | None = None
    rpc_protocol: str = ""
    engine_build: str = ""
    temperature_c: float | None = None
    battery_percent: float | None = None
    available_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """All of one launch."""

    phase: str
    found: ProjectError | None = None
    """What our own watching found; None: llama-server ended by itself."""
    exit_status: int | None = None
    """Of llama-server: negative for a signal; None: it runs, or nobody could see it end."""
    log_tail: tuple[str, ...] = ()
    """Last lines of llama-server."""
    process_state: str = ""
    """Of llama-server, as ``/proc/PID/stat`` has it: R, S, D, T, t, Z."""
    host_oom_kills: int | None = None
    """Processes that the main host's kernel killed for want of memory since the launch began."""
    host_available_bytes: int | None = None
    rpc_protocol: str = ""
    engine_build: str = ""
    workers: tuple[WorkerEvidence, ...] = ()
    was_ready: bool = False
    template_file: str = ""
    """The chat template that llama-server was given in place of the model's own."""
    platform: str = HERE
    """Of the main host."""
