"""Is a deployment slower than it normally is? Compares like with like, and only while it decodes.

A step of decode gives a token to every busy slot, and takes longer the more there are, so the
normal speed is kept for each number of them. Looks at which any slot reads a prompt are left out:
decode stands still for a batch of it. Averages forget by busy time: what is normal within ten
minutes, what is recent within ten seconds. What is slow, or about to be, is not learned as
normal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from supervisor.core.entities import AgentId
from supervisor.core.slots import SlotState, busy
from supervisor.link.job import LinkStats

SLOW_FACTOR: Final = 3.0
SLOW_AFTER_S: Final = 30.0
_NORMAL_S: Final = 600.0
_RECENT_S: Final = 10.0
_NORMAL_SHARE: Final = 2 / 3
"""Of the normal speed; what is slower is not learned, or a slow minute would become normal."""
_MOST_FACTOR: Final = 1000.0
_RECENT_STEPS: Final = 5
"""But at least so many, however slow they normally are."""
_KNOWN_AFTER_S: Final = 30.0
"""Of busy time, before anything is called normal."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A ratio of two sums that forget."""

    amount: float = 0.0
    per: float = 0.0

    def add(self, amount: float, per: float, elapsed_s: float, memory_s: float) -> "Mean":
        keep = math.exp(-elapsed_s / memory_s)
        return Mean(self.amount * keep + amount, self.per * keep + per)

    @property
    def value(self) -> float:
        return self.amount / self.per if self.per > 0 else 0.0


@dataclass(frozen=True, slots=True)
class LinkPace:
    """Seconds of one link per step: waited for its answers, and computed by its rpc-server."""

    waited: Mean = Mean()
    recently_waited: Mean = Mean()
    computed: Mean = Mean()
    recently_computed: Mean = Mean()

    @property
    def growth_s(self) -> float:
        return self.recently_waited.value - self.waited.value

    @property
    def is_wire(self) -> bool:
        """More of the growth is on the wire than in the rpc-server."""
        return self.recently_computed.value - self.computed.value < self.growth_s / 2


@dataclass(frozen=True, slots=True)
class Pace:
    """What was seen so far."""

    slots: tuple[SlotState, ...] | None = None
    links: Mapping[AgentId, LinkStats] = field(default_factory=dict)
    normal: Mapping[int, Mean] = field(default_factory=dict)
    """Steps per second, by the number of busy slots."""
    share: Mean = Mean()
    """Of the normal speed, recently."""
    steps_per_s: Mean = Mean()
    normal_steps_per_s: float = 0.0
    slow_s: float = 0.0
    """Busy time for which it has been slow."""
    link_paces: Mapping[AgentId, LinkPace] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slow:
    """Slow but alive: to be said, never to be acted on.

    ``agent_id`` is the worker whose answers take longer than they did, if there is one; ``is_wire``
    says whether its link is to blame or itself.
    """

    factor: float
    tokens_per_s: float
    """Of each request."""
    normal_tokens_per_s: float
    agent_id: AgentId | None = None
    is_wire: bool = False


def interrupted(pace: Pace) -> Pace:
    """Nothing is known of the time until the next look."""
    return replace(pace, slots=None, links={}, share=Mean(), steps_per_s=Mean(), slow_s=0.0)


def observe(
    pace: Pace,
    slots: tuple[SlotState, ...] | None,
    links: Mapping[AgentId, LinkStats],
    elapsed_s: float,
) -> Pace:
    """One look, ``elapsed_s`` seconds after the one before."""
    steps, before = _steps(pace.slots, slots), pace
    pace = replace(pace, slots=slots, links=dict(links))
    if steps is None or elapsed_s <= 0:
        return pace
    count = len(busy(slots))
    known = pace.normal.get(count, Mean())
    if known.per >= _KNOWN_AFTER_S and known.amount > 0:
        pace = _compared(pace, steps, known.value, elapsed_s)
    learns = pace.share.per == 0 or pace.share.value >= _NORMAL_SHARE
    if learns:
        learned = known.add(steps, elapsed_s, elapsed_s, _NORMAL_S)
        pace = replace(pace, normal={**pace.normal, count: learned})
    link_paces = {
        agent_id: _link_pace(
            pace.link_paces.get(agent_id, LinkPace()),
            (link.answered_s - before.links[agent_id].answered_s, steps),
            (link.computed_s - before.links[agent_id].computed_s, steps),
            elapsed_s,
            learns=learns,
        )
        for agent_id, link in links.items()
        if agent_id in before.links
    }
    return replace(pace, link_paces=link_paces)


def _compared(pace: Pace, steps: float, normal_steps_per_s: float, elapsed_s: float) -> Pace:
    memory_s = max(_RECENT_S, _RECENT_STEPS / normal_steps_per_s)
    share = pace.share if pace.share.per else Mean(memory_s, memory_s)  # normal until shown
    share = share.add(steps / normal_steps_per_s, elapsed_s, elapsed_s, memory_s)
    is_slow = share.value < 1 / SLOW_FACTOR
    return replace(
        pace,
        share=share,
        steps_per_s=pace.steps_per_s.add(steps, elapsed_s, elapsed_s, memory_s),
        normal_steps_per_s=normal_steps_per_s,
        slow_s=pace.slow_s + elapsed_s if is_slow else 0.0,
    )


def _steps(before: tuple[SlotState, ...] | None, now: tuple[SlotState, ...] | None) -> float | None:
    """Steps of decode since the look before; None if anything else went on."""
    old, new = busy(before), busy(now)
    if not new or [s.task for s in old] != [s.task for s in new]:
        return None
    if any(slot.reads_prompt for slot in (*old, *new)):
        return None
    made = (n.decoded_tokens - o.decoded_tokens for o, n in zip(old, new, strict=True))
    return max(0, *made)


def _link_pace(
    pace: LinkPace,
    waited: tuple[float, float],
    computed: tuple[float, float],
    elapsed_s: float,
    *,
    learns: bool,
) -> LinkPace:
    """With seconds and the steps that they were for."""
    recent = (elapsed_s, _RECENT_S)
    pace = replace(
        pace,
        recently_waited=pace.recently_waited.add(*waited, *recent),
        recently_computed=pace.recently_computed.add(*computed, *recent),
    )
    if not learns:
        return pace
    normal = (elapsed_s, _NORMAL_S)
    return replace(
        pace,
        waited=pace.waited.add(*waited, *normal),
        computed=pace.computed.add(*computed, *normal),
    )


def verdict(pace: Pace) -> Slow | None:
    """Slow for long enough to say it."""
    if pace.slow_s < SLOW_AFTER_S:
        return None
    factor = 1 / max(pace.share.value, 1 / _MOST_FACTOR)
    slow = Slow(factor, pace.steps_per_s.value, pace.normal_steps_per_s)
    worst = max(pace.link_paces.items(), key=lambda item: item[1].growth_s, default=None)
    if worst is None or worst[1].growth_s <= worst[1].waited.value:
        return slow
    return replace(slow, agent_id=worst[0], is_wire=worst[1].is_wire)
