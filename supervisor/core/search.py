"""Chooses a placement: the fastest that fits, or by how much nothing does."""

from collections.abc import Iterable, Iterator, Sequence
from math import inf

from supervisor.core.entities import LeftOut
from supervisor.core.memory import CELLS, Run, padded
from supervisor.core.plan_overrides import Choice, choice_of
from supervisor.core.planning import (
    DeviceOffer,
    NoFit,
    Overrides,
    Placement,
    Planned,
    PlanRequest,
    Wanted,
)
from supervisor.core.search_exact import ENOUGH, ExactSearch, Scope
from supervisor.core.search_fit import no_fit
from supervisor.core.search_made import Label, Made, barred
from supervisor.core.search_result import placement_of
from supervisor.core.search_values import Best, Solution

RUNNERS_UP = 3
LEFT_OUT_SHARE = 20  # of the steps of a search, for each device that is left out
SHRINKING = (4, 3, 2)  # quarters of the context, then the same of its half


def plan(request: PlanRequest) -> Planned | NoFit:
    """Find the placement with the lowest cost per request, for the first settings that fit.

    Context and cache type change what the user gets, so they only give way when nothing fits;
    ubatch changes nothing but speed and memory, so it is chosen freely.

    Raises:
        DeviceUnknown: An override names a device that is not there.
        BadSplit: Overrides that contradict each other, the model or llama.cpp's limits.
        NoDevices: Nothing is left that could hold a layer.
    """
    choice, made = choice_of(request), Made(request)
    for runs in ladder(request):
        best: Best[Label] = Best(steps_left=request.rules.work_limit)
        searches = search(made, choice, runs, best)
        if best.seen:
            return _planned(made, searches, best, runs[0])
    return no_fit(request, choice, runs[-1], _smaller(request))


def ladder(request: PlanRequest) -> Iterator[list[Run]]:
    """The settings to try, in order of preference; those of one list are equally good."""
    wanted, overrides = request.wanted, request.overrides
    kv_types = (overrides.kv_type,) if overrides.kv_type else wanted.kv_types
    ubatches = (overrides.ubatch,) if overrides.ubatch else _ubatches(request)
    contexts = [overrides.ctx_tokens] if overrides.ctx_tokens else contexts_of(wanted)
    for ctx in contexts:
        for kv_type in kv_types:
            yield [_run(wanted, ctx, kv_type, ubatch) for ubatch in ubatches]


def _ubatches(request: PlanRequest) -> tuple[int, ...]:
    """Those that were wanted, and smaller ones if a device can do only with such."""
    wanted = request.wanted.ubatches
    caps = {d.ubatch_cap for d in request.devices if d.ubatch_cap is not None}
    return (*wanted, *sorted((cap for cap in caps if cap < min(wanted)), reverse=True))


def contexts_of(wanted: Wanted) -> list[int]:
    """The wanted context and smaller ones, down to the minimum."""
    least = wanted.min_ctx_tokens or wanted.ctx_tokens
    contexts, whole = [wanted.ctx_tokens], wanted.ctx_tokens
    while whole > least:
        steps = (padded(whole * quarters // 4) for quarters in SHRINKING[1:])
        contexts += [max(step, least) for step in steps]
        whole //= 2
    return sorted({c for c in contexts if c >= least or c == wanted.ctx_tokens}, reverse=True)


def _smaller(request: PlanRequest) -> Iterator[Run]:
    """Settings below what was wanted, the largest context first."""
    wanted = request.wanted
    least = wanted.min_ctx_tokens or wanted.ctx_tokens
    shrunk = wanted.model_copy(update={"ctx_tokens": least, "min_ctx_tokens": CELLS})
    for ctx in contexts_of(shrunk):
        for kv_type in (*wanted.kv_types, "q4_0"):
            yield _run(wanted, ctx, kv_type, min(wanted.ubatches))


def _run(wanted: Wanted, ctx: int, kv_type: str, ubatch: int) -> Run:
    return Run(
        ctx_tokens=ctx,
        kv_type=kv_type,
        ubatch=ubatch,
        slots=wanted.slots,
        is_unified=wanted.is_unified,
    )


def search(
    made: Made, choice: Choice, runs: Iterable[Run], best: Best[Label]
) -> list[ExactSearch[Label]]:
    """Search equally good settings for the best placement."""
    searches = [one for run in runs for one in made.searches(run, choice, best)]
    everyone = (1 << len(choice.devices)) - 1
    _search_all(searches, best, Scope(everyone, choice.required, choice.sequence))
    return searches


def _search_all(
    searches: Sequence[ExactSearch[Label]],
    best: Best[Label],
    scope: Scope,
    order: tuple[int, ...] = (),
) -> None:
    """Glance, then look at the sets of devices that could be better, the most promising first.

    Args:
        searches: Equally good settings.
        best: What was found so far, and what is found.
        scope: The devices to search among.
        order: All of these, if it is known that they are promising, in any order.
    """
    searches = [one for one in searches if not barred(one.label) & scope.required]
    for one in searches:
        one.begin(best, scope._replace(allowed=scope.allowed & ~barred(one.label)))
        if order:
            one.chain(order, len(order) - 1)
            one.chain((*order[1:], order[0]), len(order) - 1)
        if best.score == inf or (one is searches[0] and not order):
            one.glance()
    sets = [
        (least, number, devices)
        for number, one in enumerate(searches)
        for least, devices in one.sets()
    ]
    for least, number, devices in sorted(sets):
        if least >= best.score * ENOUGH:
            return
        if best.steps_left <= 0:
            best.is_proven = False
            return
        searches[number].search(devices)


def _planned(
    made: Made, searches: list[ExactSearch[Label]], best: Best[Label], first: Run
) -> Planned:
    solution, label = best.ranked()[0]
    left_out = tuple(_left_out(searches, solution, label, best))
    winner, *runners_up = [_placed(*one) for one in best.ranked()[: RUNNERS_UP + 1]]
    return Planned(
        best=winner,
        runners_up=tuple(runners_up),
        left_out=(*left_out, *label[1].left_out),
        unrestricted=_unrestricted(made),
        is_proven=best.is_proven,
        shrunk=_shrunk(made.request, winner.run, first),
    )


def _placed(solution: Solution, label: Label) -> Placement:
    tables, choice = label
    return placement_of(tables, choice.devices, solution)


def _unrestricted(made: Made) -> Placement | None:
    """The best placement without the overrides, to show what they cost."""
    if made.request.overrides.is_empty:
        return None
    return _best_placement(made, made.request.model_copy(update={"overrides": Overrides()}))


def best_placement(request: PlanRequest) -> Placement | None:
    """The best placement alone, without what it was compared with."""
    return _best_placement(Made(request), request)


def _best_placement(made: Made, request: PlanRequest) -> Placement | None:
    choice = choice_of(request)
    for runs in ladder(request):
        best: Best[Label] = Best(steps_left=request.rules.work_limit)
        search(made, choice, runs, best)
        if best.seen:
            return _placed(*best.ranked()[0])
    return None


def _shrunk(request: PlanRequest, run: Run, first: Run) -> tuple[str, ...]:
    wanted = request.wanted
    found = []
    if run.ctx_tokens < (request.overrides.ctx_tokens or wanted.ctx_tokens):
        found.append(f"context {run.ctx_tokens} instead of {wanted.ctx_tokens} tokens")
    if first.kv_type != (request.overrides.kv_type or wanted.kv_types[0]):
        found.append(f"{run.kv_type} cache instead of {wanted.kv_types[0]}")
    return tuple(found)


def _left_out(
    searches: list[ExactSearch[Label]], winner: Solution, label: Label, best: Best[Label]
) -> Iterator[LeftOut]:
    """What it would cost to add each device that the best placement does without."""
    used = tuple(device for device, _ in winner.runs)
    same = [one for one in searches if one.label is label]
    # A device that must compute fewer tokens at once has its price with other settings.
    others = [one for one in searches if one.label is not label]
    for index, device in enumerate(label[1].devices if same else ()):
        if index not in used:
            able = others if barred(label) >> index & 1 else same
            yield _with_device(able, device, (index, *used), best)


def _with_device(
    searches: list[ExactSearch[Label]],
    device: DeviceOffer,
    order: tuple[int, ...],
    best: Best[Label],
) -> LeftOut:
    """Search again among the devices in ``order``, the first of them required."""
    limits = [one.label[0].request.rules.work_limit for one in searches]
    found: Best[Label] = Best(steps_left=max(limits, default=0) // LEFT_OUT_SHARE)
    scope = Scope(sum(1 << index for index in order), 1 << order[0])
    _search_all(searches, found, scope, order)
    if not found.seen:
        reason = "no room for one layer" if found.is_proven else "would not pay"
        return LeftOut(name=device.name, reason=reason)
    solution, label = found.ranked()[0]
    if solution.score >= best.score:  # otherwise, what was not proven was not the best
        best.add(solution, label)
    with_it = _placed(solution, label)
    return LeftOut(
        name=device.name,
        reason="would not pay",
        tokens_per_s=with_it.decode_tokens_per_s,
        cost_s=with_it.cost_s,
    )
