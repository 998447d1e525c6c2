"""A deployment that serves, simulated: what each look at it would show, healthy or frozen."""

import random
from dataclasses import dataclass, field
from typing import Final

from agents.contract import RpcServerStatus, WorkerState
from supervisor.core.entities import AgentId
from supervisor.core.liveness import Look
from supervisor.core.slots import SlotState
from supervisor.core.step_time import Expected
from supervisor.core.worker_liveness import WorkerLook
from supervisor.link.job import LinkStats

UBATCH: Final = 512
BEAT_BYTES: Final = 29
TOKEN_BYTES: Final = 20_000
PROMPT_TOKEN_BYTES: Final = 4_000


@dataclass
class SimulatedWorker:
    """``slowness`` is how much longer than predicted it takes."""

    agent_id: AgentId
    is_cpu: bool
    slowness: float
    bytes_per_s: float
    cpu_s: float = 0.0
    sent: float = 0.0
    received: float = 0.0
    answers: int = 0
    asked_at_s: float | None = None
    """When llama-server asked what it has not answered."""
    phase: str = "idle"
    letter: str = "S"
    told: RpcServerStatus | None = None
    told_at_s: float = -1.0


@dataclass
class Stage:
    """Somebody is busy: data travels to a worker, or a worker or llama-server itself computes."""

    who: int | None
    left_s: float
    carries_bytes_per_s: float = 0.0
    ends_with: str = ""


@dataclass
class World:
    """Time advances by ``run``; ``frozen`` stops everything but the clock and the beats."""

    rng: random.Random
    is_linked: bool = True
    is_old_engine: bool = False
    now_s: float = 0.0
    workers: list[SimulatedWorker] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    slot: SlotState = field(default_factory=lambda: SlotState(0, -1, is_busy=False))
    engine_cpu_s: float = 0.0
    engine_letter: str = "S"
    frozen: str = ""
    token_s: float = 0.1
    prompt_token_s: float = 0.01
    left_tokens: int = 0
    left_prompt: int = 0
    idle_s: float = 3.0

    @classmethod
    def made(cls, rng: random.Random) -> "World":
        """Up to three workers; CPU ones may be much slower than was predicted, GPUs a little."""
        world = cls(rng, is_linked=rng.random() < 0.8, is_old_engine=rng.random() < 0.3)
        for number in range(rng.randint(1, 3)):
            is_cpu = rng.random() < 0.6
            slowness = rng.uniform(0.5, 20 if is_cpu else 3)
            world.workers.append(
                SimulatedWorker(AgentId(f"w{number}"), is_cpu, slowness, 10 ** rng.uniform(4.5, 8))
            )
        world.token_s = 10 ** rng.uniform(-2, 0.5)
        world.prompt_token_s = world.token_s / rng.uniform(5, 50)
        return world

    def expected(self) -> Expected:
        """What a plan would predict of it, were no device slower than was measured."""
        token_s = self.token_s + sum(TOKEN_BYTES / w.bytes_per_s for w in self.workers)
        per_prompt_s = sum(PROMPT_TOKEN_BYTES / w.bytes_per_s for w in self.workers)
        return Expected(token_s, self.prompt_token_s + per_prompt_s, UBATCH, 4096)

    # -- work ------------------------------------------------------------------------------

    def _next_step(self) -> None:
        """A request begins, or a step of it; workers of a chain answer one after the other."""
        if self.left_prompt > 0:
            self._read_some()
        elif self.left_tokens > 0:
            self.left_tokens -= 1
            self._step(self.token_s / len(self.workers), TOKEN_BYTES, "token")
        elif self.slot.is_busy:
            self.slot = SlotState(0, self.slot.task, is_busy=False)
            self.idle_s = self.rng.uniform(0.1, 20)
        else:
            tokens = self.rng.randint(1, 3000)
            self.left_prompt, self.left_tokens = tokens, self.rng.randint(1, 60)
            self.slot = SlotState(0, self.slot.task + 1, is_busy=True)

    def _read_some(self) -> None:
        """The first workers answer after each ubatch; the last one computes all at the end."""
        tokens = min(self.left_prompt, UBATCH)
        self.left_prompt -= tokens
        is_last = self.left_prompt == 0
        taken = self.slot.prompt_tokens + tokens
        if not self.is_old_engine:
            self.slot = SlotState(0, self.slot.task, True, 0, taken, taken - tokens)
        share_s = tokens * self.prompt_token_s / len(self.workers)
        for number, _ in enumerate(self.workers[:-1]):
            self._ask(number, share_s, tokens * PROMPT_TOKEN_BYTES, "")
        if is_last:
            whole_s = (taken if not self.is_old_engine else 3000) * self.prompt_token_s
            whole_s /= len(self.workers)
            self._ask(len(self.workers) - 1, whole_s, tokens * PROMPT_TOKEN_BYTES, "prompt")

    def _step(self, share_s: float, size_bytes: int, ends_with: str) -> None:
        for number, _ in enumerate(self.workers):
            is_last = number == len(self.workers) - 1
            self._ask(number, share_s, size_bytes, ends_with if is_last else "")

    def _ask(self, number: int, takes_s: float, size_bytes: int, ends_with: str) -> None:
        worker = self.workers[number]
        rate = worker.bytes_per_s
        self.stages.append(Stage(number, size_bytes / rate, carries_bytes_per_s=rate))
        takes_s *= worker.slowness * self.rng.uniform(0.7, 1.3)
        self.stages.append(Stage(number, takes_s, ends_with="answer"))
        self.stages.append(Stage(None, self.rng.uniform(0, 0.01), ends_with=ends_with))

    # -- time ------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            step_s = min(until_s - self.now_s, 0.5)
            if self.frozen:
                self._pass(step_s, None)
            elif self.stages:
                stage = self.stages[0]
                step_s = min(step_s, stage.left_s)
                self._pass(step_s, stage)
                stage.left_s -= step_s
                if stage.left_s <= 1e-9:
                    self._end(self.stages.pop(0))
            elif self.idle_s > 0:
                step_s = min(step_s, self.idle_s)
                self._pass(step_s, None)
                self.idle_s -= step_s
            else:
                self._next_step()

    def _pass(self, step_s: float, stage: Stage | None) -> None:
        self.now_s += step_s
        for worker in self.workers:
            worker.sent += BEAT_BYTES * step_s
            worker.received += BEAT_BYTES * step_s
        if self.frozen == "engine loops":
            self.engine_cpu_s += step_s
        if stage is None:
            return
        if stage.who is None:
            self.engine_cpu_s += step_s
            return
        worker = self.workers[stage.who]
        if worker.asked_at_s is None:
            worker.asked_at_s = self.now_s - step_s
            reads = self.slot.is_busy and self.slot.decoded_tokens == 0
            worker.phase = "prefill" if reads else "decode"
        worker.sent += stage.carries_bytes_per_s * step_s
        if not stage.carries_bytes_per_s and worker.is_cpu:
            worker.cpu_s += step_s

    def _end(self, stage: Stage) -> None:
        if stage.ends_with == "answer" and stage.who is not None:
            worker = self.workers[stage.who]
            worker.answers += 1
            worker.received += 5000
            worker.asked_at_s, worker.phase = None, "idle"
        elif stage.ends_with in ("token", "prompt"):
            old = self.slot
            taken = old.prompt_tokens
            self.slot = SlotState(0, old.task, True, old.decoded_tokens + 1, taken, taken)

    def freeze(self, how: str) -> int | None:
        """From now on nothing moves; says which worker it is about.

        Workers that are well end what they do, and then nobody asks them for more.
        """
        self.frozen = how
        number = next((s.who for s in self.stages if s.who is not None), None)
        if how == "engine stopped":
            self.engine_letter = "T"
        elif how == "worker stopped":
            number = self.rng.randrange(len(self.workers))
            self.workers[number].letter = "T"
        for other, worker in enumerate(self.workers):
            if "worker" not in how or other != number:
                worker.asked_at_s = None
            elif how == "worker stuck" and worker.asked_at_s is None:
                worker.asked_at_s = self.now_s
        return number

    # -- looking ---------------------------------------------------------------------------

    def look(self, asks_every_s: float = 1.0) -> Look:
        """What is seen now; agents are asked no more often than that."""
        shows = not (self.is_old_engine and (self.stages or self.frozen))
        if self.engine_letter == "T":
            shows = False
        return Look(
            slots=(self.slot,) if shows else None,
            engine_state=self.engine_letter,
            engine_cpu_s=round(self.engine_cpu_s, 2),
            workers=tuple(self._look_at(worker, asks_every_s) for worker in self.workers),
        )

    def _look_at(self, worker: SimulatedWorker, asks_every_s: float) -> WorkerLook:
        if self.now_s - worker.told_at_s >= asks_every_s:
            worker.told_at_s = self.now_s
            worker.told = RpcServerStatus(
                WorkerState.READY, cpu_s=round(worker.cpu_s, 2), process_state=worker.letter
            )
        waiting_s = 0.0 if worker.asked_at_s is None else self.now_s - worker.asked_at_s
        link = LinkStats(
            worker.agent_id,
            phase=worker.phase,
            waiting_s=waiting_s,
            sent_bytes=int(worker.sent),
            received_bytes=int(worker.received),
            answers=worker.answers,
        )
        return WorkerLook(
            worker.agent_id,
            worker.is_cpu,
            link if self.is_linked else None,
            worker.told,
            worker.told_at_s,
        )
