"""Proof that a fresh rpc-server answers, or the reason why it does not."""

import asyncio
from dataclasses import dataclass

from agents import logfile, ports, process
from agents.errors import RpcServerExited, RpcServerSilent, WorkerTaken
from agents.rpc_protocol import DeviceMemory, Outcome, ProbeResult, probe

_PROBE_DEADLINE_S = 2.0
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Proof:
    """The version that a fresh rpc-server speaks, or an error."""

    rpc_protocol: str = ""
    devices: tuple[DeviceMemory, ...] = ()
    error_code: str = ""
    detail: str = ""


async def prove(child: process.Child, host: str, port: int, deadline_s: float) -> Proof:
    """Probe our own fresh server until it answers, ends, or ``deadline_s`` seconds have passed."""
    probing = asyncio.create_task(_probe_until_answer(host, port))
    exiting = asyncio.create_task(child.wait())
    try:
        await asyncio.wait(
            {probing, exiting}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
        )
        # The exit is looked at first: an answer could come from a stranger on that port.
        if child.exit_status is not None:
            return Proof(error_code=RpcServerExited.code, detail=exit_text(child))
        if not probing.done():
            return _silence(child, host, port, deadline_s)
        return _judged(probing.result(), f"{host}:{port}")
    finally:
        probing.cancel()
        exiting.cancel()
        await asyncio.gather(probing, exiting, return_exceptions=True)


def exit_text(child: process.Child) -> str:
    """How a child ended, with its last line."""
    last = next((line for line in reversed(logfile.tail(child.log_path)) if line.strip()), "")
    said = f"; its last line was: {last.strip()}" if last else "; it printed nothing"
    return f"rpc-server (pid {child.pid}) {process.describe_exit(child.exit_status)}{said}"


def _judged(result: ProbeResult, endpoint: str) -> Proof:
    if result.outcome is Outcome.READY:
        return Proof(str(result.triple or ""), result.devices)
    return Proof(error_code=RpcServerSilent.code, detail=f"{endpoint}: {result.detail}")


def _silence(child: process.Child, host: str, port: int, deadline_s: float) -> Proof:
    silent = f"rpc-server (pid {child.pid}) did not answer HELLO on {host}:{port} in {deadline_s:g}"
    others = ports.clients_of(port)
    if not others:
        return Proof(error_code=RpcServerSilent.code, detail=f"{silent} s; see its log")
    return Proof(
        error_code=WorkerTaken.code,
        detail=f"{silent} s: it serves one client at a time, and {', '.join(others)} is connected "
        "to it; close that program (another llama-server, or a port probe)",
    )


async def _probe_until_answer(host: str, port: int) -> ProbeResult:
    """The caller sets the deadline."""
    pause_s = _FIRST_PAUSE_S
    while True:
        result = await probe(host, port, deadline_s=_PROBE_DEADLINE_S, asks_sizes=True)
        if result.outcome not in (Outcome.REFUSED, Outcome.BUSY, Outcome.UNREACHABLE):
            return result
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.3, _LONGEST_PAUSE_S)
