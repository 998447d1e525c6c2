"""State machine of a deployment. ``TABLE`` is the truth; ``docs/architecture.md`` draws it."""

from enum import StrEnum

from supervisor.errors import IllegalTransition


class State(StrEnum):
    """What a deployment is doing. The comments are invariants."""

    PENDING = "pending"  # no plan; the reason says what is missing
    FETCHING = "fetching"  # a plan exists; files are incomplete
    STARTING = "starting"  # processes run; nothing has answered yet
    READY = "ready"  # a completion returned a token; requests are routed here
    DEGRADED = "degraded"  # the process lives, readiness does not
    BACKOFF = "backoff"  # nothing runs; another attempt is due
    STOPPING = "stopping"  # signals sent, still alive
    STOPPED = "stopped"  # nothing runs, by request
    FAILED = "failed"  # nothing runs; a human is needed


class Event(StrEnum):
    """What happened, in the past tense."""

    UNPLACEABLE = "unplaceable"
    PLANNED = "planned"
    MODEL_FETCHED = "model_fetched"
    STARTUP_PROBE_PASSED = "startup_probe_passed"
    READINESS_LOST = "readiness_lost"
    READINESS_REGAINED = "readiness_regained"
    ATTEMPT_FAILED = "attempt_failed"
    RETRY_DUE = "retry_due"
    GAVE_UP = "gave_up"
    STOP_REQUESTED = "stop_requested"
    EXITED = "exited"
    START_REQUESTED = "start_requested"


LIVE_STATES = frozenset(
    {State.PENDING, State.FETCHING, State.STARTING, State.READY, State.DEGRADED, State.BACKOFF}
)
"""States from which the deployment still wants to serve."""

TABLE: dict[tuple[State, Event], State] = {
    (State.PENDING, Event.UNPLACEABLE): State.PENDING,
    (State.PENDING, Event.PLANNED): State.FETCHING,
    (State.FETCHING, Event.MODEL_FETCHED): State.STARTING,
    (State.STARTING, Event.STARTUP_PROBE_PASSED): State.READY,
    (State.READY, Event.READINESS_LOST): State.DEGRADED,
    (State.DEGRADED, Event.READINESS_REGAINED): State.READY,
    (State.FETCHING, Event.ATTEMPT_FAILED): State.BACKOFF,
    (State.STARTING, Event.ATTEMPT_FAILED): State.BACKOFF,
    (State.READY, Event.ATTEMPT_FAILED): State.BACKOFF,
    (State.DEGRADED, Event.ATTEMPT_FAILED): State.BACKOFF,
    (State.DEGRADED, Event.RETRY_DUE): State.PENDING,
    (State.BACKOFF, Event.RETRY_DUE): State.PENDING,
    (State.FAILED, Event.RETRY_DUE): State.PENDING,
    (State.PENDING, Event.GAVE_UP): State.FAILED,
    (State.FETCHING, Event.GAVE_UP): State.FAILED,
    (State.STARTING, Event.GAVE_UP): State.FAILED,
    (State.BACKOFF, Event.GAVE_UP): State.FAILED,
    (State.STARTING, Event.STOP_REQUESTED): State.STOPPING,
    (State.READY, Event.STOP_REQUESTED): State.STOPPING,
    (State.DEGRADED, Event.STOP_REQUESTED): State.STOPPING,
    (State.PENDING, Event.STOP_REQUESTED): State.STOPPED,
    (State.FETCHING, Event.STOP_REQUESTED): State.STOPPED,
    (State.BACKOFF, Event.STOP_REQUESTED): State.STOPPED,
    (State.FAILED, Event.STOP_REQUESTED): State.STOPPED,
    (State.STOPPING, Event.EXITED): State.STOPPED,
    (State.STOPPED, Event.START_REQUESTED): State.PENDING,
    (State.FAILED, Event.START_REQUESTED): State.PENDING,
}


def advance(state: State, event: Event) -> State:
    """The state after ``event``.

    Raises:
        IllegalTransition: The pair is not in the table, which is a bug of the caller.
    """
    try:
        return TABLE[state, event]
    except KeyError:
        raise IllegalTransition(f"{event} cannot happen in state {state}") from None


def failures_after(failures: int, *, ready_for_s: float, earned_s: float) -> int:
    """Failures in a row, counting one that just happened.

    READY must be earned: only a run of ``earned_s`` seconds forgives what was before it, so that
    an engine which dies at its first large request does not loop for ever.
    """
    return 1 if ready_for_s >= earned_s else failures + 1
