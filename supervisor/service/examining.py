"""Gathers what can be seen of a launch that ended or is stuck, for the diagnosis."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agents.contract import RpcServerStatus, WorkerState
from agents.errors import ProjectError
from agents.logfile import tail
from agents.process import Running, state_letter
from supervisor.core.entities import AgentId, Device, LaunchRecord
from supervisor.core.evidence import Evidence, WorkerEvidence
from supervisor.errors import (
    AgentRefused,
    AgentUnreachable,
    DeviceUnknown,
    LinkProcessEnded,
)
from supervisor.link.job import LOST, LinkStats
from supervisor.ports import Links
from supervisor.service.tools import Tools
from supervisor.service.workers import Workers

_LAST_WORDS_S: Final = 0.5
"""llama-server may be seen to end a moment before the link that cut it off says why."""
_ASK_S: Final = 1.0
_ASK_AGAIN_S: Final = 0.3
"""An agent may hear of the end of its rpc-server a moment after llama-server does."""
_LOG_LINES: Final = 80


@dataclass(frozen=True, slots=True)
class Launched:
    """What there is of a launch; any part may not exist yet, or not any more."""

    record: LaunchRecord | None
    process: Running | None
    links: Links | None
    workers: Workers | None
    oom_kills: int | None = None
    """That the main host's kernel counts since llama-server started."""


async def examine(
    tools: Tools, launched: Launched, phase: str, found: ProjectError | None, *, was_ready: bool
) -> Evidence:
    """All evidence of a launch, within about two seconds, before anything of it is stopped."""
    links = launched.links
    if links is not None:
        await _last_words(links)
        found = found or _end_of_links(links)
    stats = links.stats() if links is not None else {}
    workers = await _workers(tools, launched, stats)
    if found is None and not any(_is_telling(worker) for worker in workers):
        await asyncio.sleep(_ASK_AGAIN_S)
        workers = await _workers(tools, launched, stats)
    process = launched.process
    log_tail = await asyncio.to_thread(tail, process.log_path, _LOG_LINES) if process else ()
    engine = tools.main_host.engine
    return Evidence(
        phase=phase,
        found=found,
        exit_status=process.exit_status if process else None,
        log_tail=tuple(log_tail),
        process_state=state_letter(process.pid) if process and process.is_alive else "",
        host_oom_kills=launched.oom_kills,
        host_available_bytes=tools.host_available_bytes(),
        rpc_protocol=engine.rpc_protocol if engine else "",
        engine_build=engine.build if engine else "",
        workers=workers,
        was_ready=was_ready,
        template_file=_value_of(launched.record, "--chat-template-file"),
    )


def _value_of(record: LaunchRecord | None, flag: str) -> str:
    argv = record.argv if record else ()
    return argv[argv.index(flag) + 1] if flag in argv else ""


def _end_of_links(links: Links) -> ProjectError | None:
    """llama-server dies with the process that holds its links, and may be seen to do so first."""
    try:
        links.raise_if_lost()
    except LinkProcessEnded as exc:
        return exc
    except ProjectError:
        pass  # a link; its worker's evidence tells more
    return None


async def _last_words(links: Links) -> None:
    deadline_s = time.monotonic() + _LAST_WORDS_S
    while links.is_alive and (left_s := deadline_s - time.monotonic()) > 0:
        if any(stats.state == LOST or stats.detail for stats in links.stats().values()):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await links.changed()


def _is_telling(worker: WorkerEvidence) -> bool:
    """Whether a worker, or its link, says itself that something went wrong with it."""
    has_ended = worker.status is not None and worker.status.state is WorkerState.FAILED
    return has_ended or not worker.is_reachable or worker.link_state == LOST


async def _workers(
    tools: Tools, launched: Launched, stats: Mapping[AgentId, LinkStats]
) -> tuple[WorkerEvidence, ...]:
    if launched.workers is None:
        return ()
    workers = launched.workers
    asked = await asyncio.gather(*(_worker(tools, workers, a, stats.get(a)) for a in workers.ids))
    return tuple(worker for worker in asked if worker is not None)


async def _worker(
    tools: Tools, workers: Workers, agent_id: AgentId, link: LinkStats | None
) -> WorkerEvidence | None:
    try:
        device = tools.registry.device(agent_id)
    except DeviceUnknown:
        return None
    said, is_reachable = await _asked(tools, agent_id)
    status = said or device.rpc_server
    is_ours = status is not None and status.generation == workers.launch_id
    log_tail = await _log_tail(tools, agent_id) if is_reachable and is_ours else ()
    link = link or LinkStats(agent_id, state="")
    facts = device.facts
    engine = facts.engine if facts else None
    return WorkerEvidence(
        agent_id=agent_id,
        name=device.name,
        platform=facts.platform if facts else "",
        endpoint=workers.endpoint(agent_id),
        is_reachable=is_reachable,
        silent_s=device.silent_s,
        restarted=_began_anew(workers, device, said),
        status=status if is_ours else None,
        log_tail=log_tail,
        link_state=link.state,
        link_code=link.error_code,
        link_detail=link.detail,
        link_phase=link.phase,
        last_command=link.last_command,
        waiting_s=link.waiting_s,
        round_trip_s=link.round_trip_s,
        rpc_protocol=link.rpc_protocol or (engine.rpc_protocol if engine else ""),
        engine_build=engine.build if engine else "",
        temperature_c=facts.temperature_c if facts else None,
        battery_percent=facts.battery_percent if facts else None,
        available_bytes=facts.memory_available_bytes if facts else None,
    )


async def _asked(tools: Tools, agent_id: AgentId) -> tuple[RpcServerStatus | None, bool]:
    """The agent's word now, and whether it answered."""
    try:
        async with asyncio.timeout(_ASK_S):
            return await tools.registry.agent(agent_id).rpc_server(), True
    except AgentRefused:
        return None, True
    except (AgentUnreachable, DeviceUnknown, TimeoutError):
        return None, False


async def _log_tail(tools: Tools, agent_id: AgentId) -> tuple[str, ...]:
    try:
        async with asyncio.timeout(_ASK_S):
            answer = await tools.registry.agent(agent_id).log(-1)
    except (AgentUnreachable, AgentRefused, DeviceUnknown, TimeoutError):
        return ()
    return tuple(str(answer.get("text", "")).splitlines()[-_LOG_LINES:])


def _began_anew(workers: Workers, device: Device, said: RpcServerStatus | None) -> bool:
    """An agent that was restarted knows nothing of the launch."""
    if said is not None and said.generation < workers.launch_id:
        return True
    before = workers.agent_starts.get(device.id, "")
    return bool(before and device.facts and device.facts.agent_start not in ("", before))
