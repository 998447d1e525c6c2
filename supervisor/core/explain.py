"""Says in plain words what was planned and why, for somebody who has never split a model."""

from collections.abc import Callable, Iterator, Sequence

from supervisor.core.entities import LeftOut
from supervisor.core.explain_no_fit import explain_no_fit, gpu_limits
from supervisor.core.explain_words import called, capital, duration, listed, rate
from supervisor.core.planning import (
    HOST,
    NoFit,
    PlacedDevice,
    Placement,
    Planned,
    PlanRequest,
    WhatIf,
)
from supervisor.core.search_sizes import Sizes
from supervisor.core.speed import Output
from supervisor.core.units import gib

SMALL_CHANGE = 1.03
"""What changes less than this is not worth a sentence."""

FEW_PLACES = 3
"""So many can be told one by one; of more, only the worst."""

READING = ((7.0, "faster than"), (3.5, "about as fast as"), (0.0, "slower than"))
"""From so many tokens per second: people read 160 to 320 words a minute, 0.75 of one per token."""

REASONS = {
    "no room for one layer": "too little memory for even one layer",
    "would not pay": "nothing faster was found with it",
}


def explain(
    request: PlanRequest, result: Planned | NoFit, what_ifs: Sequence[WhatIf] = ()
) -> list[str]:
    """One sentence or two each, the most important first.

    Who runs the model, what was cut, how fast it will be and how sure that is; then where the
    layers are and why, what was left out, and what would change it.
    """
    if isinstance(result, NoFit):
        found = [*explain_no_fit(request, result), *_notes(request)]
    else:
        best = result.best
        found = [
            *_choice(request, best),
            *_shrunk(request, result),
            *_slots(best),
            *_expectation(best),
            *_guesses(request, best),
            *_unreliable(request, best),
            *_layers(best),
            *_output(request, best),
            *_limits(best),
            *_memory(best),
            *_left_out(best, result.left_out),
            *_overrides(result),
            *_what_ifs(result, what_ifs),
            *_proof(result),
            *_notes(request),
        ]
    return [capital(sentence) for sentence in found]


def _places(best: Placement) -> list[PlacedDevice]:
    """Who holds layers, or computes the output, in order; the main host only with layers."""
    return [*([best.host] if best.host.layers else []), *best.devices]


def _choice(request: PlanRequest, best: Placement) -> Iterator[str]:
    size = gib(request.shape.weight_bytes)
    names = [place.name for place in _places(best)]
    if len(names) == 1:
        others = len(request.devices) > len(best.devices)
        why = ": it fits there, and sharing it would not pay" if others else ""
        is_all = best.output_device == names[0]
        what = "the whole model" if is_all else "all layers of the model"
        yield f"{called(names[0])} runs {what} ({size}){why}."
        return
    why = "since that is faster than any device alone"
    if not _fits_one(request, best):
        why = "since no device can hold it alone"
    yield f"{listed(names)} share the model ({size}), {why}."


def _fits_one(request: PlanRequest, best: Placement) -> bool:
    """Whether any place could hold everything."""
    sizes, end = Sizes(request.shape, best.run, request.rules), best.n_layers
    uses = [sizes.use(offer, 0, end, Output.LAST) for offer in request.devices]
    if request.host.may_hold_layers:
        uses.append(sizes.host_use(request.host, end, with_output=True))
    return any(use.peak_bytes <= use.budget_bytes for use in uses)


def _shrunk(request: PlanRequest, result: Planned) -> Iterator[str]:
    if not result.shrunk:
        return
    run, wanted = result.best.run, request.wanted
    ctx, changes = request.overrides.ctx_tokens or wanted.ctx_tokens, []
    if run.ctx_tokens < ctx:
        changes.append(
            f"the model remembers {run.ctx_tokens} instead of {ctx} tokens of a conversation (its"
            " context)"
        )
    if run.kv_type != (request.overrides.kv_type or wanted.kv_types[0]):
        memory = "that memory" if changes else "its memory of a conversation"
        changes.append(f"{memory} is stored more coarsely (a {run.kv_type} cache)")
    yield f"What you asked for does not fit, so {' and '.join(changes) or result.shrunk[0]}."
    yield from gpu_limits(request)


def _slots(best: Placement) -> Iterator[str]:
    run = best.run
    if run.slots == 1:
        return
    has = (
        f"and they share the context of {run.ctx_tokens} tokens"
        if run.is_unified
        else f"each with a context of {run.cells} tokens, since the {run.ctx_tokens} are divided"
        " among them"
    )
    yield f"Up to {run.slots} requests are answered at once (-np {run.slots}), {has}."


def _expectation(best: Placement) -> Iterator[str]:
    each = best.decode_tokens_per_s / best.users
    pace = next(words for least, words in READING if each > least)
    shared = f" for all {best.users} users together, {rate(each)} for each"
    yield (
        f"Answers should come at {rate(best.decode_tokens_per_s)} tokens per second"
        f"{shared if best.users > 1 else ''} (a token is a word or a piece of one): {pace} most"
        " people read."
    )
    yield (
        f"A prompt of {best.prompt_tokens} tokens takes {duration(best.times.prompt_s)} before the"
        f" answer begins, and loading the model {duration(best.times.load_s)}."
    )


def _guesses(request: PlanRequest, best: Placement) -> Iterator[str]:
    used = {device.name for device in best.devices}
    offers = [d for d in request.devices if d.name in used]
    speeds = [d.name for d in offers if d.speed.is_guess]
    if request.host.speed.is_guess and (best.host.layers or best.output_device == HOST):
        speeds.append(HOST)
    links = [d.name for d in offers if d.link.is_guess]
    parts = [
        *([f"the speed of {listed(speeds)}"] if speeds else []),
        *([f"the network to {listed(links)}"] if links else []),
    ]
    if parts:
        yield (
            f"This rests on a guess of {' and of '.join(parts)}; 'supervisor measure' makes it a"
            " fact."
        )


def _unreliable(request: PlanRequest, best: Placement) -> Iterator[str]:
    used = {device.name for device in best.devices}
    names = [d.name for d in request.devices if d.name in used and not d.is_reliable]
    if names:
        yield (
            "The model stops when any of its devices drops out, which"
            f" {listed(names)} may (battery, Wi-Fi or heat)."
        )


def _layers(best: Placement) -> Iterator[str]:
    places = _places(best)
    if len(places) == 1:
        return
    parts = [f"{called(place.name)} {_span(place)}" for place in places]
    yield (
        f"Every token passes through {best.n_layers} layers, on one device after the other:"
        f" {', '.join(parts)}."
    )
    fastest = _fastest(best)
    if fastest and len(fastest) < len(places):
        one = len(fastest) == 1
        yield (
            f"{listed([place.name for place in fastest])} {'is' if one else 'are'} the fastest and"
            f" {'takes' if one else 'take'} as many layers as fit there."
        )


def _span(place: PlacedDevice) -> str:
    first, last = place.first_layer + 1, place.first_layer + place.layers
    size = gib(place.memory.weight_bytes)
    if place.layers == 0:
        return f"only the output ({size})"
    return f"{first} to {last} ({size})" if first < last else f"{first} ({size})"


def _fastest(best: Placement) -> list[PlacedDevice]:
    """The devices that compute a layer fastest, if none of them has room for another."""
    pairs = zip(_places(best), best.times.stages, strict=True)
    pace = [(stage.compute_s / place.layers, place) for place, stage in pairs if place.layers]
    least = min(seconds for seconds, _ in pace)
    found = [place for seconds, place in pace if seconds <= least * SMALL_CHANGE]
    return found if all(_is_full(place) for place in found) else []


def _is_full(place: PlacedDevice) -> bool:
    memory = place.memory
    layer = (memory.weight_bytes + memory.kv_bytes) / place.layers
    return memory.peak_bytes + layer > memory.budget_bytes


def _output(request: PlanRequest, best: Placement) -> Iterator[str]:
    if not best.devices:
        return
    last = next(d for d in request.devices if d.name == best.devices[-1].name)
    count_bytes = 4 * request.shape.vocabulary * best.users
    size, sending_s = f"{count_bytes / 1000:.0f} kB", last.link.receiving_s(count_bytes)
    if best.output is Output.HOST:
        yield (
            f"The last step, which scores all {request.shape.vocabulary} tokens that may come next,"
            f" is done on the main host: otherwise {size} of scores would cross the network for"
            " every token."
        )
    elif best.output is Output.SAMPLED:
        yield (
            f"{last.name} also picks the next token, so that {size} of scores need not cross the"
            " network for it."
        )
    elif sending_s > (SMALL_CHANGE - 1) * best.times.token_s:
        yield (
            f"{last.name} sends {size} of scores for every token (one for each that may come next),"
            f" which takes {duration(sending_s)}."
        )


def _limits(best: Placement) -> Iterator[str]:
    """Where the time of a token goes."""
    names = [place.name for place in _places(best)]
    stages = dict(zip(names, best.times.stages, strict=True))
    compute = {name: stage.compute_s for name, stage in stages.items()}
    compute[best.output_device] = compute.get(best.output_device, 0.0) + best.times.output_s
    hops = {name: stage.hop_s for name, stage in stages.items() if stage.hop_s > 0}
    what = "A token takes" if best.users == 1 else "One token for every user takes"
    yield (
        f"{what} {duration(best.times.token_s)}: {_computing(compute, best.times.token_s)},"
        f" {_waiting(hops, len(compute))}."
    )


def _computing(compute: dict[str, float], token_s: float) -> str:
    slowest = sorted(compute, key=lambda name: -compute[name])
    if len(compute) <= FEW_PLACES:
        parts = [f"{called(name)} computes for {duration(compute[name])}" for name in slowest]
        return ", ".join(parts)
    return (
        f"{sum(compute.values()) / token_s:.0%} of it is computing, the most of that on"
        f" {called(slowest[0])} ({duration(compute[slowest[0]])})"
    )


def _waiting(hops: dict[str, float], places: int) -> str:
    if not hops:
        return "and nothing waits for the network"
    farthest = max(hops, key=lambda name: hops[name])
    most = f", mostly to {called(farthest)}" if places > 1 and len(hops) > 1 else ""
    return f"and the network takes {duration(sum(hops.values()))}{most}"


def _memory(best: Placement) -> Iterator[str]:
    """The fullest device, with the whole context in use."""
    places = [*best.devices, *([best.host] if best.host.layers or not best.devices else [])]
    fullest = max(places, key=lambda d: d.memory.peak_bytes / max(1, d.memory.budget_bytes))
    memory = fullest.memory
    free = memory.available_bytes - memory.budget_bytes
    tightest = f"Memory is tightest on {called(fullest.name)}: " if len(places) > 1 else ""
    what = "it" if tightest else called(fullest.name)
    yield (
        f"{tightest}{'with' if tightest else 'With'} a full context of {best.run.ctx_tokens} tokens"
        f" {what} uses {gib(memory.peak_bytes)} of {gib(memory.available_bytes)}, and"
        f" {gib(free)} are kept free for its system."
    )


# -- what was left out, and what else could be -----------------------------------------------------


def _left_out(best: Placement, left_out: Sequence[LeftOut]) -> Iterator[str]:
    now = best.decode_tokens_per_s
    rated = [device for device in left_out if device.tokens_per_s is not None]
    slower = [d for d in rated if (d.tokens_per_s or 0.0) * SMALL_CHANGE <= now]
    faster = [d for d in rated if (d.tokens_per_s or 0.0) >= now * SMALL_CHANGE]
    alike = [d for d in rated if d not in slower and d not in faster]
    yield from _slower(now, slower)
    for names, _ in _grouped(alike, lambda device: ""):
        yield (
            f"{_are_left_out(names)}: with {_any_of(names)}, it would be about as fast, and one"
            " more device could fail."
        )
    for names, device in _grouped(faster, lambda device: rate(device.tokens_per_s or 0.0)):
        yield (
            f"{_are_left_out(names)}: answers would come faster"
            f" ({rate(device.tokens_per_s or 0.0)} instead of {rate(now)} tokens per second), but"
            " reading prompts, loading or the risk of losing it costs more."
        )
    others = [device for device in left_out if device.tokens_per_s is None]
    for names, device in _grouped(others, lambda device: device.reason):
        same = " for the same reason" if len(names) > 1 else ""
        yield f"{_are_left_out(names)}{same}: {REASONS.get(device.reason, device.reason)}."


def _slower(now: float, devices: Sequence[LeftOut]) -> Iterator[str]:
    rates = [device.tokens_per_s or 0.0 for device in devices]
    instead = f"tokens per second instead of {rate(now)}"
    if len({rate(value) for value in rates}) >= FEW_PLACES:
        names = [device.name for device in devices]
        yield (
            f"{_are_left_out(names)}: with {_any_of(names)}, it would be {rate(min(rates))} to"
            f" {rate(max(rates))} {instead}."
        )
        return
    for names, device in _grouped(devices, lambda device: rate(device.tokens_per_s or 0.0)):
        would_be = rate(device.tokens_per_s or 0.0)
        yield f"{_are_left_out(names)}: with {_any_of(names)}, it would be {would_be} {instead}."


def _grouped(
    devices: Sequence[LeftOut], key: Callable[[LeftOut], str]
) -> Iterator[tuple[list[str], LeftOut]]:
    """Names of devices of which the same can be said, and one of them."""
    groups: dict[str, list[LeftOut]] = {}
    for device in devices:
        groups.setdefault(key(device), []).append(device)
    for group in groups.values():
        yield [device.name for device in group], group[0]


def _are_left_out(names: Sequence[str]) -> str:
    return f"{listed(names)} {'is' if len(names) == 1 else 'are'} left out"


def _any_of(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "any one of them"


def _overrides(result: Planned) -> Iterator[str]:
    free, best = result.unrestricted, result.best
    if free is None:
        return
    if free.cost_s >= best.cost_s * 0.999:
        yield "Your own settings cost nothing: the planner would not do better."
        return
    yield (
        f"Your own settings have a price: without them it would be"
        f" {rate(free.decode_tokens_per_s)} instead of {rate(best.decode_tokens_per_s)} tokens"
        f" per second, and a whole request would take {1 - free.cost_s / best.cost_s:.0%} less"
        " time."
    )


def _what_ifs(result: Planned, what_ifs: Sequence[WhatIf]) -> Iterator[str]:
    best, useless = result.best, []
    now = rate(best.decode_tokens_per_s)
    for what in what_ifs:
        value = rate(what.tokens_per_s)
        if what.tokens_per_s > best.decode_tokens_per_s * SMALL_CHANGE:
            yield f"With {what.change}, it would be {value} tokens per second instead of {now}."
        elif what.cost_s * SMALL_CHANGE < best.cost_s:
            less = 1 - what.cost_s / best.cost_s
            yield (
                f"With {what.change}, answers would come no faster, but a whole request, prompt"
                f" included, would take {less:.0%} less time."
            )
        else:
            useless.append(what.change)
    if useless and not result.shrunk:  # else the change gives more context instead
        yield f"It would be no faster with {listed(useless, 'or')}."


def _proof(result: Planned) -> Iterator[str]:
    if not result.is_proven:
        yield "There are very many ways to do this; a slightly better one may exist."


def _notes(request: PlanRequest) -> Iterator[str]:
    yield from (f"Note: {note}." for note in request.shape.notes)
