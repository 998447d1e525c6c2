"""Invented models and clusters, and a planner that tries everything, to compare ours with.

The brute force shares the formulas of ``memory`` and ``speed`` with the planner, and nothing else:
no sums over layers, no sets, no bounds.
"""

import random
from collections.abc import Iterator
from functools import cache
from math import inf, prod

from supervisor.core.memory import (
    GIB,
    Platform,
    Position,
    Run,
    compute_bytes,
    feed_forward_bytes,
    kv_bytes,
    load_peak_bytes,
    logits_bytes,
    margin_bytes,
)
from supervisor.core.model_shape import LayerShape, ModelShape, Weights
from supervisor.core.planning import (
    DeviceOffer,
    Goal,
    HostOffer,
    PlanRequest,
    Rules,
    Wanted,
)
from supervisor.core.search import ladder
from supervisor.core.search_tables import FEWEST_FACTOR
from supervisor.core.speed import DeviceSpeed, LinkSpeed, Output, SpeedModel, Workload
from supervisor.core.workspace import workspace_of_any

LOCAL = LinkSpeed()
GIGA = 1e9


def wired(rtt_ms: float = 0.5, mbyte_per_s: float = 110) -> LinkSpeed:
    return link(rtt_ms, rtt_ms * 1.5, mbyte_per_s)


def link(rtt_ms: float, p90_ms: float, mbyte_per_s: float) -> LinkSpeed:
    return LinkSpeed(
        rtt_p50_s=rtt_ms / 1e3,
        rtt_p90_s=p90_ms / 1e3,
        up_bytes_per_s=mbyte_per_s * 1e6,
        down_bytes_per_s=mbyte_per_s * 1e6,
    )


def speed(gb_per_s: float, gflops: float, layer_ms: float = 0.02) -> DeviceSpeed:
    return DeviceSpeed(
        decode_bytes_per_s=gb_per_s * GIGA,
        decode_by_type={"Q6_K": gb_per_s * GIGA * 0.8},
        prefill_flops=gflops * GIGA,
        layer_overhead_s=layer_ms / 1e3,
    )


def layer(
    size_bytes: int, *, embedding: int = 4096, kv_elements: int = 1024, **more: int | None
) -> LayerShape:
    """A dense layer of that size in Q4_K."""
    values: dict[str, object] = {
        "size_bytes": size_bytes,
        "reads": (("Q4_K", size_bytes),),
        "active_elements": size_bytes * 16 // 9,
        "largest_bytes": size_bytes // 4,
        "key_elements": kv_elements,
        "value_elements": kv_elements,
        "attention_elements": embedding,
        "feed_forward": embedding * 7 // 2,
    }
    return LayerShape.model_validate(values | more)


def model(
    layers: list[LayerShape], *, embedding: int = 4096, vocabulary: int = 128_256
) -> ModelShape:
    matrix = embedding * vocabulary * 210 // 256
    return ModelShape(
        architecture="llama",
        layers=tuple(layers),
        embedding=embedding,
        heads=embedding // 128,
        head_length=128,
        vocabulary=vocabulary,
        output=Weights(
            size_bytes=matrix,
            reads=(("Q6_K", matrix),),
            active_elements=embedding * vocabulary,
            largest_bytes=matrix,
        ),
        output_matrix_bytes=matrix,
        input_bytes=embedding * vocabulary * 144 // 256,
        is_tied=False,
        last_cut=len(layers),
    )


def device(
    name: str,
    gib: float,
    device_speed: DeviceSpeed,
    device_link: LinkSpeed = LOCAL,
    platform: Platform = Platform.CPU,
    *,
    is_reliable: bool = True,
) -> DeviceOffer:
    return DeviceOffer(
        name=name,
        platform=platform,
        available_bytes=int(gib * GIB),
        speed=device_speed,
        link=device_link,
        is_reliable=is_reliable,
    )


def host(gib: float = 8, gb_per_s: float = 20, *, may_hold_layers: bool = True) -> HostOffer:
    return HostOffer(
        available_bytes=int(gib * GIB),
        speed=speed(gb_per_s, 200),
        may_hold_layers=may_hold_layers,
        token_overhead_s=0.0005,
    )


def random_device(rng: random.Random, index: int) -> DeviceOffer:
    """From phones to desktop GPUs, each on the links that such things have."""
    kind = rng.choice(("phone", "phone", "pi", "laptop", "mini", "studio", "gpu", "big gpu"))
    wifi = link(rng.uniform(2, 12), rng.uniform(12, 60), rng.uniform(5, 60))
    cable = wired(rng.uniform(0.2, 1.2), rng.choice((11, 110, 110, 280)))
    either = rng.choice((wifi, cable))
    gib, gb_per_s, gflops, where, platform = {
        "phone": (rng.uniform(3, 11), rng.uniform(6, 30), 150, wifi, Platform.ANDROID),
        "pi": (rng.uniform(3, 7), rng.uniform(4, 8), 40, cable, Platform.CPU),
        "laptop": (rng.uniform(5, 24), rng.uniform(15, 50), 400, either, Platform.CPU),
        "mini": (rng.uniform(8, 20), rng.uniform(70, 110), 3500, either, Platform.GPU),
        "studio": (rng.uniform(20, 60), rng.uniform(200, 400), 12_000, either, Platform.GPU),
        "gpu": (rng.uniform(5, 12), rng.uniform(180, 320), 20_000, cable, Platform.GPU),
        "big gpu": (rng.uniform(10, 24), rng.uniform(500, 900), 80_000, cable, Platform.GPU),
    }[kind]
    return device(
        f"{kind}-{index}",
        gib,
        speed(gb_per_s, gflops * rng.uniform(0.6, 1.4), rng.uniform(0.005, 0.08)),
        LOCAL if rng.random() < 0.1 else where,
        platform,
        is_reliable=kind != "phone" or rng.random() < 0.3,
    )


def random_layers(rng: random.Random, n_layers: int, total_bytes: float) -> list[LayerShape]:
    """Uniform, mixed quantisation, dense first layers of a mixture of experts, sliding, hybrid."""
    kind = rng.choice(("uniform", "uniform", "mixed", "experts", "sliding", "hybrid", "wild"))
    size = int(total_bytes / n_layers)
    kv = rng.choice((512, 1024, 2048))
    if kind == "mixed":
        return [layer(int(size * rng.choice((0.9, 1.15))), kv_elements=kv) for _ in range(n_layers)]
    if kind == "experts":
        expert = layer(size, kv_elements=kv, feed_forward=0, experts_used=8).model_copy(
            update={"reads": (("Q4_K", size // 8),), "active_elements": size // 8 * 16 // 9}
        )
        return [layer(size // 3, kv_elements=kv), *[expert] * (n_layers - 1)]
    if kind == "sliding":
        slides = layer(size, kv_elements=kv, window_tokens=1024)
        return [slides if i % 3 else layer(size, kv_elements=kv) for i in range(n_layers)]
    if kind == "hybrid":
        state = layer(size, kv_elements=0, state_elements=1 << 20, attention_elements=0)
        return [layer(size, kv_elements=kv) if i % 4 == 3 else state for i in range(n_layers)]
    if kind == "wild":
        return [layer(int(size * rng.uniform(0.3, 1.7)), kv_elements=kv) for _ in range(n_layers)]
    return [layer(size, kv_elements=kv)] * n_layers


def random_request(
    rng: random.Random, n_devices: int, n_layers: int, ubatches: tuple[int, ...] = (512, 256, 128)
) -> PlanRequest:
    """A cluster and a model that is often, but not always, too large for one of its devices."""
    devices = tuple(random_device(rng, i) for i in range(n_devices))
    room = sum(d.available_bytes for d in devices)
    total = min(room * rng.uniform(0.1, 0.8), 80 * GIB)
    shape = model(random_layers(rng, n_layers, total), vocabulary=rng.choice((32_000, 128_256)))
    if rng.random() < 0.1:  # the last layers share a cache
        shape = shape.model_copy(update={"last_cut": n_layers // 2})
    main = host(rng.uniform(3, 24), rng.uniform(10, 60), may_hold_layers=rng.random() < 0.6)
    if rng.random() < 0.1:
        devices = (with_cache(rng, devices[0], n_layers), *devices[1:])
    return PlanRequest(
        shape=shape,
        devices=devices,
        host=main.model_copy(update={"disk_bytes_per_s": rng.choice((0, 50e6, 2e9))}),
        wanted=Wanted(
            ctx_tokens=rng.choice((4096, 8192, 16_384)),
            ubatches=ubatches,
            slots=rng.choice((1, 1, 4)),
        ),
        goal=random_goal(rng),
        rules=Rules(allow_sampling_on_devices=rng.random() < 0.3),
    )


def random_goal(rng: random.Random) -> Goal:
    prompt, generated = rng.choice(((1000, 300), (1000, 300), (4000, 50), (100, 1000)))
    return Goal(
        workload=Workload(
            prompt_tokens=prompt, generated_tokens=generated, users=rng.choice((1, 1, 1, 4))
        ),
        requests_per_load=rng.choice((20, 100, inf)),
        fewest_devices=rng.random() < 0.05,
    )


def with_cache(rng: random.Random, offer: DeviceOffer, n_layers: int) -> DeviceOffer:
    """Some layers, or the output, are on that device already."""
    cached = frozenset(i for i in range(n_layers + 1) if rng.random() < 0.5)
    return offer.model_copy(update={"cached_layers": cached})


def brute_force(request: PlanRequest) -> float:
    """The best score of any placement at all, for the first settings with one that fits."""
    for runs in ladder(request):
        best = min(Everything(request, run).best() for run in runs)
        if best < inf:
            return best
    return inf


def score_factor(request: PlanRequest, names: list[str]) -> float:
    """What the cost of a placement on these devices is multiplied by, to be judged."""
    offers = [offer for offer in request.devices if offer.name in names]
    return prod(device_factor(request, offer) for offer in offers)


def device_factor(request: PlanRequest, offer: DeviceOffer) -> float:
    unsteady = not offer.is_reliable or offer.link.rtt_p90_s > request.rules.max_rtt_p90_s
    return (request.goal.unreliable_factor if unsteady else 1.0) * (
        FEWEST_FACTOR if request.goal.fewest_devices else 1.0
    )


class Everything:
    """All placements with one set of settings."""

    def __init__(self, request: PlanRequest, run: Run) -> None:
        self.request, self.run, self.shape = request, run, request.shape
        self.model = SpeedModel(request.shape, run, request.goal.workload)
        work = request.goal.workload
        self.tokens = work.generated_tokens / work.users
        self.n = self.shape.n_layers
        self.outputs = [Output.LAST, Output.HOST]
        if request.rules.allow_sampling_on_devices:
            self.outputs.append(Output.SAMPLED)
        self.part = cache(self._part)
        self.end = cache(self._end)

    def best(self) -> float:
        return min(self._of_output(output) for output in self.outputs)

    def _of_output(self, output: Output) -> float:
        host_offer = self.request.host
        found = inf
        most = self.n if host_offer.may_hold_layers else 0
        for block in range(most + 1):
            if not self._host_fits(block, output):
                break
            if not self.shape.cut_is_allowed(block):
                continue
            layers = self.shape.layers[:block]
            work = self.tokens * host_offer.token_overhead_s + self.tokens * sum(
                self.model.decode_layer_s(one, host_offer.speed) for one in layers
            )
            reading = sum(
                self.model.load_s(one.size_bytes, LOCAL, host_offer.disk_bytes_per_s)
                for one in layers
            )
            work += reading / self.request.goal.requests_per_load
            prefill = sum(
                self.model.prefill_layer_s(one, host_offer.speed, LOCAL) for one in layers
            )
            if block == self.n and output is Output.HOST:
                alone = work + self.tokens * self.model.output_s(host_offer.speed)
                found = min(found, alone + self.model.prefill_s(0, prefill))
            found = min(found, self._rest(block, 0, work, prefill, 1.0, output))
        return found

    def _rest(
        self, first: int, used: int, work: float, others: float, factor: float, output: Output
    ) -> float:
        found = inf
        for index in range(len(self.request.devices)):
            if used >> index & 1:
                continue
            own = factor * device_factor(self.request, self.request.devices[index])
            last = self.end(index, first, output)
            if last is not None:
                cost = work + last[0] + self.model.prefill_s(others, last[1])
                found = min(found, cost * own)
            for end in range(first + 1, self.n + 1):
                part = self.part(index, first, end)
                if part is None:
                    break
                if not self.shape.cut_is_allowed(end):
                    continue
                found = min(
                    found,
                    self._rest(
                        end, used | 1 << index, work + part[0], others + part[1], own, output
                    ),
                )
        return found

    def _part(self, index: int, first: int, end: int) -> tuple[float, float] | None:
        if not self._fits(index, first, end, None):
            return None
        return self._costs(index, first, end, None)

    def _end(self, index: int, first: int, output: Output) -> tuple[float, float] | None:
        if output is Output.HOST and first == self.n:
            return None
        if not self._fits(index, first, self.n, output):
            return None
        offer = self.request.devices[index]
        work, prefill = self._costs(index, first, self.n, output)
        where = self.request.host.speed if output is Output.HOST else offer.speed
        work += self.tokens * self.model.output_s(where)
        if output is not Output.HOST:
            work += self._load(self.n, self.shape.output.size_bytes, offer)
        return work, prefill

    def _load(self, layer_: int, size_bytes: int, offer: DeviceOffer) -> float:
        if layer_ in offer.cached_layers:
            return 0.0
        disk = self.request.host.disk_bytes_per_s
        seconds = self.model.load_s(size_bytes, offer.link, disk)
        return seconds / self.request.goal.requests_per_load

    def _costs(
        self, index: int, first: int, end: int, output: Output | None
    ) -> tuple[float, float]:
        offer = self.request.devices[index]
        layers = self.shape.layers[first:end]
        token = sum(self.model.decode_layer_s(one, offer.speed) for one in layers)
        token += self.model.hop_s(offer.link, output)
        load = sum(self._load(i, one.size_bytes, offer) for i, one in enumerate(layers, first))
        prefill = sum(self.model.prefill_layer_s(one, offer.speed, offer.link) for one in layers)
        prefill += self.model.prefill_hop_s(offer.link, is_last=output is not None)
        return self.tokens * token + load, prefill

    def _fits(self, index: int, first: int, end: int, output: Output | None) -> bool:
        offer = self.request.devices[index]
        layers = self.shape.layers[first:end]
        has_output = output in {Output.LAST, Output.SAMPLED}
        own = [self.shape.output] if has_output else []
        weights = sum(one.size_bytes for one in [*layers, *own])
        largest = max((one.largest_bytes for one in [*layers, *own]), default=0)
        position = Position.OUTPUT if has_output else Position.MIDDLE
        peak = load_peak_bytes(
            weights,
            largest,
            sum(kv_bytes(one, self.run) for one in layers),
            self._compute(position, first, end),
        )
        return peak <= self._budget(offer)

    def _host_fits(self, block: int, output: Output) -> bool:
        shape = self.shape
        on_host = output is Output.HOST
        weights = shape.input_bytes + sum(one.size_bytes for one in shape.layers[:block])
        weights += shape.output_matrix_bytes if on_host else 0
        position = Position.HOST_WITH_LAYERS if block else Position.HOST
        compute = self._compute(position, 0, block)
        compute += logits_bytes(shape, self.run) * (2 if on_host else 1)
        sending = 2 * max(*(one.largest_bytes for one in shape.layers), shape.output.largest_bytes)
        kv = sum(kv_bytes(one, self.run) for one in shape.layers[:block])
        return load_peak_bytes(weights, sending, kv, compute) <= self._budget(self.request.host)

    def _compute(self, position: Position, first: int, end: int) -> int:
        layers = self.shape.layers[first:end]
        forward = max((feed_forward_bytes(self.shape, one, self.run) for one in layers), default=0)
        rules = self.request.rules
        exact = compute_bytes(self.shape, self.run, position, forward)
        is_worker = position not in {Position.HOST, Position.HOST_WITH_LAYERS}
        workspace = workspace_of_any(self.shape, self.run) if is_worker else 0
        return round(exact * rules.compute_factor + rules.compute_extra_bytes) + workspace

    def _budget(self, offer: DeviceOffer | HostOffer) -> int:
        floor = self.request.rules.margin_floor_bytes
        return offer.available_bytes - margin_bytes(offer.platform, offer.available_bytes, floor)


def requests(seed: int, count: int, sizes: tuple[tuple[int, int], ...]) -> Iterator[PlanRequest]:
    """Random requests; ``sizes`` are pairs of devices and layers, used in turn."""
    rng = random.Random(seed)
    for number in range(count):
        n_devices, n_layers = sizes[number % len(sizes)]
        yield random_request(rng, n_devices, n_layers)
