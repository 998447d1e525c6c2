"""Which deployment a request is for: by the name it gives, and by who has the shortest queue."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import PurePath
from typing import Any, Final

from supervisor.core.entities import Deployment, Plan
from supervisor.core.lifecycle import LIVE_STATES, State
from supervisor.core.model_reference import parse_reference

_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")


def names_of(deployment: Deployment) -> frozenset[str]:
    """All names by which requests may call a deployment, in small letters.

    Its own, its aliases, its model as it was given, the stem of the file (without the number of
    its part), and the repository.
    """
    spec = deployment.spec
    names = {deployment.id, spec.model, *spec.aliases, *names_of_model(spec.model)}
    if deployment.plan is not None:
        names.add(deployment.plan.model.name)
    return frozenset(name.lower() for name in names if name)


def names_of_model(model: str) -> frozenset[str]:
    """Stem of a model file with and without its part, and its repository, as they are written."""
    stem = PurePath(model).name.removesuffix(".gguf")
    reference = parse_reference(model)
    return frozenset({stem, _PART.sub("", stem), *([reference.repo] if reference else [])})


def asked_for(model: str | None, deployments: Iterable[Deployment]) -> list[Deployment]:
    """The deployments that a request for ``model`` may go to; no name means any.

    Tools send any name. Where one deployment alone wants to run, there is no doubt.
    """
    known = list(deployments)
    live = [each for each in known if each.state in LIVE_STATES]
    if not model:
        return live
    named = [each for each in known if model.lower() in names_of(each)]
    return named or (live if len(live) == 1 else [])


def best_of(
    candidates: Sequence[Deployment], load_of: Callable[[Deployment], float]
) -> Deployment | None:
    """Where a request goes: to the least busy that is ready, or else will be.

    Args:
        candidates: From :func:`asked_for`.
        load_of: Requests per slot that a deployment has.
    """
    wanted = [each for each in candidates if each.state in LIVE_STATES]
    ready = [each for each in wanted if each.state is State.READY]
    return min(ready or wanted, key=load_of, default=None)


def to_start(candidates: Sequence[Deployment]) -> Deployment | None:
    """The deployment that a request may start, if none of the candidates runs."""
    # One that is being stopped for want of requests is started again when it has ended.
    startable = (State.STOPPED, State.STOPPING, State.FAILED)
    return next((e for e in candidates if e.spec.on_demand and e.state in startable), None)


def model_entry(deployment: Deployment) -> dict[str, Any]:
    """A deployment as an entry of ``/v1/models``, for clients of OpenAI and of Anthropic."""
    plan = deployment.plan
    meta = {} if plan is None else _meta(plan)
    created = int(datetime.fromisoformat(deployment.since).timestamp()) if deployment.since else 0
    return {
        "id": deployment.id,
        "object": "model",
        "type": "model",
        "created": created,
        "created_at": deployment.since,
        "owned_by": "llamacpp",
        "display_name": deployment.id,
        "aliases": list(deployment.spec.aliases),
        "meta": meta,
        "state": str(deployment.state),
    }


def _meta(plan: Plan) -> dict[str, Any]:
    """Under llama-server's names."""
    return {
        "n_ctx": plan.ctx_tokens // plan.slots,
        "n_ctx_train": plan.model.ctx_train_tokens,
        "size": plan.model.size_bytes,
    }
