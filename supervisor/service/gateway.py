"""The gateway: finds the deployment of a request, waits for it, and sees the answer through.

A request whose engine ends is not lost: the repair brings another one, and the answer goes on
where it stopped (``core/continuing``) or, if nothing of it was sent, begins anew.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from agents.errors import ProjectError
from supervisor.core.callers import Caller
from supervisor.core.calls import Call
from supervisor.core.entities import Deployment
from supervisor.core.lifecycle import LIVE_STATES, State
from supervisor.core.outlook import Outlook, outlook
from supervisor.core.request_record import RequestRecord
from supervisor.core.routing import asked_for, best_of, model_entry, names_of
from supervisor.errors import (
    DeploymentNotReady,
    DeploymentUnknown,
    QueueFull,
    WaitedTooLong,
)
from supervisor.ports import EngineCut, EnginePassage
from supervisor.service.events import EventBus, Paced
from supervisor.service.exchange import Exchange
from supervisor.service.lanes import Lane, LaneClosed, Lanes, Seat
from supervisor.service.on_demand import OnDemand
from supervisor.service.outlet import Outlet
from supervisor.service.request_log import LaneCount
from supervisor.settings import Settings

TRAFFIC: Final = "traffic"
"""Event: how busy a deployment is, as a :class:`LaneCount`."""

_LEFT: Final = 499
"""Status of a request whose client left, as nginx has it."""


class Deployments(Protocol):
    """What the gateway needs of the reconciler."""

    def all(self) -> list[Deployment]: ...


class Accounts(Protocol):
    """What the gateway needs of the keys."""

    def entered(self, caller: Caller) -> contextlib.AbstractContextManager[None]:
        """Raises ``RateLimited``."""
        ...

    def note_usage(self, caller_name: str, prompt_tokens: int, generated_tokens: int) -> None: ...


class Gateway:
    """Answers requests."""

    def __init__(
        self,
        settings: Settings,
        deployments: Deployments,
        engines: EnginePassage,
        accounts: Accounts,
        on_demand: OnDemand,
        note: Callable[[RequestRecord], None],
    ) -> None:
        self._settings = settings
        self._deployments = deployments
        self._engines = engines
        self._accounts = accounts
        self._on_demand = on_demand
        self._note = note
        self._is_ending = False
        self.lanes = Lanes(self._deployment)

    async def run(self, bus: EventBus) -> None:
        """Look after the lanes as deployments change, until cancelled; tell how busy they are."""
        self.lanes.on_change = Paced(bus, TRAFFIC, self._traffic).changed
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._on_demand.run(self.lanes))
            tasks.create_task(self._follow(bus))

    async def _follow(self, bus: EventBus) -> None:
        while True:
            with bus.subscribe() as changes:
                self.lanes.look_again()
                async for change in changes:
                    if change.name.startswith("deployment"):
                        self.lanes.look_again()
            await asyncio.sleep(0)  # we lagged behind and were cut off

    def begin_to_end(self) -> None:
        """Take no new requests, and send those away that wait; the others go on."""
        self._is_ending = True
        for lane in self.lanes.all():
            lane.close()

    @property
    def lane_counts(self) -> list[LaneCount]:
        """How busy each deployment is now."""
        return [_count(lane) for lane in self.lanes.all()]

    def _traffic(self, name: str) -> dict[str, Any] | None:
        lane = self.lanes.find(name)
        return asdict(_count(lane)) if lane is not None else None

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered now; also if one would have to begin the launch."""
        states = {each.state for each in self._deployments.all()}
        return State.READY in states or states.isdisjoint(LIVE_STATES)

    async def answer(self, call: Call, outlet: Outlet) -> None:
        """Answer a request, whatever happens. Cancel it when the client left."""
        exchange = Exchange(call, self._engines, outlet)
        code = ""
        try:
            try:
                with self._accounts.entered(call.caller):
                    await self._answer(exchange, outlet)
            except ProjectError as exc:
                code = exc.code
                outlet.fail(exc)
            await outlet.end()
        except asyncio.CancelledError:
            outlet.status = _LEFT
            raise
        finally:
            record = exchange.record(outlet.status, code)
            self._note(record)
            used = record.prompt_tokens or 0, record.generated_tokens or 0
            self._accounts.note_usage(record.caller, *used)

    async def _answer(self, exchange: Exchange, outlet: Outlet) -> None:
        wait_s = exchange.call.wait_s
        while True:
            async with self._seated(exchange, outlet, wait_s) as (lane, seat):
                try:
                    await exchange.through(seat)
                    return
                except EngineCut as exc:
                    lane.gone(seat)
                    exchange.lost(str(exc))
            # An answer that was promised may wait for the repair as long as any request does.
            wait_s = max(wait_s, self._settings.queue_wait_s)

    def models(self, name: str) -> dict[str, Any]:
        """What requests can name: all (without a ``name``), or one.

        The shape is OpenAI's and Anthropic's at once.

        Raises:
            DeploymentUnknown: There is no such model.
        """
        known = [each for each in self._deployments.all() if _can_serve(each)]
        if name:
            found = next((each for each in known if name.lower() in names_of(each)), None)
            if found is None:
                raise _why_none(name, (), known)
            return model_entry(found)
        entries = [model_entry(each) for each in known]
        ids = [str(entry["id"]) for entry in entries]
        ends = {"first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
        return {"object": "list", "data": entries, "has_more": False, **ends}

    # -- waiting -----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _seated(
        self, exchange: Exchange, outlet: Outlet, wait_s: float
    ) -> AsyncIterator[tuple[Lane, Seat]]:
        """Leave to ask an engine, as soon as there is one; given back at the end of the block."""
        call, began_s, before_s = exchange.call, time.monotonic(), exchange.queue_s
        may_start = True
        while True:
            lane = await self._lane(call, may_start=may_start)
            exchange.deployment = lane.name
            may_start = False
            with lane.ticket(call.route.work, call.caller.name) as place:
                try:
                    seat = await self._waited(place, lane, call, outlet, began_s + wait_s)
                except LaneClosed:
                    continue  # another deployment may take it; if none does, that is said
                finally:
                    exchange.queue_s = before_s + time.monotonic() - began_s
                yield lane, seat
                return

    async def _lane(self, call: Call, *, may_start: bool) -> Lane:
        """The lane that a request waits in.

        Raises:
            DeploymentUnknown, DeploymentNotReady, ProjectError: There is none, and why.
        """
        if self._is_ending:
            raise DeploymentNotReady("the supervisor is stopping; start it again first")
        candidates = asked_for(call.model, self._deployments.all())
        chosen = best_of(candidates, lambda each: self.lanes.of(each.id).busyness)
        if chosen is None and may_start:
            chosen = await self._on_demand.started(call.model, candidates)
        if chosen is None:
            raise _why_none(call.model, candidates, self._deployments.all())
        return self.lanes.of(chosen.id)

    async def _waited(
        self,
        place: asyncio.Future[Seat],
        lane: Lane,
        call: Call,
        outlet: Outlet,
        deadline_s: float,
    ) -> Seat:
        """The seat, as soon as it is free. Streaming clients hear meanwhile why they wait.

        Raises:
            LaneClosed: The deployment does not want to run any more.
            QueueFull, WaitedTooLong
        """
        if not place.done() and lane.waiting > self._settings.queue_limit:
            raise self._full(lane)
        word_at_s = time.monotonic() + self._settings.keep_alive_s
        while not place.done():
            now_s = time.monotonic()
            if now_s >= deadline_s:
                raise self._too_long(lane, call)
            if call.is_stream and now_s >= word_at_s:
                outlet.begin_events()
                outlet.put(f": {self._outlook(lane).sentence}\n\n".encode())
                word_at_s = now_s + self._settings.keep_alive_s
            until_s = min(deadline_s, word_at_s) if call.is_stream else deadline_s
            await asyncio.wait([place], timeout=until_s - now_s)
        return place.result()

    def _outlook(self, lane: Lane) -> Outlook:
        deployment = self._deployment(lane.name)
        if deployment is None:
            return Outlook(lane.name, State.STOPPED)
        now = datetime.now(UTC)
        return outlook(deployment, now, ahead=lane.waiting - 1, usual_s=lane.usual_s)

    def _full(self, lane: Lane) -> QueueFull:
        prospects = self._outlook(lane)
        return QueueFull(
            f"{self._settings.queue_limit} requests wait already; {prospects.sentence}",
            prospects.retry_after_s or 1.0,
        )

    def _too_long(self, lane: Lane, call: Call) -> WaitedTooLong:
        prospects = self._outlook(lane)
        busy = f"; all {lane.slots} slots are busy" if prospects.state == State.READY else ""
        return WaitedTooLong(
            f"this request may wait {call.wait_s:g} s; {prospects.sentence}{busy}",
            prospects.as_json(),
            prospects.retry_after_s,
        )

    def _deployment(self, name: str) -> Deployment | None:
        return next((d for d in self._deployments.all() if d.id == name), None)


def _count(lane: Lane) -> LaneCount:
    return LaneCount(lane.name, lane.active, lane.waiting, lane.slots)


def _can_serve(deployment: Deployment) -> bool:
    return deployment.state in LIVE_STATES or deployment.spec.on_demand


def _why_none(
    model: str | None, candidates: Iterable[Deployment], known: Iterable[Deployment]
) -> ProjectError:
    ended = next(iter(candidates), None)
    if ended is not None:
        why = f": {ended.reason}" if ended.reason else ""
        return DeploymentNotReady(
            f"deployment {ended.id} is {ended.state}{why}; launch it again, or see "
            "'supervisor status'"
        )
    names = ", ".join(each.id for each in known) or "none"
    return DeploymentUnknown(f"no deployment for model {model!r}; known: {names}")
