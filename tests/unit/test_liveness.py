"""Whether a deployment is stuck, rule by rule: what each kind of evidence says, and what not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from agents.contract import RpcServerStatus, WorkerState
from supervisor.core import liveness
from supervisor.core.entities import AgentId, ModelFacts, Plan, Prediction
from supervisor.core.liveness import Alive, FrozenEngine, FrozenWorker, Hung, Limits, Look
from supervisor.core.slots import SlotState
from supervisor.core.step_time import Expected, expected
from supervisor.core.worker_liveness import WorkerLook
from supervisor.link.job import LinkStats

LIMITS: Final = Limits(frozen_after_s=3.0, hang_factor=5.0, hang_least_s=20.0)
QUICK: Final = Expected(
    token_s=0.1, prompt_token_s=0.01, ubatch_tokens=512, most_prompt_tokens=4096
)
"""A limit of 20 s for decode, 25.6 s for the shortest prompt, 205 s for one of unknown length."""

PHONE, GPU = AgentId("phone"), AgentId("gpu")
BEAT_BYTES: Final = 60
IDLE: Final = SlotState(0, 7, is_busy=False)
READING: Final = SlotState(0, 8, True, prompt_tokens=512)
ANSWERING: Final = SlotState(0, 8, True, 20, 512, 512)


class Scene:
    """A deployment whose parts each test moves by hand, looked at once a second."""

    def __init__(self, *slots: SlotState, plan: Expected = QUICK) -> None:
        self.now_s = 1000.0
        self.plan = plan
        self.state = liveness.begin(self.now_s)
        self.slots: tuple[SlotState, ...] | None = slots
        self.engine_state = "S"
        self.engine_cpu_s = 5.0
        self.is_cpu = {PHONE: True, GPU: False}
        self.links = {a: LinkStats(a, sent_bytes=9 << 20, answers=5) for a in (PHONE, GPU)}
        self.statuses = {
            a: RpcServerStatus(WorkerState.READY, cpu_s=30.0, process_state="S")
            for a in (PHONE, GPU)
        }
        self.is_linked = True
        self.agents_answer = True
        self.asked_at_s = self.now_s

    def link(self, agent_id: AgentId, **changes: object) -> None:
        self.links[agent_id] = replace(self.links[agent_id], **changes)  # type: ignore[arg-type]

    def computes(self, agent_id: AgentId, seconds: float = 0.9) -> None:
        cpu_s = (self.statuses[agent_id].cpu_s or 0.0) + seconds
        self.statuses[agent_id] = replace(self.statuses[agent_id], cpu_s=cpu_s)

    def is_in_state(self, agent_id: AgentId, letter: str) -> None:
        self.statuses[agent_id] = replace(self.statuses[agent_id], process_state=letter)

    def owes(self, agent_id: AgentId) -> None:
        """From now on, until ``answers``."""
        self.link(agent_id, waiting_s=0.001)

    def answers(self, agent_id: AgentId) -> None:
        self.link(agent_id, answers=self.links[agent_id].answers + 1, waiting_s=0.0)

    def travels(self, agent_id: AgentId, size_bytes: int) -> None:
        self.link(agent_id, sent_bytes=self.links[agent_id].sent_bytes + size_bytes)

    def generates(self, slot_id: int = 0, tokens: int = 5) -> None:
        assert self.slots is not None
        self.slots = tuple(
            replace(slot, decoded_tokens=slot.decoded_tokens + tokens)
            if slot.id == slot_id
            else slot
            for slot in self.slots
        )

    def look(self, gap_s: float = 1.0, *, beats: bool = True) -> liveness.Verdict:
        self.now_s += gap_s
        for agent_id, link in self.links.items():
            if link.waiting_s:
                self.link(agent_id, waiting_s=link.waiting_s + gap_s)
            if beats:
                self.link(agent_id, received_bytes=link.received_bytes + BEAT_BYTES)
        if self.agents_answer:
            self.asked_at_s = self.now_s
        workers = tuple(
            WorkerLook(
                agent_id,
                self.is_cpu[agent_id],
                link if self.is_linked else None,
                self.statuses[agent_id],
                self.asked_at_s,
            )
            for agent_id, link in self.links.items()
        )
        seen = Look(self.slots, self.engine_state, self.engine_cpu_s, workers)
        self.state = liveness.observe(self.state, seen, self.now_s)
        return liveness.verdict(self.state, self.plan, LIMITS)

    def watch(
        self, seconds: int, each: Callable[[], None] = lambda: None, *, beats: bool = True
    ) -> tuple[liveness.Verdict, int]:
        """Look every second until there is something to say; also how long that took."""
        for second in range(1, seconds + 1):
            each()
            verdict = self.look(beats=beats)
            if not isinstance(verdict, Alive):
                return verdict, second
        return Alive(), seconds


# -- processes that are stopped ------------------------------------------------------------------


def test_a_stopped_llama_server_is_frozen_whatever_it_does() -> None:
    scene = Scene(IDLE)
    scene.watch(5)
    scene.engine_state, scene.slots = "T", None
    verdict, took_s = scene.watch(60)
    assert isinstance(verdict, FrozenEngine)
    assert verdict.stopped_s == 3.0
    assert took_s == 4


def test_a_llama_server_that_goes_on_in_time_is_not_frozen() -> None:
    scene = Scene(IDLE)
    for letter in "TTTSTTTS" * 5:
        scene.engine_state = letter
        assert scene.look() == Alive()


@pytest.mark.parametrize("slot", [IDLE, ANSWERING], ids=["idle", "busy"])
@pytest.mark.parametrize("agent_id", [PHONE, GPU])
@pytest.mark.parametrize("letter", ["T", "t"])
def test_a_stopped_rpc_server_is_frozen_work_or_not(
    slot: SlotState, agent_id: AgentId, letter: str
) -> None:
    scene = Scene(slot)
    scene.watch(5)
    scene.is_in_state(agent_id, letter)
    verdict, took_s = scene.watch(60)
    assert verdict == FrozenWorker(agent_id, "its process has been stopped for 3.0 s")
    assert took_s == 4


def test_one_word_of_an_agent_is_not_enough() -> None:
    """It may go on the moment after; only its agent can say that it did not."""
    scene = Scene(IDLE)
    scene.watch(5)
    scene.is_in_state(PHONE, "T")
    scene.look()
    scene.agents_answer = False
    assert scene.watch(30) == (Alive(), 30)
    scene.agents_answer = True
    assert isinstance(scene.look(), FrozenWorker)


# -- a CPU worker that owes an answer ------------------------------------------------------------


def owing(agent_id: AgentId, slot: SlotState = ANSWERING) -> Scene:
    """All was well until that worker was asked, a moment ago."""
    scene = Scene(slot)
    scene.watch(5, lambda: scene.answers(agent_id))
    scene.owes(agent_id)
    return scene


def test_a_cpu_worker_that_owes_and_does_nothing_is_frozen() -> None:
    scene = owing(PHONE)
    verdict, took_s = scene.watch(60)
    assert isinstance(verdict, FrozenWorker)
    assert verdict.agent_id == PHONE
    assert "used no processor time" in verdict.why
    assert took_s == 3


def test_a_cpu_worker_that_computes_is_not_frozen() -> None:
    scene = owing(PHONE)
    assert scene.watch(19, lambda: scene.computes(PHONE, 0.01)) == (Alive(), 19)


def test_one_that_swaps_is_left_to_the_time_rule() -> None:
    scene = owing(PHONE)
    scene.is_in_state(PHONE, "D")
    verdict, took_s = scene.watch(60)
    assert isinstance(verdict, Hung)
    assert took_s == 20


def test_words_of_before_the_question_prove_nothing() -> None:
    scene = owing(PHONE)
    scene.agents_answer = False
    verdict, took_s = scene.watch(60)
    assert isinstance(verdict, Hung)
    assert took_s == 20


def test_a_silent_link_may_hold_the_answer_back() -> None:
    """Its own limit of silence will tell; its agent may be reached sooner on another connection."""
    scene = owing(PHONE)
    assert scene.watch(8, beats=False)[0] == Alive()


def test_what_was_answered_has_arrived() -> None:
    scene = Scene(ANSWERING)
    scene.look()
    scene.travels(PHONE, 20 << 20)
    scene.answers(PHONE)
    scene.look()
    scene.owes(PHONE)
    verdict, took_s = scene.watch(60)
    assert isinstance(verdict, FrozenWorker)
    assert took_s == 3


def test_what_was_sent_last_may_still_travel() -> None:
    """Five MiB fit into the buffers of an operating system, and travel ten seconds on bad Wi-Fi."""
    scene = owing(PHONE, READING)
    scene.travels(PHONE, 20 << 20)
    verdict, took_s = scene.watch(60)
    assert isinstance(verdict, FrozenWorker)
    assert took_s == 14


def test_a_gpu_worker_computes_without_processor_time() -> None:
    scene = owing(GPU)
    verdict, took_s = scene.watch(60)
    assert verdict == Hung(slot=0, waited_s=20.0, expected_s=1.0, agent_id=GPU)
    assert took_s == 20


# -- the time rule -------------------------------------------------------------------------------


def test_an_idle_deployment_never_hangs() -> None:
    assert Scene(IDLE).watch(3600) == (Alive(), 3600)


def test_what_a_link_waits_for_is_nothing_while_llama_server_says_idle() -> None:
    scene = Scene(IDLE)
    scene.owes(PHONE)
    assert scene.watch(600) == (Alive(), 600)


def test_a_long_prompt_on_a_slow_phone_is_alive_for_ten_minutes() -> None:
    """It was predicted to take 30 s, and nothing moves but the phone's processor time."""
    scene = Scene(replace(READING, prompt_tokens=3000))
    scene.owes(PHONE)
    assert scene.watch(600, lambda: scene.computes(PHONE)) == (Alive(), 600)


def test_computing_for_ever_is_a_loop() -> None:
    scene = Scene(READING)
    scene.owes(PHONE)
    verdict, took_s = scene.watch(3600, lambda: scene.computes(PHONE))
    assert isinstance(verdict, Hung)
    assert verdict.agent_id == PHONE
    assert took_s == 256 + 1  # ten limits of 25.6 s, from the first look on


def test_only_who_is_awaited_may_compute() -> None:
    """The worker before it in the chain still works on what it was sent."""
    scene = owing(GPU)
    verdict, took_s = scene.watch(60, lambda: scene.computes(PHONE))
    assert isinstance(verdict, Hung)
    assert verdict.agent_id == GPU
    assert took_s == 20


def test_without_links_any_processor_time_may_be_for_it() -> None:
    scene = Scene(READING)
    scene.is_linked = False
    assert scene.watch(200, lambda: scene.computes(PHONE)) == (Alive(), 200)
    verdict, took_s = scene.watch(60)
    assert isinstance(verdict, Hung)
    assert verdict.agent_id == ""
    assert took_s == 26


@pytest.mark.parametrize(("cpu_s_per_look", "is_life"), [(0.9, True), (0.03, False)])
def test_llama_server_itself_may_compute_unless_that_is_our_questions(
    cpu_s_per_look: float, is_life: bool
) -> None:
    scene = Scene(READING)

    def compute() -> None:
        scene.engine_cpu_s += cpu_s_per_look

    assert (scene.watch(100, compute)[0] == Alive()) is is_life


def test_llama_server_that_spins_for_an_answer_is_not_at_work() -> None:
    scene = owing(GPU)

    def spin() -> None:
        scene.engine_cpu_s += 0.9

    verdict, took_s = scene.watch(60, spin)
    assert isinstance(verdict, Hung)
    assert took_s == 20


def test_a_link_that_trickles_is_alive() -> None:
    scene = owing(GPU, READING)
    assert scene.watch(600, lambda: scene.travels(GPU, 2000)) == (Alive(), 600)


def test_beats_are_no_work() -> None:
    """A healthy link says a few dozen bytes a second whatever the rpc-server does."""
    scene = owing(GPU, READING)
    verdict, took_s = scene.watch(60)
    assert isinstance(verdict, Hung)
    assert took_s == 26


def test_answers_are_movement_though_no_slot_moves() -> None:
    """The first worker of a chain answers after each ubatch of a long prompt."""
    scene = Scene(replace(READING, prompt_tokens=2048))

    def step() -> None:
        if int(scene.now_s) % 15 == 0:
            scene.answers(GPU)

    assert scene.watch(900, step) == (Alive(), 900)


def test_the_limit_of_a_prompt_covers_all_of_it() -> None:
    """The only worker answers at the end: 3900 tokens at 100 per second are 39 s, times 5."""
    scene = owing(GPU, replace(READING, prompt_tokens=3900, prompt_done_tokens=2048))
    verdict, took_s = scene.watch(600)
    assert isinstance(verdict, Hung)
    assert verdict.expected_s == pytest.approx(39)
    assert took_s == 195


def test_a_guess_counts_four_times() -> None:
    scene = Scene(READING, plan=replace(QUICK, is_guess=True))
    verdict, took_s = scene.watch(600)
    assert isinstance(verdict, Hung)
    assert took_s == 103 + 1  # 5 times 4 times 5.12 s, from the first look on


def test_what_was_slow_lately_may_be_so_again_and_is_forgotten_in_the_end() -> None:
    scene = Scene(ANSWERING)
    scene.look()
    scene.watch(15)
    scene.generates()
    scene.look()
    for second in range(1, 81):
        assert isinstance(scene.look(), Hung) is (second >= 80)  # five times the 16 s of that step
    scene.watch(600, scene.generates)
    verdict, took_s = scene.watch(600)
    assert isinstance(verdict, Hung)
    assert took_s == 20


def test_a_plan_predicts_a_step() -> None:
    facts = ModelFacts(path="m", name="m", architecture="llama", block_count=2, size_bytes=1)
    plan = Plan(model=facts, ctx_tokens=8192, slots=4, ubatch=256, shards=())
    prediction = Prediction(
        decode_tokens_per_s=8.0,
        prefill_tokens_per_s=50.0,
        load_s=1.0,
        prompt_tokens=100,
        users=4,
        output_s=0.0,
        stages=(),
        is_guess=False,
    )
    predicted = plan.model_copy(update={"prediction": prediction})
    assert expected(predicted) == Expected(0.5, 0.02, 256, 8192, is_guess=False)
    assert expected(plan).is_guess


# -- what is seen ever so often ------------------------------------------------------------------


def test_a_pause_of_our_own_restarts_every_clock() -> None:
    scene = owing(GPU)
    assert scene.watch(18) == (Alive(), 18)
    scene.engine_state = "T"
    scene.is_in_state(PHONE, "T")
    scene.look()
    assert scene.look(gap_s=100) == Alive()
    scene.engine_state = "S"
    scene.is_in_state(PHONE, "S")
    verdict, took_s = scene.watch(60)
    assert isinstance(verdict, Hung)
    assert took_s == 20


def test_a_pause_of_our_own_is_not_slowness() -> None:
    scene = Scene(ANSWERING)
    assert scene.watch(120, scene.generates) == (Alive(), 120)
    assert scene.look(gap_s=100) == Alive()


def test_looks_that_are_always_slow_are_no_pauses() -> None:
    scene = owing(GPU)
    verdicts = [scene.look(gap_s=6) for _ in range(8)]
    assert isinstance(verdicts[-1], Hung)


def test_slots_that_do_not_answer_are_alive_while_links_move() -> None:
    """An older engine does not answer while the devices compute a batch."""
    scene = Scene(IDLE)
    scene.look()
    scene.slots = None
    assert scene.watch(600, lambda: scene.answers(GPU)) == (Alive(), 600)
    assert not liveness.is_idle(scene.state)


@pytest.mark.parametrize(("phase", "limit_s"), [("decode", 20), ("prefill", 205)])
def test_slots_that_do_not_answer_while_nothing_moves_are_hung(phase: str, limit_s: int) -> None:
    scene = Scene(IDLE)
    scene.look()
    scene.slots = None
    scene.owes(GPU)
    scene.link(GPU, phase=phase)
    verdict, took_s = scene.watch(600)
    assert verdict == Hung(None, limit_s, QUICK.token_s if limit_s == 20 else 40.96, GPU)
    assert took_s == limit_s


def test_without_links_silence_of_the_slots_is_all_there_is() -> None:
    scene = Scene(IDLE)
    scene.is_linked = False
    scene.look()
    scene.slots = None
    verdict, took_s = scene.watch(600)
    assert verdict == Hung(None, 205.0, 40.96, AgentId(""))
    assert took_s == 205


def test_an_engine_that_never_shows_slots_is_not_busy_for_that() -> None:
    """501; what its links owe still counts."""
    scene = Scene()
    scene.slots = None
    assert scene.watch(600) == (Alive(), 600)
    scene.owes(GPU)
    scene.link(GPU, phase="decode")
    assert isinstance(scene.watch(600)[0], Hung)


def test_a_slot_waits_while_another_moves_and_is_stuck_when_that_is_done() -> None:
    """It may wait for the other's prompt; ending the launch would end both."""
    scene = Scene(ANSWERING, SlotState(1, 9, True, 3, 40, 40))
    assert scene.watch(600, scene.generates) == (Alive(), 600)
    scene.slots = (IDLE, SlotState(1, 9, True, 3, 40, 40))
    verdict, took_s = scene.watch(600)
    assert isinstance(verdict, Hung)
    assert verdict.slot == 1
    assert took_s == 21


def test_of_two_stuck_slots_the_older_one_is_named() -> None:
    scene = Scene(ANSWERING, SlotState(1, 9, True, 3, 40, 40))
    scene.watch(10, scene.generates)
    verdict, _ = scene.watch(600)
    assert isinstance(verdict, Hung)
    assert verdict.slot == 1


# -- what else others want to know ---------------------------------------------------------------


def test_a_canary_is_due_only_when_idle_and_unproven() -> None:
    def due() -> bool:
        return liveness.canary_due(scene.state, scene.now_s, 300.0)

    scene = Scene(IDLE)
    scene.watch(299)
    assert not due()
    scene.look()
    assert due()
    scene.slots = (READING,)
    scene.look()
    assert not due(), "never while anything is busy"
    scene.slots = None
    scene.look()
    assert not due(), "nor when nobody knows"
    scene.slots = (IDLE,)
    scene.look()
    assert due(), "a request that got no token proves nothing"
    scene.slots = (ANSWERING,)
    scene.look()
    scene.generates()
    scene.look()
    scene.slots = (IDLE,)
    scene.watch(290)
    assert not due(), "recent success"
    scene.watch(20)
    assert due()
    scene.state = liveness.proven(scene.state, scene.now_s)
    assert not due()
    scene.watch(200)
    scene.answers(PHONE)
    scene.watch(200)
    assert not due(), "a request too short for any look, but a worker answered"


def test_idle_is_what_llama_server_says_now() -> None:
    scene = Scene(IDLE)
    assert not liveness.is_idle(scene.state)
    scene.look()
    assert liveness.is_idle(scene.state)
    scene.slots = (IDLE, replace(READING, id=1))
    scene.look()
    assert not liveness.is_idle(scene.state)
    scene.slots = None
    scene.look()
    assert not liveness.is_idle(scene.state)


def test_agents_of_workers_that_owe_or_stand_are_worth_asking() -> None:
    scene = Scene(ANSWERING)
    scene.look()
    assert liveness.suspects(scene.state) == set()
    scene.owes(GPU)
    scene.is_in_state(PHONE, "T")
    scene.look()
    assert liveness.suspects(scene.state) == {GPU, PHONE}
