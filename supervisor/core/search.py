"""Chooses a placement: the fastest that fits, or by how much nothing does."""

from collections.abc import Iterable, Iterator, Sequence

from supervisor.core.memory import CELLS, Run, padded
from supervisor.core.plan_overrides import Choice, choice_of
from supervisor.core.planning import (
    DeviceOffer,
    LeftOut,
    NoFit,
    Overrides,
    Placement,
    Planned,
    PlanRequest,
    Wanted,
)
from supervisor.core.search_exact import ExactSearch
from supervisor.core.search_fit import could_fit, no_fit
from supervisor.core.search_result import placement_of
from supervisor.core.search_tables import Problem, Tables
from supervisor.core.search_values import Best, Solution
from supervisor.core.speed import Output

RUNNERS_UP = 3
Label = tuple[Tables, Choice]
"""Where a solution comes from: two searches may number their devices differently."""

LEFT_OUT_SHARE = 40  # of the steps of a search, for each device that is left out
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
    choice = choice_of(request)
    for runs in ladder(request):
        best: Best[Label] = Best(steps_left=request.rules.work_limit)
        search(request, choice, runs, best)
        if best.seen:
            return _planned(request, choice, best, runs[0])
    return no_fit(request, choice, runs[-1], _smaller(request))


def ladder(request: PlanRequest) -> Iterator[list[Run]]:
    """The settings to try, in order of preference; those of one list are equally good."""
    wanted, overrides = request.wanted, request.overrides
    kv_types = (overrides.kv_type,) if overrides.kv_type else wanted.kv_types
    ubatches = (overrides.ubatch,) if overrides.ubatch else wanted.ubatches
    contexts = [overrides.ctx_tokens] if overrides.ctx_tokens else contexts_of(wanted)
    for ctx in contexts:
        for kv_type in kv_types:
            yield [_run(wanted, ctx, kv_type, ubatch) for ubatch in ubatches]


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


def search(request: PlanRequest, choice: Choice, runs: Iterable[Run], best: Best[Label]) -> None:
    """Search equally good settings; ``best`` carries the bar from one to the next."""
    tables = (Tables(request, run) for run in runs)
    search_tables([t for t in tables if could_fit(t.sizes, choice, request.host)], choice, best)


def search_tables(tables: Iterable[Tables], choice: Choice, best: Best[Label]) -> None:
    """Glance at all settings first, then search them in earnest, each with its share of steps."""
    searches: list[ExactSearch[Label]] = []
    for one in tables:
        for outputs in _output_groups(one, choice):
            problem = one.problem(outputs, choice)
            if choice.split:
                _as_given(problem, choice.split, best, (one, choice))
            else:
                searches.append(ExactSearch(problem, best, (one, choice)))
    for exact in searches:
        exact.glance()
    left = best.steps_left
    searches.sort(key=lambda exact: exact.promise)
    for done, exact in enumerate(searches):
        best.steps_left = share = left // (len(searches) - done)
        exact.run()
        left -= share - max(0, best.steps_left)


def _output_groups(tables: Tables, choice: Choice) -> list[frozenset[Output]]:
    """Outputs that can share a search.

    The main host can hold fewer layers if it holds the output too.
    """
    without, with_output = tables.host_blocks(choice)
    on_host = choice.outputs & {Output.HOST}
    if without == with_output or not on_host:
        return [choice.outputs]
    groups = [choice.outputs - on_host, on_host if with_output >= 0 else frozenset()]
    return [group for group in groups if group]


def _as_given(problem: Problem, split: Sequence[int], best: Best[Label], label: Label) -> None:
    """Add the placement that the operator described, if it fits."""
    runs: list[tuple[int, int]] = []
    first, work, others = 0, problem.host_work[0] if problem.host_work else 0.0, 0.0
    for device, count in enumerate(split[:-1]):
        option = problem.options[device]
        end = first + count
        if option.starts[end] > first:
            return
        runs.append((device, first))
        work += option.work_fixed + option.work[end] - option.work[first]
        others += option.prefill_fixed + option.prefill[end] - option.prefill[first]
        first = end
    device, option = len(split) - 1, problem.options[-1]
    runs.append((device, first))
    last = option.last_prefill[first]
    cost = work + option.last_work[first] + others + last
    cost += (problem.ubatches - 1) * max(others, last)
    if problem.host_work and cost < float("inf"):
        best.add(Solution(cost, cost, 0, tuple(runs), option.outputs[first]), label)


def _planned(request: PlanRequest, choice: Choice, best: Best[Label], first: Run) -> Planned:
    solutions = best.ranked()[: RUNNERS_UP + 1]
    ranked = [_placed(solution, label) for solution, label in solutions]
    winner = ranked[0]
    tables = solutions[0][1][0]
    return Planned(
        best=winner,
        runners_up=tuple(ranked[1:]),
        left_out=(*_left_out(tables, choice, winner), *choice.left_out),
        unrestricted=_unrestricted(request),
        is_proven=best.is_proven,
        shrunk=_shrunk(request, winner.run, first),
    )


def _placed(solution: Solution, label: Label) -> Placement:
    tables, choice = label
    return placement_of(tables, choice.devices, solution)


def _unrestricted(request: PlanRequest) -> Placement | None:
    """The best placement without the overrides, to show what they cost."""
    if request.overrides.is_empty:
        return None
    return best_placement(request.model_copy(update={"overrides": Overrides()}))


def best_placement(request: PlanRequest) -> Placement | None:
    """The best placement alone, without what it was compared with."""
    choice = choice_of(request)
    for runs in ladder(request):
        best: Best[Label] = Best(steps_left=request.rules.work_limit)
        search(request, choice, runs, best)
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


def _left_out(tables: Tables, choice: Choice, winner: Placement) -> Iterator[LeftOut]:
    """What it would cost to add each device that the best placement does without."""
    used = {device.name for device in winner.devices}
    for device in choice.devices:
        if device.name not in used:
            yield _with_device(tables, choice, used, device)


def _with_device(tables: Tables, choice: Choice, used: set[str], device: DeviceOffer) -> LeftOut:
    devices = tuple(d for d in choice.devices if d.name in used or d is device)
    required = 1 << devices.index(device)
    best: Best[Label] = Best(steps_left=tables.request.rules.work_limit // LEFT_OUT_SHARE)
    search_tables([tables], choice.only(devices, required), best)
    if not best.seen:
        reason = "no room for one layer" if best.is_proven else "would not pay"
        return LeftOut(name=device.name, reason=reason)
    with_it = _placed(*best.ranked()[0])
    return LeftOut(
        name=device.name,
        reason="would not pay",
        tokens_per_s=with_it.decode_tokens_per_s,
        cost_s=with_it.cost_s,
    )
