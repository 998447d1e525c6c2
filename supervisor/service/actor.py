"""One deployment's loop: does the work of its present state, and takes commands.

Each deployment has an actor. An actor does the work of its present state as one task and waits
for that task or for a command; leaving a state cancels and awaits its work, so no late result can
arrive. Whatever a state's work raises becomes an event of the table in ``core/lifecycle.py``.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from agents.errors import DiskFull, ProjectError
from agents.log import current_launch
from supervisor.core.diagnosis import cause_of, diagnose
from supervisor.core.entities import Action, Cause, Deployment, DeploymentSpec, LaunchRecord, Plan
from supervisor.core.lessons import why_aside
from supervisor.core.lifecycle import Event, State, advance, failures_after
from supervisor.core.model_reference import parse_reference
from supervisor.core.repair import had_their_chance, may_revive, retry_pause_s
from supervisor.core.transport import warnings_of
from supervisor.errors import (
    DeploymentExists,
    DeviceParked,
    DeviceReturned,
    DeviceSetAside,
    ModelReplaced,
    StoreUnusable,
)
from supervisor.service.attempt import Attempt
from supervisor.service.clock import timestamp
from supervisor.service.doubting import doubt
from supervisor.service.events import EventBus
from supervisor.service.loading import EngineEnded
from supervisor.service.parking import Parking
from supervisor.service.planning import Planner
from supervisor.service.rejoining import Rejoining
from supervisor.service.tools import Tools
from supervisor.service.waiting import commands_only, devices_of, drained, other_devices
from supervisor.service.wishes import Command, Relaunch

log = logging.getLogger(__name__)

NO_OTHER_PLAN: Final = "; there is no other plan: "

_BY_CHOICE: Final = (DeviceReturned, ModelReplaced, DeviceParked)
"""Reasons to launch again what serves well."""

_LOOK_EVERY_S: Final = 5.0
_DISK_EVERY_S: Final = 0.5
TRUST_S: Final = 3.0
"""Who asks for a launch waits so long for a device that was just lost to be reached again."""


class Actor:
    """One deployment's loop."""

    def __init__(
        self,
        tools: Tools,
        bus: EventBus,
        planner: Planner,
        deployment: Deployment,
        asked_at_s: float | None,
        may_launch: asyncio.Event,
    ) -> None:
        """``may_launch``: while it is not set, what is to be launched waits."""
        self._tools = tools
        self._settings = tools.settings
        self._bus = bus
        self._planner = planner
        self.deployment = deployment
        self._asked_at_s = asked_at_s
        self._may_launch = may_launch
        self._commands: asyncio.Queue[Command] = asyncio.Queue()
        self._attempt: Attempt | None = None
        self._ready_at_s: float | None = None
        self._pause_s = 0.0
        self._is_repair = False
        self._usable = planner.usable(deployment)
        """The devices that could take part when the present plan was made."""
        self._hurry = asyncio.Event()
        self._has_ended = False
        self.awaited: Plan | None = None
        """Plan of before a restart: its devices are given time to be heard of again."""

    async def command(self, wish: Event | Relaunch) -> None:
        """Ask for a change and wait until it was made.

        Raises:
            DeploymentExists: The deployment was removed or launched anew meanwhile, or we end.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._has_ended:
            self._commands.put_nowait(Command(wish, done))
            await asyncio.wait([done])
        if not done.done() or done.cancelled():
            raise DeploymentExists(
                f"deployment {self.deployment.id} was removed or launched anew meanwhile, or the "
                "supervisor ends; look at it, and ask again"
            )

    async def take_spec(self, spec: DeploymentSpec) -> None:
        """Say the same in other words, which needs no relaunch."""
        self._change(spec=spec)
        await self._tools.journal.save_deployment(self.deployment)

    def hurry(self) -> None:
        """Whatever ends from now on ends without any grace."""
        self._hurry.set()

    async def resume(self, record: LaunchRecord, *, may_serve: bool) -> bool:
        """Take over what an earlier run of the supervisor started, before :meth:`run`.

        Returns:
            Whether it goes on; else nothing of it is left.
        """
        deployment = self.deployment
        attempt = Attempt(self._tools, deployment, record.plan, self._change, time.monotonic())
        if not await attempt.resume(record):
            return False
        if not may_serve:
            self._hurry.set()
            await attempt.close("ended with the supervisor", None, self._hurry)
            self._hurry.clear()
            return False
        self._attempt = attempt
        changes: dict[str, Any] = {"launch_id": record.id, "port": record.port}
        self.deployment = deployment.model_copy(update={**changes, "plan": record.plan})
        if deployment.state is State.READY:
            self._ready_at_s = time.monotonic()
            self._tools.registry.note_serving(deployment.id)
        return True

    async def run(self) -> None:
        """Work until cancelled; then nothing of the deployment runs."""
        try:
            while True:
                try:
                    await self._step()
                except Exception:
                    # As in ``_work``: a bug ends this deployment's launch and nothing else.
                    log.exception("deployment.bug", extra={"deployment": self.deployment.id})
                    await self._fail_by_bug()
        finally:
            await asyncio.shield(self._drain_and_close("stopped with the supervisor"))
            self._has_ended = True
            while not self._commands.empty():
                self._commands.get_nowait().done.cancel()

    async def _fail_by_bug(self) -> None:
        """Whatever a bug of ours has left half done: nothing runs, and it can be started again."""
        await self._close("failed", None)
        text = "internal error, see the supervisor's log; please report it, and start it again"
        self._change(state=State.FAILED, reason=text, error_code="error", phase="", port=None)

    async def _step(self) -> None:
        """Do the work of the present state until it ends or a command comes that ends it."""
        work = asyncio.create_task(self._work())
        asked = asyncio.create_task(self._next_command())
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
            await self._answer(command)
        else:
            await self._move(work.result())

    async def _next_command(self) -> Command:
        """Who asks for what is so already is answered, and does not disturb the work."""
        state = self.deployment.state
        while True:
            command = await self._commands.get()
            if command.wish is Event.STOP_REQUESTED and state in (State.STOPPED, State.STOPPING):
                self._hurry.clear()
            elif command.wish is not Event.START_REQUESTED or state in (
                State.STOPPED,
                State.FAILED,
            ):
                return command
            command.done.set_result(None)

    async def _answer(self, command: Command) -> None:
        """Whoever asked hears of the end, whatever it is."""
        try:
            await self._obey(command.wish)
            self._hurry.clear()
        except asyncio.CancelledError:
            command.done.cancel()
            raise
        finally:
            if not command.done.done():
                command.done.set_result(None)

    async def _obey(self, wish: Event | Relaunch) -> None:
        if isinstance(wish, Relaunch):
            await self._launch_again(wish)
            return
        if wish is Event.START_REQUESTED:
            self._asked_at_s = time.monotonic()
            self._is_repair = False
            self._change(failures=0, plan=None, cause=None)
        await self._enter(wish, "")
        if self.deployment.state is State.STOPPING:
            await self._drain_and_close("stopped")
            await self._enter(Event.EXITED, "")

    async def _launch_again(self, wish: Relaunch) -> None:
        """It wants to serve all the time, so that requests for it wait instead of being refused."""
        if self.deployment.state is State.READY:
            await self._enter(Event.READINESS_LOST, wish.reason)
        await self._drain_and_close("relaunched")
        if self.deployment.state in (State.FETCHING, State.STARTING):
            await self._enter(Event.ATTEMPT_FAILED, wish.reason)
        self._asked_at_s = time.monotonic()
        self._ready_at_s, self._pause_s, self.awaited = None, 0.0, None
        self._is_repair = wish.is_repair
        spec = wish.planned_for if wish.takes_spec else self.deployment.spec
        plan = wish.plan if spec == wish.planned_for else None
        fresh: dict[str, Any] = {"failures": 0, "cause": None, "error_code": ""}
        self._change(spec=spec, warnings=warnings_of(spec), plan=plan, reason=wish.reason, **fresh)
        self._usable = self._planner.usable(self.deployment)
        state = self.deployment.state
        if state is State.PENDING:
            await self._tools.journal.save_deployment(self.deployment)
        elif state in (State.STOPPED, State.FAILED):
            await self._enter(Event.START_REQUESTED, wish.reason)
        else:
            await self._enter(Event.RETRY_DUE, wish.reason)

    async def _work(self) -> tuple[Event, ProjectError | EngineEnded | None]:
        """The work of the present state; returns what happened."""
        work: dict[State, Callable[[], Awaitable[Event]]] = {
            State.PENDING: self._plan,
            State.FETCHING: self._fetch,
            State.STARTING: self._start,
            State.READY: self._watch,
            State.BACKOFF: self._wait_for_retry,
            State.FAILED: self._wait_for_revival,
        }
        try:
            return await work.get(self.deployment.state, commands_only)(), None
        except (ProjectError, EngineEnded) as exc:
            return self._judged(), exc
        except Exception as exc:
            # The one place where a bug is caught: the attempt ends, everything else goes on.
            log.exception("deployment.bug", extra={"deployment": self.deployment.id})
            return self._judged(), ProjectError(f"internal error: {exc!r}; please report it")

    def _judged(self) -> Event:
        if self.deployment.state is State.PENDING:
            return Event.GAVE_UP
        return Event.ATTEMPT_FAILED

    async def _move(self, happened: tuple[Event, ProjectError | EngineEnded | None]) -> None:
        event, error = happened
        if error is None:
            await self._enter(event, "")
            return
        self._is_repair |= self._ready_at_s is not None
        if self.deployment.state is State.READY:
            # Said before anything is asked or cleaned up, which may take seconds.
            await self._enter(Event.READINESS_LOST, str(error) or "llama-server ended")
        cause = await self._cause(error)
        self._change(cause=cause, reason=cause.text, error_code=cause.code)
        if self._attempt is not None and isinstance(error, _BY_CHOICE):
            is_harmful = isinstance(error, ModelReplaced) and error.is_harmful
            await self._relaunch(cause, drains=not is_harmful)
            return
        await self._close("failed", cause)
        await self._learn(cause)
        await self._repair_or_give_up(event, error, cause)

    async def _cause(self, error: ProjectError | EngineEnded) -> Cause:
        found = error if isinstance(error, ProjectError) else None
        if self._attempt is None:
            assert found is not None
            return self._with_first(cause_of(found, phase="planning"))
        return diagnose(await self._attempt.examine(found))

    def _with_first(self, cause: Cause) -> Cause:
        """That no other plan exists is no news beside what made one necessary."""
        first = self.deployment.cause
        if first is None:
            return cause
        also = f"{NO_OTHER_PLAN}{cause.text}"
        remedy = f"{first.remedy.partition(NO_OTHER_PLAN)[0]}{also}"
        return first.model_copy(update={"remedy": remedy})

    async def _relaunch(self, cause: Cause, *, drains: bool) -> None:
        """By choice: nothing failed, so that nothing is counted."""
        close = self._drain_and_close if drains else self._close
        await close("relaunched", cause)
        self._ready_at_s = None
        self._change(plan=None)
        await self._enter(Event.RETRY_DUE, cause.text)

    async def _learn(self, cause: Cause) -> None:
        """What the repair and later plans have to know of the device that it was about."""
        doubt(self._tools.registry, cause)
        plan = self.deployment.plan
        try:
            lesson = await self._planner.learn(cause, plan) if plan is not None else None
        except StoreUnusable as exc:  # the repair is worth more than its lesson
            log.error("deployment.lesson_lost", extra={"reason": str(exc)})
            return
        if lesson is not None and (why := why_aside(lesson, time.time())):
            code = DeviceSetAside.code
            self._tools.journal.note("device", cause.device, "set aside", code=code, text=why)

    async def _repair_or_give_up(
        self, event: Event, error: ProjectError | EngineEnded, cause: Cause
    ) -> None:
        failures = self._count_failure()
        self._change(failures=failures)
        is_retryable = not isinstance(error, ProjectError) or error.retryable
        # What never worked is told at once, unless the next attempt differs from it.
        is_attempt = event is Event.ATTEMPT_FAILED
        has_remedy = is_attempt and cause.action not in (Action.RETRY, Action.GIVE_UP)
        is_repair = self._is_repair or self.awaited is not None
        may_retry = (
            (is_retryable or has_remedy)
            and (is_repair or has_remedy)
            and cause.action is not Action.GIVE_UP
            and failures <= self._settings.retry_limit
        )
        if may_retry:
            self._pause_s = retry_pause_s(
                failures,
                first_s=self._settings.retry_first_s,
                longest_s=self._settings.retry_longest_s,
                chance=random.random(),
            )
        if event is Event.ATTEMPT_FAILED and may_retry:
            retry_at = datetime.now(UTC) + timedelta(seconds=self._pause_s)
            self._change(retry_at=retry_at.isoformat(timespec="milliseconds"))
            await self._enter(Event.ATTEMPT_FAILED, cause.text)
        elif event is Event.GAVE_UP and may_retry:
            # Planning for the devices that exist now found none; they may come back.
            await self._enter(Event.UNPLACEABLE, cause.text)
            self._change(plan=None)
        else:
            if self.deployment.state in (State.READY, State.DEGRADED):
                await self._enter(Event.ATTEMPT_FAILED, cause.text)
            await self._enter(Event.GAVE_UP, cause.text)

    def _count_failure(self) -> int:
        ready_for_s = time.monotonic() - self._ready_at_s if self._ready_at_s else 0.0
        self._ready_at_s = None
        return failures_after(
            self.deployment.failures,
            ready_for_s=ready_for_s,
            earned_s=self._settings.ready_earned_s,
        )

    # -- work of each state ------------------------------------------------------------------

    async def _plan(self) -> Event:
        if not self._may_launch.is_set():
            await self._may_launch.wait()
            self._change(plan=None)  # made for devices as they were
        pause_s, self._pause_s = self._pause_s, 0.0
        await other_devices(self._tools.registry, pause_s)
        await self._wait_for_disk()
        await devices_of(self.awaited, self._tools.registry, self._settings.stale_after_s)
        if not self._is_repair:
            await self._tools.registry.wait_trusted(TRUST_S)
        if self._asked_at_s is None:
            self._asked_at_s = time.monotonic()
        plan = self.deployment.plan
        # The operator may exclude a device after it was planned with.
        while plan is None or self._tools.registry.has_excluded(plan.agent_ids):
            self._usable = self._planner.usable(self.deployment)
            spec, name = self.deployment.spec, self.deployment.id
            is_repair = self._is_repair or self.awaited is not None
            plan = await self._planner.plan(spec, name, is_repair=is_repair)
        self.awaited = None
        fresh: dict[str, Any] = {"loads": (), "links": (), "timeline": (), "retry_at": ""}
        self._change(plan=plan, tokens_per_second=None, **fresh)
        return Event.PLANNED

    async def _wait_for_disk(self) -> None:
        """A launch has to be on record before it starts; a repair waits until that is possible."""
        journal = self._tools.journal
        while self._is_repair and journal.is_failing:
            cause = cause_of(DiskFull(journal.problem), phase="planning")
            self._change(cause=cause, reason=cause.text, error_code=cause.code)
            await asyncio.sleep(_DISK_EVERY_S)

    async def _fetch(self) -> Event:
        """A plan whose model has no path yet was made with its header alone."""
        plan, fetch_model = self.deployment.plan, self._tools.fetch_model
        assert plan is not None
        reference = plan.model.path
        if fetch_model is None or parse_reference(reference) is None:
            return Event.MODEL_FETCHED
        await fetch_model(self.deployment.id, reference, lambda pull: self._change(pull=pull))
        self._asked_at_s = time.monotonic()  # the launch begins now
        self._usable = self._planner.usable(self.deployment)
        spec, name = self.deployment.spec, self.deployment.id
        self._change(plan=await self._planner.plan(spec, name, is_repair=self._is_repair))
        return Event.MODEL_FETCHED

    async def _start(self) -> Event:
        plan = self.deployment.plan
        assert plan is not None
        asked_at_s, self._asked_at_s = self._asked_at_s or time.monotonic(), None
        if self._attempt is None:
            self._attempt = Attempt(self._tools, self.deployment, plan, self._change, asked_at_s)
            await self._attempt.start()
        elif not self._attempt.was_ready:
            await self._attempt.finish()  # one that we took over while it loaded
        return Event.STARTUP_PROBE_PASSED

    async def _watch(self) -> Event:
        attempt = self._attempt
        assert attempt is not None
        rejoining = Rejoining(self._tools, self._planner, self.deployment, self._usable)
        work = [asyncio.create_task(attempt.watch())]
        work.append(asyncio.create_task(rejoining.until_worth_it(lambda: attempt.is_idle)))
        parking = Parking(self._tools, self._planner, self.deployment, self._change)
        work.append(asyncio.create_task(parking.until_moved()))
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in work:
                each.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        return Event.ATTEMPT_FAILED

    async def _wait_for_retry(self) -> Event:
        # Not until ``retry_at``, which is for people: their clock may be set meanwhile.
        pause_s, self._pause_s = self._pause_s, 0.0
        await asyncio.sleep(pause_s)
        # Planned anew, for the devices that exist then.
        self._change(plan=None)
        return Event.RETRY_DUE

    async def _wait_for_revival(self) -> Event:
        """A device that was not there when it failed may make the difference."""
        usable = self._planner.usable(self.deployment)
        had_chance = had_their_chance(self._usable, self.deployment.cause)
        settled_at_s = time.monotonic() + self._settings.stale_after_s
        while True:
            await self._tools.registry.wait_changed(_LOOK_EVERY_S)
            now = self._planner.usable(self.deployment)
            news = now - usable - (had_chance if time.monotonic() < settled_at_s else frozenset())
            has_hope = may_revive(self.deployment.state, self.deployment.cause, news)
            usable = now
            if has_hope and await self._can_be_planned():
                break
        self._is_repair = True
        self._change(failures=0, plan=None)
        return Event.RETRY_DUE

    async def _can_be_planned(self) -> bool:
        """A device that does not help must not replace the true cause by another."""
        spec, name = self.deployment.spec, self.deployment.id
        try:
            await self._planner.plan(spec, name, is_repair=True)
        except ProjectError:
            return False
        return True

    async def _drain_and_close(self, outcome: str, cause: Cause | None = None) -> None:
        """Running requests may end first, unless somebody is in a hurry."""
        if self._attempt is not None and not self._hurry.is_set():
            await drained(self._attempt, self._settings.drain_s, self._hurry)
        await self._close(outcome, cause)

    async def _close(self, outcome: str, cause: Cause | None) -> None:
        if self._attempt is not None:
            await self._attempt.close(outcome, cause, self._hurry)
            self._attempt = None

    # -- state -------------------------------------------------------------------------------

    async def _enter(self, event: Event, reason: str) -> None:
        """Take an event: change state, store it, tell everybody, once."""
        before = self.deployment.state
        state = advance(before, event)
        changes: dict[str, Any] = {"state": state, "reason": reason, "since": timestamp()}
        if state is State.READY:
            self._ready_at_s = time.monotonic()
            self._tools.registry.note_serving(self.deployment.id)
            changes |= {"phase": "", "error_code": "", "cause": None}
        if state not in (State.STARTING, State.READY, State.DEGRADED):
            changes |= {"phase": "", "port": None, "loads": (), "links": (), "slow": ""}
            changes |= {"generated_tokens": None, "generated_s": None, "token_time": None}
        if state is State.STARTING:
            changes |= {"phase": "workers"}
        if state is not State.BACKOFF:
            changes |= {"retry_at": ""}
        if state is not State.FETCHING:
            changes |= {"pull": None}
        self.deployment = self.deployment.model_copy(update=changes)
        level = logging.WARNING if state in (State.BACKOFF, State.FAILED) else logging.INFO
        extra = {"deployment": self.deployment.id, "from": str(before), "to": str(state)}
        log.log(level, "deployment.state_changed", extra={**extra, "reason": reason})
        self._tools.journal.note(
            "deployment",
            self.deployment.id,
            f"{before} -> {state}",
            launch_id=self.deployment.launch_id,
            code=self.deployment.error_code if reason else "",
            text=reason,
        )
        if state is not State.FETCHING:  # it is PENDING after a crash, and pulls keep themselves
            await self._tools.journal.save_deployment(self.deployment)
        self.publish()

    def _change(self, **changes: Any) -> None:
        """Note progress within a state; told, not stored."""
        if launch_id := changes.get("launch_id"):
            current_launch.set(str(launch_id))
        self.deployment = self.deployment.model_copy(update=changes)
        self.publish()

    def publish(self) -> None:
        """Tell everybody what the deployment is now."""
        self._bus.publish("deployment", self.deployment.model_dump(mode="json"))
