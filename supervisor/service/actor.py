"""One deployment's loop: does the work of its present state, and takes commands.

Each deployment has an actor. An actor does the work of its present state as one task and waits
for that task or for a command; leaving a state cancels and awaits its work, so no late result can
arrive. Whatever a state's work raises becomes an event of the table in ``core/lifecycle.py``.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from agents.errors import ProjectError
from agents.log import current_launch
from supervisor.core.entities import Deployment, Plan
from supervisor.core.lifecycle import (
    Event,
    State,
    advance,
    failures_after,
    retry_delay_s,
)
from supervisor.core.membership import DeviceCondition
from supervisor.errors import (
    StoreUnusable,
)
from supervisor.service.attempt import Attempt
from supervisor.service.clock import timestamp
from supervisor.service.events import EventBus
from supervisor.service.planning import Planner
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Command:
    event: Event
    done: asyncio.Future[None]


class Actor:
    """One deployment's loop."""

    def __init__(
        self,
        tools: Tools,
        bus: EventBus,
        planner: Planner,
        deployment: Deployment,
        asked_at_s: float | None,
    ) -> None:
        self._tools = tools
        self._settings = tools.settings
        self._bus = bus
        self._planner = planner
        self.deployment = deployment
        self._asked_at_s = asked_at_s
        self._commands: asyncio.Queue[_Command] = asyncio.Queue()
        self._attempt: Attempt | None = None
        self._ready_at_s: float | None = None
        self._replan_after_s = 0.0
        self.awaited: Plan | None = None
        """Plan of before a restart: its devices are given time to be heard of again."""

    async def command(self, event: Event) -> None:
        """Ask for a change and wait until it was made."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._commands.put_nowait(_Command(event, done))
        await done

    async def run(self) -> None:
        """Work until cancelled; then nothing of the deployment runs."""
        try:
            while True:
                await self._step()
        finally:
            await asyncio.shield(self._close("stopped with the supervisor", None))
            while not self._commands.empty():
                self._commands.get_nowait().done.cancel()

    async def _step(self) -> None:
        """Do the work of the present state until it ends or a command comes."""
        work = asyncio.create_task(self._work())
        asked = asyncio.create_task(self._commands.get())
        try:
            await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # A command that came at the same moment must not be lost with its task.
            command = asked.result() if asked.done() and not asked.cancelled() else None
            if command is not None or not work.done():
                work.cancel()
            asked.cancel()
            await asyncio.gather(work, asked, return_exceptions=True)
        if command is not None:
            await self._obey(command)
        else:
            await self._move(work.result())

    async def _obey(self, command: _Command) -> None:
        state = self.deployment.state
        if command.event is Event.STOP_REQUESTED and state in (State.STOPPED, State.STOPPING):
            pass  # already so
        elif command.event is Event.START_REQUESTED and state not in (State.STOPPED, State.FAILED):
            pass
        else:
            if command.event is Event.START_REQUESTED:
                self._asked_at_s = time.monotonic()
                self._change(failures=0, plan=None)
            await self._enter(command.event, "")
            if self.deployment.state is State.STOPPING:
                await self._close("stopped", None)
                await self._enter(Event.EXITED, "")
        if not command.done.done():
            command.done.set_result(None)

    async def _work(self) -> tuple[Event, ProjectError | None]:
        """The work of the present state; returns what happened."""
        work: dict[State, Callable[[], Awaitable[Event]]] = {
            State.PENDING: self._plan,
            State.FETCHING: self._fetch,
            State.STARTING: self._start,
            State.READY: self._watch,
            State.BACKOFF: self._wait_for_retry,
        }
        try:
            return await work.get(self.deployment.state, _idle)(), None
        except ProjectError as exc:
            return self._judged(), exc
        except Exception as exc:
            # The one place where a bug is caught: the attempt ends, everything else goes on.
            log.exception("deployment.bug", extra={"deployment": self.deployment.id})
            return self._judged(), ProjectError(f"internal error: {exc!r}; please report it")

    def _judged(self) -> Event:
        if self.deployment.state is State.PENDING:
            return Event.GAVE_UP
        return Event.ATTEMPT_FAILED

    async def _move(self, happened: tuple[Event, ProjectError | None]) -> None:
        event, error = happened
        if error is None:
            await self._enter(event, "")
            return
        if self.deployment.state is State.READY:
            # Said before the clean-up: it takes long when a device is out of reach.
            await self._enter(Event.READINESS_LOST, str(error))
        elif self.deployment.state is State.STARTING:
            self._change(reason=str(error), error_code=error.code)
        await self._close("failed", error)
        ready_for_s = time.monotonic() - self._ready_at_s if self._ready_at_s else 0.0
        was_ready = self._ready_at_s is not None
        self._ready_at_s = None
        failures = failures_after(
            self.deployment.failures,
            ready_for_s=ready_for_s,
            earned_s=self._settings.ready_earned_s,
        )
        # What never worked is told at once; what has worked is repaired, within its budget.
        is_repair = was_ready or self.deployment.failures > 0 or self.awaited is not None
        may_retry = error.retryable and is_repair and failures <= self._settings.retry_limit
        self._change(failures=failures, error_code=error.code)
        if event is Event.ATTEMPT_FAILED and may_retry:
            delay_s = retry_delay_s(
                failures,
                first_s=self._settings.retry_first_s,
                longest_s=self._settings.retry_longest_s,
            )
            retry_at = datetime.now(UTC) + timedelta(seconds=delay_s)
            self._change(retry_at=retry_at.isoformat(timespec="seconds"))
            await self._enter(Event.ATTEMPT_FAILED, str(error))
        elif event is Event.GAVE_UP and may_retry:
            # Planning for the devices that exist now found none; they may come back.
            await self._pause_before_planning(failures, str(error))
        else:
            if self.deployment.state in (State.READY, State.DEGRADED):
                await self._enter(Event.ATTEMPT_FAILED, str(error))
            await self._enter(Event.GAVE_UP, str(error))

    async def _pause_before_planning(self, failures: int, reason: str) -> None:
        await self._enter(Event.UNPLACEABLE, reason)
        self._change(plan=None)
        self._replan_after_s = retry_delay_s(
            failures,
            first_s=self._settings.retry_first_s,
            longest_s=self._settings.retry_longest_s,
        )

    # -- work of each state ------------------------------------------------------------------

    async def _plan(self) -> Event:
        pause_s, self._replan_after_s = self._replan_after_s, 0.0
        await self._wait_for_other_devices(pause_s)
        await self._wait_for_devices_of(self.awaited)
        if self._asked_at_s is None:
            self._asked_at_s = time.monotonic()
        plan = self.deployment.plan
        if plan is None:
            plan = await self._planner.plan(self.deployment.spec, self.deployment.id)
        self.awaited = None
        self._change(
            plan=plan, loads=(), links=(), timeline=(), retry_at="", tokens_per_second=None
        )
        return Event.PLANNED

    async def _wait_for_other_devices(self, pause_s: float) -> None:
        """Wait ``pause_s``, or until a device comes, goes or changes its state."""
        registry, deadline_s = self._tools.registry, time.monotonic() + pause_s
        before = {device.id: device.state for device in registry.devices()}
        while (left_s := deadline_s - time.monotonic()) > 0:
            await registry.wait_changed(left_s)
            if {device.id: device.state for device in registry.devices()} != before:
                return

    async def _wait_for_devices_of(self, plan: Plan | None) -> None:
        """After our restart: wait until the devices that served report again, within limits."""
        deadline_s = time.monotonic() + self._settings.stale_after_s
        while plan is not None and (left_s := deadline_s - time.monotonic()) > 0:
            states = {device.id: device.state for device in self._tools.registry.devices()}
            if all(states.get(a, DeviceCondition.READY) == "ready" for a in plan.agent_ids):
                return
            await self._tools.registry.wait_changed(left_s)

    async def _fetch(self) -> Event:
        """Models are local files for now; this is where downloads will be."""
        return Event.MODEL_FETCHED

    async def _start(self) -> Event:
        plan = self.deployment.plan
        assert plan is not None
        asked_at_s, self._asked_at_s = self._asked_at_s or time.monotonic(), None
        self._attempt = Attempt(self._tools, self.deployment, plan, self._change, asked_at_s)
        await self._attempt.start()
        return Event.STARTUP_PROBE_PASSED

    async def _watch(self) -> Event:
        assert self._attempt is not None
        await self._attempt.watch()
        return Event.ATTEMPT_FAILED

    async def _wait_for_retry(self) -> Event:
        remaining = datetime.fromisoformat(self.deployment.retry_at) - datetime.now(UTC)
        await asyncio.sleep(max(remaining.total_seconds(), 0.0))
        # Planned anew, for the devices that exist then.
        self._change(plan=None)
        return Event.RETRY_DUE

    async def _close(self, outcome: str, error: ProjectError | None) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            await attempt.close(outcome, error)

    # -- state -------------------------------------------------------------------------------

    async def _enter(self, event: Event, reason: str) -> None:
        """Take an event: change state, store it, tell everybody, once."""
        before = self.deployment.state
        state = advance(before, event)
        changes: dict[str, Any] = {"state": state, "reason": reason, "since": timestamp()}
        if state is State.READY:
            self._ready_at_s = time.monotonic()
            changes |= {"phase": "", "error_code": ""}
        if state not in (State.STARTING, State.READY, State.DEGRADED):
            changes |= {"phase": "", "port": None, "loads": (), "links": ()}
        if state is State.STARTING:
            changes |= {"phase": "workers"}
        if state is not State.BACKOFF:
            changes |= {"retry_at": ""}
        self.deployment = self.deployment.model_copy(update=changes)
        level = logging.WARNING if state in (State.BACKOFF, State.FAILED) else logging.INFO
        extra = {"deployment": self.deployment.id, "from": str(before), "to": str(state)}
        log.log(level, "deployment.state_changed", extra={**extra, "reason": reason})
        if state is not State.FETCHING:  # a moment for local files, and PENDING after a crash
            await self._save()
        self.publish()

    async def _save(self) -> None:
        """Store the deployment. A full disk must not end the loop that has to clean up."""
        try:
            await asyncio.to_thread(self._tools.store.save_deployment, self.deployment)
        except StoreUnusable as exc:
            extra = {"deployment": self.deployment.id, "reason": str(exc)}
            log.error("deployment.not_stored", extra=extra)

    def _change(self, **changes: Any) -> None:
        """Note progress within a state; told, not stored."""
        if launch_id := changes.get("launch_id"):
            current_launch.set(str(launch_id))
        self.deployment = self.deployment.model_copy(update=changes)
        self.publish()

    def publish(self) -> None:
        """Tell everybody what the deployment is now."""
        self._bus.publish("deployment", self.deployment.model_dump(mode="json"))


async def _idle() -> Event:
    """States without work wait for a command."""
    await asyncio.Event().wait()
    raise AssertionError
