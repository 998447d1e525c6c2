"""What to tell a request that waits: how far its deployment is, how long it may take, and why."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from supervisor.core.entities import Deployment
from supervisor.core.lifecycle import State

_SHORTEST_S: Final = 1.0
_LONGEST_S: Final = 3600.0
_GUESS_S: Final = 10.0
"""A load of which nothing is known."""
_HOPELESS: Final = (State.FAILED, State.STOPPED, State.STOPPING)


@dataclass(frozen=True, slots=True)
class Outlook:
    """The prospects of a deployment. ``None`` is unknown."""

    deployment: str
    state: str
    phase: str = ""
    progress: float | None = None
    """Of the weights, 0 to 1, while they load; of the model's files, while they are fetched."""
    ready_in_s: float | None = None
    cause: Mapping[str, str] | None = None

    @property
    def retry_after_s(self) -> int | None:
        """For ``Retry-After``: whole seconds."""
        if self.ready_in_s is None:
            return None
        return math.ceil(min(max(self.ready_in_s, _SHORTEST_S), _LONGEST_S))

    @property
    def sentence(self) -> str:
        """For a person, without a full stop."""
        detail = f" ({self.phase})" if self.phase else ""
        done = "fetched" if self.state == State.FETCHING else "loaded"
        loaded = "" if self.progress is None else f", {self.progress:.0%} {done}"
        left = "" if self.ready_in_s is None else f", about {math.ceil(self.ready_in_s)} s left"
        why = f"; {self.cause['sentence']}" if self.cause else ""
        return f"{self.deployment} is {self.state}{detail}{loaded}{left}{why}"

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "deployment": self.deployment,
            "state": self.state,
            "phase": self.phase,
            "progress": self.progress,
            "ready_in_s": self.ready_in_s,
            "retry_after_s": self.retry_after_s,
            "cause": self.cause,
        }


def outlook(
    deployment: Deployment, now: datetime, *, ahead: int = 0, usual_s: float = _GUESS_S
) -> Outlook:
    """The prospects of a request.

    Args:
        deployment: That it waits for.
        now: For a repair that is due at a given time.
        ahead: Requests before it.
        usual_s: How long a request usually takes there.
    """
    cause = deployment.cause
    told = cause and {"code": cause.code, "sentence": cause.sentence, "remedy": cause.remedy}
    progress, load_s = _load(deployment)
    return Outlook(
        deployment=deployment.id,
        state=deployment.state,
        phase=deployment.phase or _phase_of_pull(deployment),
        progress=progress,
        ready_in_s=_ready_in_s(deployment, now, load_s, ahead * usual_s / _slots(deployment)),
        cause=told or None,
    )


def _ready_in_s(
    deployment: Deployment, now: datetime, load_s: float, queue_s: float
) -> float | None:
    state = deployment.state
    if state in _HOPELESS:
        return None
    if state is State.READY:
        return round(queue_s, 1)
    if state is State.BACKOFF and deployment.retry_at:
        wait_s = (datetime.fromisoformat(deployment.retry_at) - now).total_seconds()
        return round(max(wait_s, 0.0) + load_s + queue_s, 1)
    if state is State.PENDING and deployment.cause is not None:
        return None  # nobody knows when a device comes
    pull = deployment.pull
    if state is State.FETCHING and pull is not None and pull.eta_s is None:
        return None  # paused, or it has just begun
    return round(load_s + queue_s, 1)


def _phase_of_pull(deployment: Deployment) -> str:
    pull = deployment.pull
    return pull.state if pull is not None and pull.state != deployment.state else ""


def _load(deployment: Deployment) -> tuple[float | None, float]:
    """Progress of the load that runs, and the seconds that are left of it or of the next."""
    predicted = deployment.plan.prediction if deployment.plan else None
    whole_s = predicted.load_s if predicted else _GUESS_S
    pull = deployment.pull
    if deployment.state is State.FETCHING and pull is not None and pull.total_bytes:
        return round(pull.done_bytes / pull.total_bytes, 3), (pull.eta_s or 0.0) + whole_s
    total_bytes = sum(load.weight_bytes for load in deployment.loads)
    if deployment.state is not State.STARTING or not total_bytes:
        return None, whole_s
    done = sum(load.loaded_bytes for load in deployment.loads) / total_bytes
    told_s = [link.eta_s for link in deployment.links if link.eta_s is not None]
    return round(done, 3), max(told_s, default=whole_s * (1 - done))


def _slots(deployment: Deployment) -> int:
    return deployment.plan.slots if deployment.plan else deployment.spec.slots
