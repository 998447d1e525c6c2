"""Asks the planner whether a model fits at a context, and if not, what would. Starts nothing."""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agents.contract import Finding
from agents.errors import ProjectError
from supervisor.core import model_memory
from supervisor.core.doctor import blocks
from supervisor.core.entities import Deployment, DeploymentSpec
from supervisor.core.lifecycle import State
from supervisor.core.model_memory import KV_TYPES, LEAST_CTX_TOKENS, Largest
from supervisor.errors import InsufficientMemory
from supervisor.service.planning import Answer

LIMIT_S: Final = 40.0
"""For all plans together; each takes some hundred milliseconds, and a lost device seconds."""

USUAL_CTX_TOKENS: Final = 4096
HOLDING: Final = (State.STARTING, State.READY, State.DEGRADED)


class AskPlanner(Protocol):
    """The plan for a spec, perhaps in place of a deployment; raises ``ProjectError``."""

    def __call__(self, spec: DeploymentSpec, replaces: str | None) -> Awaitable[Answer]: ...


@dataclass(frozen=True, slots=True)
class Question:
    """Will this model at this context run here without being killed?"""

    model: str
    ctx_tokens: int = USUAL_CTX_TOKENS
    kv_type: str | None = None
    """None: the planner takes the finest that fits, of those that lose next to nothing."""


@dataclass(frozen=True, slots=True)
class MemoryAnswer:
    """For the cluster, and for each device by its name, ``name/GPU`` if it has several."""

    overall: Finding
    by_device: Mapping[str, Finding]


async def answer(
    question: Question, ask: AskPlanner, deployments: Sequence[Deployment] = ()
) -> MemoryAnswer:
    """Never raises: a model that cannot be read is a finding as well.

    Args:
        question: What is asked.
        ask: Plans; asked at most once for the wish and once for each type of cache.
        deployments: Of the one that runs this very model, the memory counts as free.
    """
    replaces = _running(question.model, deployments)
    wish = DeploymentSpec(
        model=question.model, ctx_tokens=question.ctx_tokens, kv_type=question.kv_type
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            found = await ask(wish, replaces)
    except InsufficientMemory as exc:
        return await _alternatives(question, exc.shortfall, ask, replaces)
    except TimeoutError:
        return MemoryAnswer(blocks("model_fit", f"there was no plan within {LIMIT_S:g} s"), {})
    except ProjectError as exc:
        return MemoryAnswer(blocks("model_fit", str(exc)), {})
    return MemoryAnswer(model_memory.fit(found.plan), model_memory.shares(found.plan))


def _running(model: str, deployments: Sequence[Deployment]) -> str | None:
    same = [d.id for d in deployments if d.state in HOLDING and d.spec.model == model]
    return same[0] if len(same) == 1 else None


async def _alternatives(
    question: Question, shortfall: Mapping[str, Any], ask: AskPlanner, replaces: str | None
) -> MemoryAnswer:
    """The planner itself shrinks a context in steps of a quarter, so each type is one question."""
    largest: list[Largest] = []
    is_cut = False
    try:
        async with asyncio.timeout(LIMIT_S / 2):
            for kv_type in KV_TYPES:
                ctx_tokens = await _largest(question, kv_type, ask, replaces)
                largest.append(Largest(kv_type, ctx_tokens))
                if ctx_tokens >= question.ctx_tokens:
                    break  # a coarser one is not better
    except TimeoutError:
        is_cut = True
    overall = model_memory.no_fit(question.ctx_tokens, shortfall, largest, is_cut=is_cut)
    return MemoryAnswer(overall, model_memory.shortfalls(shortfall))


async def _largest(question: Question, kv_type: str, ask: AskPlanner, replaces: str | None) -> int:
    spec = DeploymentSpec(
        model=question.model,
        ctx_tokens=question.ctx_tokens,
        min_ctx_tokens=min(LEAST_CTX_TOKENS, question.ctx_tokens),
        kv_type=kv_type,
    )
    try:
        return (await ask(spec, replaces)).plan.ctx_tokens
    except ProjectError:
        return 0
