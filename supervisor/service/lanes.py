"""Who is answered and who waits: for each deployment a lane with as many seats as it has slots.

llama-server would queue by itself, but it would hold a thread for each request, answer its probes
late, and forget all of them when it ends. So requests wait here, and it gets what it can work on.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from supervisor.core.entities import Deployment, DeploymentId, LaunchId
from supervisor.core.gateway_routes import Work
from supervisor.core.lifecycle import LIVE_STATES, State

_ASKING_SEATS: Final = 4
"""Requests that need no slot; llama-server has four threads more than slots."""

_GONE_FOR_S: Final = 3.0
"""A launch that did not take a request gets no other one until it has another state, or for so
long: the watch knows within seconds whether it still lives."""

_USUAL_S: Final = 10.0
_SHARE_OF_LAST: Final = 0.2


class LaneClosed(Exception):
    """The deployment does not want to run any more; another one may take the request."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Leave to send one request to an engine."""

    deployment: DeploymentId
    launch_id: LaunchId | None
    port: int
    taken_at_s: float


@dataclass(eq=False, slots=True)
class _Ticket:
    caller: str
    seat: asyncio.Future[Seat] = field(default_factory=asyncio.Future)


class _Queue:
    """Requests of one kind. Whose caller has the fewest at work is next: nobody is crowded out."""

    def __init__(self) -> None:
        self.waiting: list[_Ticket] = []
        self.active: Counter[str] = Counter()

    def next(self) -> _Ticket:
        ticket = min(self.waiting, key=lambda each: self.active[each.caller])
        self.waiting.remove(ticket)
        return ticket


class Lane:
    """The requests of one deployment. All of it runs in one event loop."""

    def __init__(
        self,
        name: DeploymentId,
        look: Callable[[], Deployment | None],
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        """``tell`` is called whenever ``active``, ``waiting`` or ``slots`` may have changed."""
        self.name = name
        self._look = look
        self._tell = tell
        self._slots = _Queue()
        self._asking = _Queue()
        self._gone: LaunchId | None = None
        self._gone_until_s = 0.0
        self.usual_s = _USUAL_S
        """How long a request usually takes."""
        self.idle_since_s = time.monotonic()

    @property
    def active(self) -> int:
        """Requests that have a slot."""
        return self._slots.active.total()

    @property
    def waiting(self) -> int:
        return len(self._slots.waiting) + len(self._asking.waiting)

    @property
    def slots(self) -> int:
        """Seats when the deployment is ready."""
        deployment = self._look()
        plan = deployment.plan if deployment else None
        return plan.slots if plan else 1

    @property
    def busyness(self) -> float:
        """Requests per slot."""
        return (self.active + len(self._slots.waiting)) / self.slots

    @contextlib.contextmanager
    def ticket(self, work: Work, caller: str) -> Iterator[asyncio.Future[Seat]]:
        """A place in the queue: a future seat, which is given back at the end of the block.

        The future raises :class:`LaneClosed`.
        """
        queue = self._asking if work is Work.ASKS else self._slots
        ticket = _Ticket(caller)
        queue.waiting.append(ticket)
        self.look_again()
        try:
            yield ticket.seat
        finally:
            if ticket in queue.waiting:
                queue.waiting.remove(ticket)
            if _has_seat(ticket):
                self._given_back(queue, ticket)
            ticket.seat.cancel()
            self._tell()

    def gone(self, seat: Seat) -> None:
        """The engine of a seat ended, or does not answer: nobody else is sent there for now."""
        self._gone, self._gone_until_s = seat.launch_id, time.monotonic() + _GONE_FOR_S
        asyncio.get_running_loop().call_later(_GONE_FOR_S + 0.01, self.look_again)

    def look_again(self) -> None:
        """Give out what seats there are; the deployment may have changed."""
        self._give_out()
        self._tell()

    def _give_out(self) -> None:
        deployment = self._look()
        if deployment is None or deployment.state not in LIVE_STATES:
            self.close()
            return
        port = deployment.port
        if deployment.state is not State.READY or port is None or self._is_gone(deployment):
            return
        for queue, seats in ((self._slots, self.slots), (self._asking, _ASKING_SEATS)):
            while queue.waiting and queue.active.total() < seats:
                ticket = queue.next()
                queue.active[ticket.caller] += 1
                now_s = time.monotonic()
                ticket.seat.set_result(Seat(self.name, deployment.launch_id, port, now_s))

    def close(self) -> None:
        """Send everybody away who waits."""
        for queue in (self._slots, self._asking):
            for ticket in queue.waiting:
                ticket.seat.set_exception(LaneClosed(self.name))
            queue.waiting.clear()
        self._tell()

    def _is_gone(self, deployment: Deployment) -> bool:
        return deployment.launch_id == self._gone and time.monotonic() < self._gone_until_s

    def _given_back(self, queue: _Queue, ticket: _Ticket) -> None:
        queue.active[ticket.caller] -= 1
        queue.active += Counter()  # drops the zeros
        self.idle_since_s = time.monotonic()
        if queue is self._slots:
            took_s = self.idle_since_s - ticket.seat.result().taken_at_s
            self.usual_s += _SHARE_OF_LAST * (took_s - self.usual_s)
        self.look_again()


def _has_seat(ticket: _Ticket) -> bool:
    seat = ticket.seat
    return seat.done() and not seat.cancelled() and seat.exception() is None


class Lanes:
    """The lanes of all deployments that a request was made for."""

    def __init__(self, look: Callable[[str], Deployment | None]) -> None:
        self._look = look
        self._lanes: dict[DeploymentId, Lane] = {}
        self.on_change: Callable[[DeploymentId], None] = lambda name: None
        """Told that a lane is perhaps more or less busy than it was."""

    def of(self, name: DeploymentId) -> Lane:
        if name not in self._lanes:
            self._lanes[name] = Lane(name, lambda: self._look(name), lambda: self.on_change(name))
        return self._lanes[name]

    def find(self, name: str) -> Lane | None:
        """The lane of that deployment, if a request was made for it."""
        return self._lanes.get(DeploymentId(name))

    def all(self) -> list[Lane]:
        return list(self._lanes.values())

    def look_again(self) -> None:
        """Something changed; lanes of deployments that are no more are forgotten."""
        for name, lane in list(self._lanes.items()):
            lane.look_again()
            if self._look(name) is None and not lane.active:
                del self._lanes[name]
                self.on_change(name)
