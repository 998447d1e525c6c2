"""Deployments at random: a healthy one is never ended, a frozen one always is, and in time."""

import random
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from serving_world import World

from supervisor.core import liveness
from supervisor.core.liveness import Alive, FrozenEngine, FrozenWorker, Hung, Limits, Liveness
from supervisor.core.pace import Slow

LIMITS: Final = Limits(frozen_after_s=3.0, hang_factor=5.0, hang_least_s=20.0)
LONGEST_GAP_S: Final = 2.0


class Watched:
    """A world and what is made of it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.world = World.made(self.rng)
        self.state: Liveness = liveness.begin(0.0)
        self.asks_every_s = self.rng.choice([1.0, 5.0])

    def look(self, gap_s: float) -> liveness.Verdict:
        self.world.run(gap_s)
        look = self.world.look(self.asks_every_s)
        self.state = liveness.observe(self.state, look, self.world.now_s)
        return liveness.verdict(self.state, self.world.expected(), LIMITS)

    def gap_s(self) -> float:
        return self.rng.uniform(0.3, LONGEST_GAP_S)

    def serve(self, looks: int, *, pauses: bool) -> None:
        """Healthy for so many looks; we ourselves may be stopped for a while."""
        for _ in range(looks):
            gap_s = (
                self.rng.uniform(5, 100) if pauses and self.rng.random() < 0.01 else self.gap_s()
            )
            verdict = self.look(gap_s)
            assert isinstance(verdict, Alive | Slow), (verdict, self.world)
            if liveness.is_idle(self.state):
                assert not self.world.slot.is_busy


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_a_healthy_deployment_is_never_called_stuck(seed: int) -> None:
    Watched(seed).serve(300, pauses=True)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    how=st.sampled_from(
        ["engine stopped", "worker stopped", "worker stuck", "engine waits", "engine loops"]
    ),
)
def test_a_frozen_deployment_is_noticed_in_time(seed: int, how: str) -> None:
    watched = Watched(seed)
    world = watched.world
    watched.serve(watched.rng.randint(20, 300), pauses=False)
    if "stopped" not in how:  # an idle one owes nothing
        while not any(stage.who is not None for stage in world.stages):
            watched.look(0.3)
    number = world.freeze(how)
    frozen_at_s = world.now_s
    verdict: liveness.Verdict = Alive()
    while isinstance(verdict, Alive | Slow):
        verdict = watched.look(watched.gap_s())
        assert world.now_s - frozen_at_s < 1e6, "never noticed"
    took_s = world.now_s - frozen_at_s
    if how == "engine stopped":
        assert isinstance(verdict, FrozenEngine)
        assert took_s <= LIMITS.frozen_after_s + 2 * LONGEST_GAP_S
    elif how == "worker stopped":
        assert isinstance(verdict, FrozenWorker)
        assert number is not None
        assert verdict.agent_id == world.workers[number].agent_id
        assert took_s <= LIMITS.frozen_after_s + 2 * (watched.asks_every_s + LONGEST_GAP_S)
    elif isinstance(verdict, FrozenWorker):
        assert how == "worker stuck"
        assert number is not None
        worker = world.workers[number]
        assert worker.is_cpu
        assert verdict.agent_id == worker.agent_id
        travelling_s = 10.0
        assert took_s <= LIMITS.frozen_after_s + travelling_s + 2 * watched.asks_every_s + 4
    else:
        assert isinstance(verdict, Hung)
        limit_s = max(LIMITS.hang_least_s, LIMITS.hang_factor * verdict.expected_s)
        factor = 10 if how == "engine loops" else 1
        assert took_s <= factor * limit_s + 2 * LONGEST_GAP_S + watched.asks_every_s
        if how == "worker stuck" and world.is_linked:
            assert number is not None
            assert verdict.agent_id == world.workers[number].agent_id
        else:
            assert verdict.agent_id == ""
