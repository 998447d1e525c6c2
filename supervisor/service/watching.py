"""Watches a deployment that is ready: by evidence, never by ``/health`` alone.

Ends when llama-server ends, and raises what else is wrong. Nothing here touches an rpc port.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from agents import facts
from agents.contract import GgmlDevice, RpcServerStatus
from agents.errors import ProjectError
from agents.process import Running, state_letter
from supervisor.core import liveness, token_time
from supervisor.core.entities import AgentId, LaunchRecord, LinkView, Plan
from supervisor.core.pace import Slow
from supervisor.core.slots import SlotState, busy
from supervisor.core.step_time import expected
from supervisor.core.token_time import Reading, Span
from supervisor.core.worker_liveness import STOPPED, WorkerLook
from supervisor.errors import (
    EngineFrozen,
    EngineHung,
    EngineNotReady,
    LinkProcessFrozen,
    ModelReplaced,
    WorkerFrozen,
)
from supervisor.ports import Links, ServerClient
from supervisor.service import model_files
from supervisor.service.clock import timestamp
from supervisor.service.tools import Tools
from supervisor.service.workers import Workers

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_SPEED_EVERY_S: Final = 5.0
_LINKS_EVERY_S: Final = 2.0
_FILES_EVERY_S: Final = 2.0
_SLOTS_S: Final = 0.8
_AGAIN_S: Final = 0.3

Report = Callable[..., None]


class Watch:
    """One launch while it serves."""

    def __init__(
        self,
        tools: Tools,
        record: LaunchRecord,
        process: Running,
        client: ServerClient,
        links: Links | None,
        workers: Workers,
        report: Report,
        look: Callable[[], tuple[LinkView, ...]],
    ) -> None:
        """``report`` takes changes of the deployment; ``look`` says how the links are."""
        settings = tools.settings
        self._tools = tools
        self._record = record
        self._process = process
        self._client = client
        self._links = links
        self._workers = workers
        self._report = report
        self._look = look
        self._generated_tokens: int | None = None
        self._span: Span | None = None
        self._slow = ""
        self._due: dict[str, float] = {}
        self._on_cpu = _on_cpu(record.plan)
        self._expected = expected(record.plan)
        self._limits = liveness.Limits(
            settings.frozen_after_s, settings.hang_factor, settings.hang_least_s
        )
        self._liveness = liveness.begin(time.monotonic())

    @property
    def is_idle(self) -> bool:
        """No request runs, as llama-server said last."""
        return liveness.is_idle(self._liveness)

    async def until_ended(self) -> None:
        """Return when llama-server has ended.

        Raises:
            ProjectError: Something of the launch is lost, frozen, hung or replaced.
        """
        self._report(token_time=None)  # that of another launch
        exiting = asyncio.create_task(self._process.wait())
        looking = asyncio.create_task(self._look_after())
        try:
            while not exiting.done():
                self._raise_if_lost()
                if looking.done():
                    looking.result()
                await self._wait_for_news(exiting, looking)
        finally:
            for task in (exiting, looking):
                task.cancel()
            await asyncio.gather(exiting, looking, return_exceptions=True)

    async def _wait_for_news(self, *tasks: "asyncio.Task[Any]") -> None:
        """What needs no question is looked at whenever it changes."""
        news = [asyncio.create_task(self._tools.registry.wait_changed(_LOOK_EVERY_S))]
        if self._links is not None:
            news.append(asyncio.create_task(self._links.changed()))
        await asyncio.wait({*tasks, *news}, return_when=asyncio.FIRST_COMPLETED)
        for each in news:
            each.cancel()
        await asyncio.gather(*news, return_exceptions=True)

    def _raise_if_lost(self) -> None:
        """The link knows first, and why; the agent may still be reachable."""
        links = self._links
        if links is not None:
            links.raise_if_lost()
            is_silent = links.silent_s >= self._tools.settings.frozen_after_s
            if is_silent and state_letter(links.pid) in STOPPED:
                raise LinkProcessFrozen(
                    f"the link process {links.pid} is stopped (state T) and silent for "
                    f"{links.silent_s:.1f} s; who sent it SIGSTOP?"
                )
        self._workers.raise_if_lost()

    # -- what has to be asked --------------------------------------------------------------

    async def _look_after(self) -> None:
        """About once a second, until something is wrong."""
        while True:
            began_s = time.monotonic()
            await self._look_at_progress()
            if self._is_due("files", _FILES_EVERY_S):
                await self._raise_if_replaced()
            if self._links is not None and self._is_due("links", _LINKS_EVERY_S):
                self._report(links=self._look())
            if self._is_due("speed", _SPEED_EVERY_S):
                await self._refresh_speed()
            if self._is_canary_due():
                await self._send_canary()
            await asyncio.sleep(max(began_s + _LOOK_EVERY_S - time.monotonic(), 0.1))

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._due.get(what, 0.0):
            return False
        self._due[what] = now_s + every_s
        return True

    async def _look_at_progress(self) -> None:
        suspects = liveness.suspects(self._liveness)
        slots, asked = await asyncio.gather(
            self._client.slots(_SLOTS_S), self._workers.statuses_now(suspects)
        )
        pid, now_s = self._process.pid, time.monotonic()
        workers = tuple(self._worker(a, asked.get(a), now_s) for a in self._workers.ids)
        look = liveness.Look(slots, state_letter(pid), facts.cpu_seconds(pid), workers)
        self._liveness = liveness.observe(self._liveness, look, now_s)
        self._judge(liveness.verdict(self._liveness, self._expected, self._limits))
        if slots is not None:
            await self._look_at_tokens(slots)

    def _worker(self, agent_id: AgentId, asked: RpcServerStatus | None, now_s: float) -> WorkerLook:
        """What is known of a worker: its agent's answer just now, or its last heartbeat."""
        status, at_s = asked, now_s
        if status is None:
            status, silent_s = self._workers.last_word(agent_id)
            at_s = now_s - silent_s
        link = self._links.stats().get(agent_id) if self._links is not None else None
        return WorkerLook(agent_id, agent_id in self._on_cpu, link, status, at_s)

    async def _look_at_tokens(self, slots: Sequence[SlotState]) -> None:
        """Where their time goes. Costs nothing while none come."""
        has_links = self._links is not None or not self._record.plan.shards
        is_of_use = self._span is not None or any(not slot.reads_prompt for slot in busy(slots))
        if not has_links or not is_of_use:
            return
        self._take(await self._reading(slots))
        if self._span is not None and self._span.is_new:
            await asyncio.sleep(_AGAIN_S)  # it may be a short answer, over by the next look
            if (again := await self._client.slots(_SLOTS_S)) is not None:
                self._take(await self._reading(again))

    async def _reading(self, slots: Sequence[SlotState]) -> Reading:
        """The slots just now, and the links as soon as they say how they are."""
        at_s, at = time.monotonic(), timestamp()
        links = {}
        if self._links is not None:
            await self._links.fresh()
            stats = self._links.stats()
            links = {
                self._workers.name(agent_id): token_time.spent(stats[agent_id])
                for agent_id in self._workers.ids
                if agent_id in stats
            }
        return Reading(at_s, at, slots, links)

    def _take(self, reading: Reading) -> None:
        self._span, over = token_time.observe(self._span, reading)
        if over is not None:
            self._report(token_time=token_time.token_time(over))

    def _judge(self, verdict: liveness.Verdict) -> None:
        """Raise what ends the launch; only say what is slow."""
        match verdict:
            case liveness.FrozenEngine(stopped_s):
                raise EngineFrozen(
                    f"llama-server (pid {self._process.pid}) is stopped (state T) for "
                    f"{stopped_s:.1f} s; who sent it SIGSTOP?"
                )
            case liveness.FrozenWorker(agent_id, why):
                raise WorkerFrozen(f"the rpc-server of {self._workers.name(agent_id)} {why}")
            case liveness.Hung():
                raise self._hung(verdict)
            case Slow():
                self._say_slow(self._slowness(verdict))
            case _:
                self._say_slow("")

    def _hung(self, verdict: liveness.Hung) -> ProjectError:
        where = f"slot {verdict.slot}" if verdict.slot is not None else "llama-server"
        waits = f"{where} made no progress for {verdict.waited_s:.0f} s"
        usual = f"a step is expected to take {verdict.expected_s:.1f} s"
        if verdict.agent_id:
            name = self._workers.name(verdict.agent_id)
            return WorkerFrozen(f"{waits}, waiting for an answer of {name}; {usual}")
        return EngineHung(f"{waits}, and no worker owes an answer; {usual}")

    def _slowness(self, slow: Slow) -> str:
        who = ""
        if slow.agent_id:
            name = self._workers.name(slow.agent_id)
            who = f"; its answers come late from {name}" + (" (its link)" if slow.is_wire else "")
        return (
            f"slow but alive: {slow.tokens_per_s:.2f} instead of {slow.normal_tokens_per_s:.2f} "
            f"tokens per second{who}"
        )

    def _say_slow(self, text: str) -> None:
        if bool(text) != bool(self._slow):
            change = "slow" if text else "slow -> as usual"
            self._tools.journal.note(
                "deployment",
                self._record.deployment,
                change,
                launch_id=self._record.id,
                code="deployment_slow",
                text=text,
            )
        if text != self._slow:
            self._slow = text
            self._report(slow=text)

    def _is_canary_due(self) -> bool:
        after_s = self._tools.settings.canary_after_s
        return liveness.canary_due(self._liveness, time.monotonic(), after_s)

    async def _send_canary(self) -> None:
        """One token, which proves that every worker still computes."""
        try:
            await self._client.first_completion(self._tools.settings.first_token_s)
        except EngineNotReady as exc:
            raise EngineHung(f"idle, and a test of one token failed: {exc}") from exc
        self._liveness = liveness.proven(self._liveness, time.monotonic())

    async def _raise_if_replaced(self) -> None:
        before = self._record.model_files
        if happened := await asyncio.to_thread(model_files.changed, before):
            raise ModelReplaced(
                f"{happened.text} while it was served; launching what is there now",
                is_harmful=happened.is_harmful,
            )

    async def _refresh_speed(self) -> None:
        found = await self._client.generated()
        if found is None or found.tokens == self._generated_tokens:
            return
        self._generated_tokens = found.tokens
        said = {"generated_tokens": found.tokens, "generated_s": round(found.seconds, 3)}
        if found.tokens_per_second:
            said["tokens_per_second"] = round(found.tokens_per_second, 2)
        self._report(**said)


def _on_cpu(plan: Plan) -> frozenset[AgentId]:
    """Workers that compute on processors only, whose time is seen to pass."""
    cards = {s.agent_id for s in plan.shards if not GgmlDevice(s.ggml_device).is_cpu}
    return frozenset(plan.agent_ids) - cards
