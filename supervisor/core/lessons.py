"""What was learned of devices that failed, and for how long it counts.

Times are of the wall clock, since lessons outlive a restart; and that clock may be set, in either
direction. So a punishment which seems to begin in the future is over, and any other time counts by
its distance from now: whatever happens to the clock, no device is shut out for long by it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from pydantic import Field

from agents.contract import DeviceFacts, EngineFacts
from supervisor.core.entities import Action, AgentId, Cause, FrozenModel, MemoryUse, Plan
from supervisor.core.explain_words import duration
from supervisor.core.memory import Platform, margin_bytes

MAIN_HOST: Final = AgentId("")
"""Stands for llama-server's own part; a cause that names no device may be about that."""

LEAST_UBATCH: Final = 32
SMALLER: Final = 0.8
LEAST_FACTOR: Final = 0.3
FORGIVEN_AFTER_S: Final = 7 * 86_400.0
"""One step of ``SMALLER`` is forgiven after each of these."""

OTHER_MEMORY: Final = 0.05
"""Kernels and limits change the total by less; more, and it is another machine or another limit."""

CALM_S: Final = 86_400.0
"""So long without a loss, and a device is set aside like for the first time."""

LOSSES: Final = ("worker_", "link_")
OTHER_LOSSES: Final = frozenset({"agent_restarted", "agent_unreachable"})
NOT_LOSSES: Final = frozenset(
    # Ours, not the device's; and a mixed build is excluded until it is another.
    {"link_process_ended", "link_process_frozen", "worker_incompatible"}
)

PARKED: Final = "device_parked"
"""It served, and was too hot or too empty for it; so it may be again as soon as it serves again."""

LACKED_MEMORY: Final = {
    "worker_out_of_memory": "its rpc-server was killed for want of memory",
    "worker_killed_by_android": "Android ended its rpc-server",
    "gpu_out_of_memory": "its GPU ran out of memory",
    "allocation_refused": "it could not allocate a buffer",
    "cache_does_not_fit": "its part of the cache did not fit",
    "host_out_of_memory": "llama-server was killed for want of memory",
}


class Limits(Protocol):
    """What settings say of devices that come and go."""

    @property
    def flaps(self) -> int: ...

    @property
    def flap_window_s(self) -> float: ...

    @property
    def aside_first_s(self) -> float: ...

    @property
    def aside_longest_s(self) -> float: ...


class Lesson(FrozenModel):
    """What was learned of one device, or of the main host. Seconds are of the wall clock."""

    agent_id: AgentId
    ubatch_cap: int | None = Field(default=None, description="it failed with more tokens at once")
    memory_factor: float = Field(default=1.0, gt=0, le=1, description="of what it has to offer")
    share_bytes: dict[str, int] = Field(
        default_factory=dict, description="by ggml device: the most that it is given"
    )
    memory_at_s: float = 0.0
    memory_total_bytes: int = Field(default=0, description="what it had then; 0: unknown")
    engine_build_refused: str = Field(default="", description="its build beside the main host's")
    losses: tuple[float, ...] = Field(default=(), description="the last ones, in order")
    aside_count: int = 0
    aside_at_s: float = 0.0
    aside_s: float = Field(default=0.0, description="length of the last punishment")
    reasons: dict[str, str] = Field(
        default_factory=dict, description="for people, by what it is: why and when"
    )


# -- learning --------------------------------------------------------------------------------------


def learned(
    lesson: Lesson,
    cause: Cause,
    plan: Plan,
    now_s: float,
    limits: Limits,
    *,
    facts: DeviceFacts | None = None,
    main_engine: EngineFacts | None = None,
) -> Lesson:
    """The lesson of a device after one more failure that is about it.

    Args:
        lesson: What was known of the device that ``cause`` names, or of ``MAIN_HOST``.
        cause: Of the failure.
        plan: What ran, or should have.
        now_s: Wall clock.
        limits: When a device is set aside, and for how long.
        facts: Of the device; ``None`` for the main host or if unknown.
        main_engine: The main host's engine.
    """
    if cause.action is Action.SMALLER_UBATCH:
        lesson = _with_smaller_ubatch(lesson, plan, now_s)
    elif cause.action is Action.SMALLER_SHARE:
        total_bytes = facts.memory_total_bytes if facts else 0
        lesson = _with_smaller_share(lesson, cause, plan, now_s, total_bytes)
    elif cause.action is Action.EXCLUDE and lesson.agent_id != MAIN_HOST:
        lesson = _with_refused_build(lesson, facts.engine if facts else None, main_engine, now_s)
    if lesson.agent_id != MAIN_HOST and is_loss(cause.code):
        lesson = _with_loss(lesson, now_s, limits)
    elif lesson.agent_id != MAIN_HOST and cause.code == PARKED:
        lesson = _with_rest(lesson, now_s, limits)
    return lesson


def is_loss(code: str) -> bool:
    """Whether such a failure means that a device was lost, which must not happen too often."""
    return code in OTHER_LOSSES or (code.startswith(LOSSES) and code not in NOT_LOSSES)


def _with_smaller_ubatch(lesson: Lesson, plan: Plan, now_s: float) -> Lesson:
    used = min(plan.ubatch, plan.ctx_tokens)
    cap = max(LEAST_UBATCH, min(used // 2, lesson.ubatch_cap or used))
    why = f"it failed with {used} tokens at once on {_date(now_s)}"
    return _changed(lesson, "ubatch", why, ubatch_cap=cap)


def _with_smaller_share(
    lesson: Lesson, cause: Cause, plan: Plan, now_s: float, total_bytes: int
) -> Lesson:
    """Less of what there is, and less than it had: free memory alone says little after a kill."""
    factor = memory_factor(lesson, now_s, total_bytes) * SMALLER
    had = _shares(lesson.agent_id, plan)
    why = f"{LACKED_MEMORY.get(cause.code, 'its memory did not suffice')} on {_date(now_s)}"
    return _changed(
        lesson,
        "memory",
        why,
        memory_factor=max(LEAST_FACTOR, factor),
        share_bytes={name: int(use.peak_bytes * SMALLER) for name, use in had if use.peak_bytes},
        memory_at_s=now_s,
        memory_total_bytes=total_bytes,
    )


def _shares(agent_id: AgentId, plan: Plan) -> Sequence[tuple[str, MemoryUse]]:
    if agent_id == MAIN_HOST:
        return [("", plan.host)]
    return [(shard.ggml_device, shard) for shard in plan.shards if shard.agent_id == agent_id]


def _with_refused_build(
    lesson: Lesson, engine: EngineFacts | None, main_engine: EngineFacts | None, now_s: float
) -> Lesson:
    builds = _builds(engine, main_engine)
    why = f"its llama.cpp, {builds}, failed on {_date(now_s)}"
    return _changed(lesson, "build", why, engine_build_refused=builds)


def _builds(engine: EngineFacts | None, main_engine: EngineFacts | None) -> str:
    """Both builds in words: if either changes, they deserve another try."""
    return f"{_build(engine)} beside the main host's {_build(main_engine)}"


def _build(engine: EngineFacts | None) -> str:
    build, protocol = (engine.build, engine.rpc_protocol) if engine else ("", "")
    return f"{build or 'an unknown build'} (RPC {protocol or 'unknown'})"


def _with_loss(lesson: Lesson, now_s: float, limits: Limits) -> Lesson:
    """One more loss; enough of them in a short time set the device aside, each time for longer."""
    calm_s = max(CALM_S, limits.flap_window_s)
    is_calm = all(abs(now_s - at_s) > calm_s for at_s in lesson.losses)
    recent = [at_s for at_s in lesson.losses if abs(now_s - at_s) <= limits.flap_window_s]
    losses = (*recent, now_s)[-limits.flaps :]
    count = 0 if is_calm else lesson.aside_count
    if len(losses) < limits.flaps:
        return lesson.model_copy(update={"losses": losses, "aside_count": count})
    aside_s = _aside_s(count, limits)
    times = "1 loss" if limits.flaps == 1 else f"{limits.flaps} losses"
    why = f"{times} in {duration(limits.flap_window_s)}, the last one on {_date(now_s)}"
    return _changed(
        lesson,
        "losses",
        why,
        losses=losses,
        aside_count=count + 1,
        aside_at_s=now_s,
        aside_s=aside_s,
    )


def _with_rest(lesson: Lesson, now_s: float, limits: Limits) -> Lesson:
    """Set aside at once, each time for longer: else it would come, get hot, and go, for ever."""
    count = 0 if abs(now_s - lesson.aside_at_s) > CALM_S else lesson.aside_count
    return _changed(
        lesson,
        "losses",
        f"it was parked while it served, on {_date(now_s)}",
        aside_count=count + 1,
        aside_at_s=now_s,
        aside_s=_aside_s(count, limits),
    )


def _aside_s(count: int, limits: Limits) -> float:
    """After so many times before. The exponent is bounded: a float overflows before the longest
    time is reached.
    """
    return min(limits.aside_longest_s, limits.aside_first_s * 2.0 ** min(count, 30))


def _changed(lesson: Lesson, topic: str, why: str, **changes: object) -> Lesson:
    reasons = {**lesson.reasons, topic: why}
    return lesson.model_copy(update={**changes, "reasons": reasons})


def _date(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d")


# -- what holds now --------------------------------------------------------------------------------


def aside_left_s(lesson: Lesson, now_s: float) -> float | None:
    """Seconds for which a device is still set aside; ``None``: it is not."""
    served_s = now_s - lesson.aside_at_s
    return lesson.aside_s - served_s if 0 <= served_s < lesson.aside_s else None


def memory_factor(lesson: Lesson, now_s: float, total_bytes: int) -> float:
    """The part of a device's memory that is used, as far as it is not forgiven yet.

    Args:
        lesson: Of the device.
        now_s: Wall clock.
        total_bytes: What the device has now; another figure than then voids the lesson.
    """
    before = lesson.memory_total_bytes
    if before and total_bytes and abs(total_bytes - before) > OTHER_MEMORY * before:
        return 1.0
    steps = min(abs(now_s - lesson.memory_at_s) // FORGIVEN_AFTER_S, 100)
    factor = lesson.memory_factor / SMALLER**steps
    return factor if factor < 0.999 else 1.0


def usable_bytes(
    lesson: Lesson,
    ggml_device: str,
    platform: Platform,
    available_bytes: int,
    *,
    factor: float,
) -> int:
    """What a device may be offered for, of what it has.

    Args:
        lesson: Of the device.
        ggml_device: Which of its devices; empty for the main host's processor.
        platform: Decides how much of an offer the planner keeps free.
        available_bytes: What there is.
        factor: As ``memory_factor`` has it.
    """
    if factor >= 1.0:
        return available_bytes
    most = int(available_bytes * factor)
    share = lesson.share_bytes.get(ggml_device)
    if share is None:
        return most
    forgiven = int(share * factor / lesson.memory_factor)
    return min(most, forgiven + margin_bytes(platform, forgiven))


def why_excluded(
    lesson: Lesson, engine: EngineFacts | None, main_engine: EngineFacts | None
) -> str:
    """Why a device cannot take part with the builds of now, or nothing."""
    refused = lesson.engine_build_refused
    if not refused or refused != _builds(engine, main_engine):
        return ""
    return f"{lesson.reasons.get('build', refused)}; install the same llama.cpp build on both"


def why_aside(lesson: Lesson, now_s: float) -> str:
    """Why a device is not used for the moment, or nothing."""
    left_s = aside_left_s(lesson, now_s)
    if left_s is None:
        return ""
    after = lesson.reasons.get("losses", "repeated losses")
    return f"set aside for {duration(lesson.aside_s)}, {duration(left_s)} more, after {after}"


def why_less_memory(lesson: Lesson, factor: float) -> str:
    """Why not all of a device's memory is used, or nothing."""
    if factor >= 1.0:
        return ""
    why = lesson.reasons.get("memory", "its memory did not suffice")
    least = ", and less than it had then" if lesson.share_bytes else ""
    return f"{why}: {factor:.0%} of its memory is used{least}"


def why_smaller_steps(lesson: Lesson) -> str:
    """Why prompts are read in small steps where a device takes part, or nothing."""
    if lesson.ubatch_cap is None:
        return ""
    why = lesson.reasons.get("ubatch", "it failed with more")
    return f"{why}: at most {lesson.ubatch_cap} of them are computed at once now"
