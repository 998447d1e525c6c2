"""What is learned of devices that failed, how long it counts, and that no clock can undo that."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.contract import DeviceFacts, EngineFacts
from supervisor.adapters.store import Store
from supervisor.core.entities import (
    Action,
    AgentId,
    Cause,
    HostShare,
    ModelFacts,
    Plan,
    Shard,
)
from supervisor.core.lessons import (
    CALM_S,
    FORGIVEN_AFTER_S,
    LEAST_FACTOR,
    LEAST_UBATCH,
    MAIN_HOST,
    Lesson,
    aside_left_s,
    is_loss,
    learned,
    memory_factor,
    usable_bytes,
    why_aside,
    why_excluded,
    why_less_memory,
    why_smaller_steps,
)
from supervisor.core.memory import GIB, Platform, margin_bytes
from supervisor.settings import Settings

PI = AgentId("id-pi")
NOW_S = 1_795_132_800.0  # 2026-11-20
HOUR_S, DAY_S, YEAR_S = 3600.0, 86_400.0, 365 * 86_400.0
MODEL = ModelFacts(path="/m", name="m", architecture="llama", block_count=8, size_bytes=9)
ENGINE = EngineFacts("/opt", "PATH", build="b1", rpc_protocol="7.0.0")
OTHER = EngineFacts("/opt", "PATH", build="b2", rpc_protocol="7.0.0")
FACTS = DeviceFacts(PI, "pi", "linux", memory_total_bytes=8 * GIB, engine=ENGINE)
NEW = Lesson(agent_id=PI)


@dataclass(frozen=True)
class Limits:
    """As the settings have them by default."""

    flaps: int = 3
    flap_window_s: float = 600.0
    aside_first_s: float = 60.0
    aside_longest_s: float = 3600.0


LIMITS = Limits()


def cause(code: str = "worker_lost", action: Action = Action.RETRY) -> Cause:
    return Cause(code=code, sentence="pi was lost", action=action, agent_id=PI, device="pi")


def plan(ubatch: int = 512, ctx_tokens: int = 4096, peak_bytes: int = 2 * GIB) -> Plan:
    shard = Shard(
        agent_id=PI, device="pi", ggml_device="CPU", host="h", layers=9, peak_bytes=peak_bytes
    )
    return Plan(
        model=MODEL,
        ctx_tokens=ctx_tokens,
        slots=1,
        ubatch=ubatch,
        shards=(shard,),
        host=HostShare(peak_bytes=peak_bytes),
    )


def after(lesson: Lesson, *ages_s: float, now_s: float = NOW_S, limits: Limits = LIMITS) -> Lesson:
    """The lesson after losses of those ages, in that order."""
    for age_s in ages_s:
        lesson = learned(lesson, cause(), plan(), now_s - age_s, limits)
    return lesson


def killed(lesson: Lesson = NEW, now_s: float = NOW_S, peak_bytes: int = 2 * GIB) -> Lesson:
    why = cause("worker_out_of_memory", Action.SMALLER_SHARE)
    return learned(lesson, why, plan(peak_bytes=peak_bytes), now_s, LIMITS, facts=FACTS)


# -- losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("worker_lost", True),
        ("worker_killed", True),
        ("worker_frozen", True),
        ("worker_out_of_memory", True),
        ("link_lost", True),
        ("link_black_hole", True),
        ("agent_restarted", True),
        ("agent_unreachable", True),
        ("link_process_ended", False),
        ("link_process_frozen", False),
        ("worker_incompatible", False),
        ("engine_exited", False),
        ("gpu_timeout", False),
    ],
)
def test_what_counts_as_the_loss_of_a_device(code: str, expected: bool) -> None:
    assert is_loss(code) is expected
    found = learned(NEW, cause(code), plan(), NOW_S, LIMITS)
    assert bool(found.losses) is expected


@pytest.mark.parametrize(
    ("ages_s", "left_s"),
    [
        ((0,), None),
        ((10, 0), None),
        ((20, 10, 0), 60.0),
        ((599, 300, 0), 60.0),
        ((601, 300, 0), None),  # too long ago
        ((20, 10, 5), 55.0),
        ((90, 80, 60), None),  # it has served its time
        ((90, 80, 70, 0), 120.0),  # and failed again within the window: twice as long
        ((90, 80, 70, 60, 0), 240.0),
        ((2000, 1990, 1980, 0), None),  # one loss long after is no flapping yet
        ((2000, 1990, 1980, 20, 10, 0), 120.0),
    ],
)
def test_a_flapping_device_is_set_aside_for_a_growing_time(
    ages_s: tuple[float, ...], left_s: float | None
) -> None:
    assert aside_left_s(after(NEW, *ages_s), NOW_S) == left_s


def test_a_device_that_was_parked_rests_longer_each_time() -> None:
    """Else one that is hot whenever it serves would come and go for ever."""
    lesson, now_s = NEW, NOW_S
    for expected_s in (60.0, 120.0, 240.0):
        now_s += 1000
        lesson = learned(lesson, cause("device_parked"), plan(), now_s, LIMITS)
        assert aside_left_s(lesson, now_s) == expected_s
        assert "parked while it served" in why_aside(lesson, now_s)
    now_s += 2 * 86_400
    lesson = learned(lesson, cause("device_parked"), plan(), now_s, LIMITS)
    assert aside_left_s(lesson, now_s) == 60.0


def test_it_grows_up_to_a_limit_and_is_forgiven_after_a_calm_day() -> None:
    lesson, at_s, lengths = NEW, NOW_S, []
    for _ in range(40):
        for _ in range(3):
            at_s += 5.0
            lesson = learned(lesson, cause(), plan(), at_s, LIMITS)
        lengths.append(lesson.aside_s)
        at_s += lesson.aside_s  # it is tried again as soon as it may be
    assert lengths == sorted(lengths)
    assert lengths[0] == 60.0
    assert lengths[-1] == 3600.0
    calm = at_s + CALM_S + 1
    again = after(lesson, 20, 10, 0, now_s=calm)
    assert aside_left_s(again, calm) == 60.0


def test_the_reason_has_the_numbers_and_the_date() -> None:
    lesson = after(NEW, 30, 20, 15)
    assert why_aside(lesson, NOW_S) == (
        "set aside for 60 seconds, 45 seconds more, after 3 losses in 10 minutes, the last one"
        " on 2026-11-19"
    )
    assert why_aside(lesson, NOW_S + 46) == ""
    assert why_aside(NEW, NOW_S) == ""


def test_one_loss_may_be_enough_if_so_set() -> None:
    lesson = after(NEW, 0, limits=Limits(flaps=1))
    assert "after 1 loss in 10 minutes" in why_aside(lesson, NOW_S)


def test_the_settings_are_such_limits(tmp_path: Path) -> None:
    settings = Settings(data_folder=tmp_path)
    lesson = NEW
    for _ in range(settings.flaps):
        lesson = learned(lesson, cause(), plan(), NOW_S, settings)
    assert aside_left_s(lesson, NOW_S) == settings.aside_first_s


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S, -10 * YEAR_S, 10 * YEAR_S, -30.0])
def test_a_clock_that_is_set_shuts_nobody_out(step_s: float) -> None:
    lesson = after(NEW, 20, 10, 0)
    set_to_s = NOW_S + step_s
    lefts = [aside_left_s(lesson, set_to_s + passed_s) for passed_s in range(7200)]
    assert sum(left is not None for left in lefts) <= 60
    assert all(left is None or left <= 60 for left in lefts)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 30.0, 700.0, -HOUR_S, HOUR_S, -YEAR_S, YEAR_S])),
        max_size=30,
    ),
    look_s=st.floats(-2 * YEAR_S, 2 * YEAR_S),
)
def test_whatever_the_clock_does_no_punishment_is_longer_than_the_longest(
    steps: list[tuple[float]], look_s: float
) -> None:
    lesson, now_s = NEW, NOW_S
    for (step_s,) in steps:
        now_s += step_s
        lesson = learned(lesson, cause(), plan(), now_s, LIMITS)
        assert len(lesson.losses) <= LIMITS.flaps
        assert 0 <= lesson.aside_s <= LIMITS.aside_longest_s
    left_s = aside_left_s(lesson, now_s + look_s)
    assert left_s is None or 0 < left_s <= lesson.aside_s


# -- remedies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "ubatch", "ctx_tokens", "cap"),
    [
        (None, 512, 4096, 256),
        (256, 256, 4096, 128),
        (None, 40, 4096, LEAST_UBATCH),
        (32, 32, 4096, LEAST_UBATCH),
        (128, 512, 4096, 128),  # the operator insisted on 512: what was known stays true
        (None, 512, 256, 128),  # no more than the context was computed at once
    ],
)
def test_a_gpu_that_timed_out_gets_smaller_steps(
    known: int | None, ubatch: int, ctx_tokens: int, cap: int
) -> None:
    lesson = Lesson(agent_id=PI, ubatch_cap=known)
    why = cause("gpu_timeout", Action.SMALLER_UBATCH)
    found = learned(lesson, why, plan(ubatch, ctx_tokens), NOW_S, LIMITS)
    assert found.ubatch_cap == cap
    assert found.losses == (), "it is not flapping: the next attempt is another one"
    used = min(ubatch, ctx_tokens)
    assert why_smaller_steps(found) == (
        f"it failed with {used} tokens at once on 2026-11-20: at most {cap} of them are computed at"
        " once now"
    )


@given(st.lists(st.integers(32, 8192), max_size=12))
def test_steps_never_grow_again(ubatches: list[int]) -> None:
    lesson, why = NEW, cause("gpu_timeout", Action.SMALLER_UBATCH)
    for ubatch in ubatches:
        found = learned(lesson, why, plan(ubatch), NOW_S, LIMITS)
        assert found.ubatch_cap is not None
        assert LEAST_UBATCH <= found.ubatch_cap <= max(LEAST_UBATCH, ubatch // 2)
        assert lesson.ubatch_cap is None or found.ubatch_cap <= lesson.ubatch_cap
        lesson = found


def offered(lesson: Lesson, available_bytes: int, now_s: float = NOW_S) -> int:
    factor = memory_factor(lesson, now_s, 8 * GIB)
    return usable_bytes(lesson, "CPU", Platform.CPU, available_bytes, factor=factor)


def budget(lesson: Lesson, available_bytes: int, now_s: float = NOW_S) -> int:
    found = offered(lesson, available_bytes, now_s)
    return found - margin_bytes(Platform.CPU, found)


@pytest.mark.parametrize("available_gib", [3, 6, 64])
def test_a_worker_that_was_killed_for_memory_gets_less_than_it_had(available_gib: int) -> None:
    """However much memory seems to be free: after a kill it says little."""
    found = killed()
    assert found.memory_factor == 0.8
    assert budget(found, available_gib * GIB) <= 0.8 * 2 * GIB
    assert offered(found, available_gib * GIB) <= 0.8 * available_gib * GIB


def test_the_share_is_forgiven_in_the_same_steps() -> None:
    lesson = killed(killed())
    now, later = (budget(lesson, 64 * GIB, NOW_S + w * FORGIVEN_AFTER_S) for w in (0, 1))
    assert now == pytest.approx(0.8 * 2 * GIB, rel=0.01)
    assert later == pytest.approx(2 * GIB, rel=0.01)


def test_each_kill_makes_the_share_smaller() -> None:
    lesson, has_bytes = NEW, 8 * GIB
    budgets = []
    for _ in range(12):
        budgets.append(budget(lesson, has_bytes))
        lesson = killed(lesson, peak_bytes=max(budgets[-1], 1))
        assert lesson.memory_factor >= LEAST_FACTOR
    assert budgets == sorted(budgets, reverse=True)
    assert len(set(budgets)) == len(budgets)


@pytest.mark.parametrize(
    ("kills", "weeks", "factor"),
    [(1, 0, 0.8), (1, 1, 1.0), (2, 0, 0.64), (2, 1, 0.8), (2, 2, 1.0), (20, 0, 0.3), (20, 9, 1.0)],
)
def test_a_kill_is_forgiven_step_by_step(kills: int, weeks: int, factor: float) -> None:
    lesson = NEW
    for _ in range(kills):
        lesson = killed(lesson)
    then_s = NOW_S + weeks * FORGIVEN_AFTER_S
    assert memory_factor(lesson, then_s, 8 * GIB) == pytest.approx(factor)
    assert memory_factor(lesson, then_s - 1, 8 * GIB) <= memory_factor(lesson, then_s, 8 * GIB)
    if factor == 1.0:
        assert offered(lesson, 64 * GIB, then_s) == 64 * GIB
        assert why_less_memory(lesson, factor) == ""


@pytest.mark.parametrize(
    ("total_gib", "factor"), [(8.0, 0.8), (7.9, 0.8), (0.0, 0.8), (16.0, 1.0), (4.0, 1.0)]
)
def test_other_memory_is_another_device(total_gib: float, factor: float) -> None:
    assert memory_factor(killed(), NOW_S, int(total_gib * GIB)) == factor


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S, -YEAR_S, YEAR_S])
def test_a_clock_that_is_set_neither_keeps_a_share_small_nor_forgives_too_soon(
    step_s: float,
) -> None:
    expected = 0.8 if abs(step_s) < FORGIVEN_AFTER_S else 1.0
    assert memory_factor(killed(), NOW_S + step_s, 8 * GIB) == pytest.approx(expected)


def test_a_share_that_is_not_known_counts_by_its_part_alone() -> None:
    found = killed(peak_bytes=0)
    assert found.share_bytes == {}
    assert offered(found, 10 * GIB) == 8 * GIB
    assert usable_bytes(found, "CUDA0", Platform.GPU, 10 * GIB, factor=0.8) == 8 * GIB


def test_the_reason_for_a_smaller_share_has_the_date_and_the_part() -> None:
    found = killed()
    assert why_less_memory(found, 0.8) == (
        "its rpc-server was killed for want of memory on 2026-11-20: 80% of its memory is used,"
        " and less than it had then"
    )


def test_the_main_host_has_lessons_too_but_is_never_lost() -> None:
    why = Cause(code="host_out_of_memory", sentence="x", action=Action.SMALLER_SHARE)
    found = learned(Lesson(agent_id=MAIN_HOST), why, plan(), NOW_S, LIMITS)
    assert found.memory_factor == 0.8
    assert found.share_bytes == {"": int(1.6 * GIB)}
    lost = Cause(code="link_lost", sentence="x", action=Action.EXCLUDE)
    for _ in range(5):
        found = learned(found, lost, plan(), NOW_S, LIMITS)
    assert found.losses == ()
    assert found.engine_build_refused == ""


# -- builds ----------------------------------------------------------------------------------------


def test_a_build_that_does_not_match_is_excluded_until_either_is_another() -> None:
    why = cause("worker_incompatible", Action.EXCLUDE)
    found = learned(NEW, why, plan(), NOW_S, LIMITS, facts=FACTS, main_engine=OTHER)
    says = why_excluded(found, ENGINE, OTHER)
    assert "b1 (RPC 7.0.0) beside the main host's b2 (RPC 7.0.0), failed on 2026-11-20" in says
    assert "install the same llama.cpp build on both" in says
    assert why_excluded(found, OTHER, OTHER) == "", "the device has another build"
    assert why_excluded(found, ENGINE, ENGINE) == "", "the main host has another build"
    assert why_excluded(found, None, OTHER) == ""
    assert why_excluded(NEW, ENGINE, OTHER) == ""


def test_unknown_builds_are_excluded_as_such() -> None:
    why = cause("worker_incompatible", Action.EXCLUDE)
    found = learned(NEW, why, plan(), NOW_S, LIMITS)
    assert "an unknown build" in why_excluded(found, None, None)
    assert why_excluded(found, ENGINE, None) == ""


# -- keeping ---------------------------------------------------------------------------------------


def test_a_failure_that_teaches_nothing_changes_nothing() -> None:
    for action in (Action.RETRY, Action.GIVE_UP):
        assert learned(NEW, cause("engine_exited", action), plan(), NOW_S, LIMITS) == NEW


def test_lessons_come_back_as_they_were_saved(tmp_path: Path) -> None:
    lesson = after(killed(), 20, 10, 0.25)
    gpu = cause("gpu_timeout", Action.SMALLER_UBATCH)
    lesson = learned(lesson, gpu, plan(), NOW_S, LIMITS)
    wrong = cause("worker_incompatible", Action.EXCLUDE)
    lesson = learned(lesson, wrong, plan(), NOW_S, LIMITS, facts=FACTS, main_engine=OTHER)
    host = Lesson(agent_id=MAIN_HOST, memory_factor=0.8)
    store = Store(tmp_path / "s.db")
    store.save_lesson(NEW)
    store.save_lesson(host)
    store.save_lesson(lesson)
    store.close()
    again = Store(tmp_path / "s.db")
    assert again.lessons() == [host, lesson]
    again.forget_lesson(PI)
    again.forget_lesson(AgentId("never was"))
    assert again.lessons() == [host]
    again.close()
