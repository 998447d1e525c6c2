"""Says in plain words what was planned and why, for somebody who has never split a model."""

from collections.abc import Iterator, Sequence

from supervisor.core.planning import (
    HOST,
    LeftOut,
    NoFit,
    PlacedDevice,
    Placement,
    Planned,
    PlanRequest,
    WhatIf,
)
from supervisor.core.speed import Output
from supervisor.core.units import gib

SMALL_CHANGE = 1.03
"""What changes less than this is not worth a sentence."""


def explain(
    request: PlanRequest, result: Planned | NoFit, what_ifs: Sequence[WhatIf] = ()
) -> list[str]:
    """One sentence each: the choice, its price, its limits, what was left out, what was guessed."""
    if isinstance(result, NoFit):
        return [*_no_fit(request, result), *_notes(request)]
    best = result.best
    return [
        *_choice(request, best),
        *_expectation(best),
        *_shrunk(result),
        *_output(request, best),
        *_limits(request, best),
        *_memory(best),
        *_left_out(best, result.left_out),
        *_unreliable(request, best),
        *_overrides(result),
        *_what_ifs(best, what_ifs),
        *_guesses(request, best),
        *_proof(result),
        *_notes(request),
    ]


def _choice(request: PlanRequest, best: Placement) -> Iterator[str]:
    size = gib(request.shape.weight_bytes)
    offered = len(request.devices)
    if not best.devices:
        yield (
            f"The main host runs the whole model ({size}) by itself: no device is faster, so"
            " nothing waits for the network."
        )
        return
    if len(best.devices) == 1 and not best.host.layers:
        yield (
            f"The whole model ({size}) runs on {best.devices[0].name}: it fits there, and"
            " splitting it over more devices would only add waiting for the network."
        )
        return
    yield (
        f"The model ({size}) is a stack of {best.n_layers} layers that every word passes through"
        f" in order; {len(best.devices)} of {offered} devices share it."
    )
    if best.host.layers:
        yield f"{_span(best.host)} on the {HOST}, by its own processor: no network is needed there."
    for device in best.devices:
        yield f"{_span(device)} on {device.name} ({gib(device.memory.weight_bytes)} of weights)."


def _span(device: PlacedDevice) -> str:
    first, last = device.first_layer + 1, device.first_layer + device.layers
    if device.layers == 0:
        return "Only the output layer is"
    return f"Layer {first} is" if first == last else f"Layers {first} to {last} are"


def _expectation(best: Placement) -> Iterator[str]:
    yield (
        f"Expected: {_rate(best.decode_tokens_per_s)} tokens per second while answering,"
        f" {_rate(best.prefill_tokens_per_s)} while reading a prompt of {best.prompt_tokens}"
        f" tokens, and {_seconds(best.times.load_s)} to load."
    )


def _shrunk(result: Planned) -> Iterator[str]:
    if result.shrunk:
        yield f"What you asked for does not fit, so this has a {', and a '.join(result.shrunk)}."


def _output(request: PlanRequest, best: Placement) -> Iterator[str]:
    if not best.devices:
        return
    last = next(d for d in request.devices if d.name == best.devices[-1].name)
    size = 4 * request.shape.vocabulary / 1000
    if best.output is Output.HOST:
        yield (
            f"The output layer, which scores {request.shape.vocabulary} possible next tokens, is"
            f" computed on the main host: otherwise {size:.0f} kB would cross the network for"
            " every token."
        )
    elif best.output is Output.SAMPLED:
        yield (
            f"{last.name} computes the output layer and picks the token itself, so that its"
            f" {size:.0f} kB of scores need not cross the network."
        )
    elif not last.link.is_local:
        yield (
            f"{last.name} is last and computes the output layer; the {size:.0f} kB of scores that"
            f" it sends back take {_ms(last.link.receiving_s(size * 1000))} per token."
        )


def _limits(request: PlanRequest, best: Placement) -> Iterator[str]:
    """Where the time of a token goes: the largest share of computing, and of waiting."""
    token_s = best.times.token_s
    names = [HOST] if best.host.layers else []
    names += [device.name for device in best.devices]
    stages = dict(zip(names, best.times.stages, strict=True))
    compute = {name: stage.compute_s for name, stage in stages.items()}
    compute[best.output_device] = compute.get(best.output_device, 0.0) + best.times.output_s
    slowest = max(compute, key=compute.__getitem__)
    share = compute[slowest] / token_s
    most = "most of it is" if share >= 0.5 else "the largest part of it is"
    yield (
        f"Each token takes {_ms(token_s)}; {most} {slowest} computing"
        f" ({_ms(compute[slowest])}, {share:.0%})."
    )
    hops = {name: stage.hop_s for name, stage in stages.items() if stage.hop_s > 0}
    if not hops:
        yield "Nothing waits for the network."
        return
    farthest = max(hops, key=hops.__getitem__)
    yield (
        f"Waiting for the network takes {_ms(sum(hops.values()))} of it"
        f" ({sum(hops.values()) / token_s:.0%}), the most of that for {farthest}"
        f" ({_ms(hops[farthest])})."
    )


def _memory(best: Placement) -> Iterator[str]:
    """The fullest device, with the whole context in use."""
    places = [*best.devices, *([best.host] if best.host.layers or not best.devices else [])]
    fullest = max(places, key=lambda d: d.memory.peak_bytes / max(1, d.memory.budget_bytes))
    memory = fullest.memory
    free = memory.available_bytes - memory.budget_bytes
    yield (
        f"With all {best.run.ctx_tokens} tokens of context in use, {fullest.name} is the fullest:"
        f" it needs {gib(memory.peak_bytes)} of {gib(memory.available_bytes)}, of which"
        f" {gib(free)} are kept free for the system."
    )


def _left_out(best: Placement, left_out: Sequence[LeftOut]) -> Iterator[str]:
    for device in left_out:
        if device.tokens_per_s is None:
            yield f"{device.name} is left out: {device.reason}."
        else:
            yield _with(best, device)


def _with(best: Placement, device: LeftOut) -> str:
    now, then = best.decode_tokens_per_s, device.tokens_per_s or 0.0
    if now / SMALL_CHANGE < then < now * SMALL_CHANGE:
        return (
            f"{device.name} is left out: with it, it would be about as fast"
            f" ({_rate(then)} tokens per second), with one more device that can fail."
        )
    if then <= now:
        return (
            f"{device.name} is left out: with it, it would be {_rate(then)} tokens per second"
            f" instead of {_rate(now)}."
        )
    return (
        f"{device.name} is left out: answering would be {_rate(then)} instead of {_rate(now)}"
        " tokens per second, but reading prompts, loading or the risk of losing it costs more."
    )


def _unreliable(request: PlanRequest, best: Placement) -> Iterator[str]:
    used = {device.name for device in best.devices}
    names = [d.name for d in request.devices if d.name in used and not d.is_reliable]
    if names:
        yield (
            f"{', '.join(names)} may drop out (battery, Wi-Fi or heat), and the model stops with"
            " any device; it is used because the gain is large or nothing else holds the model."
        )


def _overrides(result: Planned) -> Iterator[str]:
    free, best = result.unrestricted, result.best
    if free is None:
        return
    if free.cost_s >= best.cost_s * 0.999:
        yield "Your own settings cost nothing: the planner would not do better."
        return
    yield (
        f"Your own settings have a price: without them it would be"
        f" {_rate(free.decode_tokens_per_s)} instead of {_rate(best.decode_tokens_per_s)} tokens"
        f" per second ({best.cost_s / free.cost_s - 1:.0%} more time per request now)."
    )


def _what_ifs(best: Placement, what_ifs: Sequence[WhatIf]) -> Iterator[str]:
    for what in what_ifs:
        rate = _rate(what.tokens_per_s)
        if what.tokens_per_s > best.decode_tokens_per_s * SMALL_CHANGE:
            yield f"With {what.change}, it would be {rate} tokens per second."
        elif what.cost_s * SMALL_CHANGE < best.cost_s:
            less = 1 - what.cost_s / best.cost_s
            yield (
                f"With {what.change}, answering would be no faster ({rate} tokens per second),"
                f" but a whole request would take {less:.0%} less time."
            )
        else:
            yield f"With {what.change}, it would be no faster."


def _guesses(request: PlanRequest, best: Placement) -> Iterator[str]:
    used = {device.name for device in best.devices}
    offers = [d for d in request.devices if d.name in used]
    speeds = [d.name for d in offers if d.speed.is_guess]
    if request.host.speed.is_guess and HOST in {best.output_device, best.host.layers and HOST}:
        speeds.append(f"the {HOST}")
    links = [d.name for d in offers if d.link.is_guess]
    if speeds:
        yield f"The speed of {', '.join(speeds)} is a guess; 'supervisor measure' makes it a fact."
    if links:
        yield (
            f"The network to {', '.join(links)} is a guess; 'supervisor measure' makes it a fact."
        )


def _proof(result: Planned) -> Iterator[str]:
    if not result.is_proven:
        yield "There are very many ways to do this; a slightly better one may exist."


def _notes(request: PlanRequest) -> Iterator[str]:
    yield from (f"Note: {note}." for note in request.shape.notes)


def _no_fit(request: PlanRequest, result: NoFit) -> Iterator[str]:
    run = result.run
    layers = min(result.missing_layers, request.shape.n_layers)
    yield (
        f"The model does not fit: with {run.ctx_tokens} tokens of context it needs"
        f" {gib(result.needed_bytes)}, all devices together may use {gib(result.budget_bytes)}."
    )
    yield (
        f"{layers} of its {request.shape.n_layers} layers find no place; a device with"
        f" {gib(result.missing_bytes)} more would hold them."
    )
    for device in result.devices:
        yield (
            f"{device.name} may use {gib(device.budget_bytes)} of {gib(device.available_bytes)}"
            f" and holds {device.layers} layers; it would need {gib(device.needs_bytes)} for more."
        )
    if result.nearest is not None:
        nearest = result.nearest
        yield (
            f"The nearest that fits: {nearest.ctx_tokens} tokens of context with a"
            f" {nearest.kv_type} cache."
        )
    else:
        yield "No smaller context helps; add a device or choose a smaller quantisation."


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.1f} s"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
