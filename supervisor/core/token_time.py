"""Where the time of one generated token goes: computing and wire of each worker, and the rest.

Told apart by looks at llama-server about a second apart. Its ``/metrics`` would not do: they count
an answer when it has ended, and its seconds are those of each slot, so that they overlap when
several work at once. ``GET /slots`` counts every token as it comes.

Of all looks only those count between which nothing but generating went on: the same slots were busy
with the same requests, each of them had its first token before, and no other slot has had a request
meanwhile. So no prompt is booked on generated tokens. Most answers
that are over within a second are not seen in two such looks, and tell nothing.

With several busy slots a step yields a token for each: all times are divided by all tokens, so they
are what one token costs, not how long its reader waits for it. The sum is the time that passed.

Approximate is that a link counts an answer of its worker when it has come: one that was awaited at
the first look is counted, one that is at the last is not, which is less than a step each. And what
workers do while nobody waits for them is seen nowhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from supervisor.core.entities import TokenTime, WorkerTime
from supervisor.core.slots import SlotState, busy
from supervisor.link.job import LinkStats

EVERY_S: Final = 3.0
"""A span that is so long is told, and the next one begins."""
_ENOUGH_TOKENS: Final = 8
"""But not before it has so many, however slowly they come."""
_LEAST_TOKENS: Final = 4
"""Of an answer that is over before; fewer tell nothing, as a step at either end counts wrongly."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds that llama-server has waited for one worker so far: what for."""

    compute_s: float
    wire_s: float


@dataclass(frozen=True, slots=True)
class Reading:
    """All of it at one moment: ``at_s`` of a monotonic clock, ``at`` for people (ISO 8601)."""

    at_s: float
    at: str
    slots: Sequence[SlotState]
    links: Mapping[str, Spent]
    """By device, in the order of ``--rpc``."""


@dataclass(frozen=True, slots=True)
class Span:
    """Two readings between which nothing but generating went on."""

    first: Reading
    last: Reading
    tokens: int = 0
    goes_on: bool = False
    """It began where another one of the same answers ended, which was told."""

    @property
    def took_s(self) -> float:
        return self.last.at_s - self.first.at_s

    @property
    def is_new(self) -> bool:
        """An answer was seen for the first time."""
        return self.first is self.last and not self.goes_on


def spent(stats: LinkStats) -> Spent:
    """What a link says that it has cost."""
    return Spent(stats.computed_s, max(stats.answered_s - stats.computed_s, 0.0))


def observe(open_: Span | None, now: Reading) -> tuple[Span | None, Span | None]:
    """Take a reading: the span that goes on, and the one that is over and worth telling."""
    begun = Span(now, now) if _generates(now) else None
    if open_ is None:
        return begun, None
    tokens = generated(open_.last, now)
    if tokens is None:
        # What is left of a long answer tells less than what was told of it.
        is_news = open_.tokens >= _LEAST_TOKENS and not open_.goes_on
        return begun, open_ if is_news else None
    longer = replace(open_, last=now, tokens=open_.tokens + tokens)
    if longer.took_s >= EVERY_S and longer.tokens >= _ENOUGH_TOKENS:
        return Span(now, now, goes_on=True), longer
    return longer, None


def _generates(reading: Reading) -> bool:
    working = busy(reading.slots)
    return bool(working) and not any(slot.reads_prompt for slot in working)


def generated(before: Reading, now: Reading) -> int | None:
    """Tokens that came between two readings; None if anything else went on."""
    pairs = list(zip(before.slots, now.slots, strict=False))
    is_same = len(before.slots) == len(now.slots) and before.links.keys() == now.links.keys()
    # Also of the idle ones: a request that came and went between the looks had its prompt read.
    is_same &= all((o.id, o.task, o.is_busy) == (n.id, n.task, n.is_busy) for o, n in pairs)
    if not is_same or not _generates(before) or not _generates(now):
        return None
    made = [n.decoded_tokens - o.decoded_tokens for o, n in pairs if n.is_busy]
    return sum(made) if min(made) >= 0 else None


def token_time(span: Span) -> TokenTime:
    """What one of its tokens cost, in ms. It has some."""
    first, last = span.first.links, span.last.links
    workers = tuple(
        WorkerTime(
            device=device,
            compute_ms=_ms(last[device].compute_s - first[device].compute_s, span.tokens),
            wire_ms=_ms(last[device].wire_s - first[device].wire_s, span.tokens),
        )
        for device in last
    )
    known_ms = sum(each.compute_ms + each.wire_ms for each in workers)
    host_ms = round(max(span.took_s * 1e3 / span.tokens - known_ms, 0.0), 3)
    return TokenTime(at=span.last.at, tokens=span.tokens, host_ms=host_ms, workers=workers)


def _ms(seconds: float, tokens: int) -> float:
    """Never negative: the wire is a difference of two sums, which may shrink by a hair."""
    return round(max(seconds, 0.0) * 1e3 / tokens, 3)
