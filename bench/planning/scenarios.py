"""The emulated clusters of tier C: small enough that every placement can be run.

Factors of the brakes and links are what is wanted; what the planner gets to know is measured.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from layouts import room_bytes, room_for
from made_models import Made
from worker_lab import UNSHAPED, Emulated, Measured, Wire

from supervisor.core.memory import F32_BYTES, Platform, Run
from supervisor.core.model_shape import ModelShape
from supervisor.core.offers import LAYER_OPERATIONS
from supervisor.core.planning import DeviceOffer, Goal, HostOffer, PlanRequest, Rules, Wanted
from supervisor.core.search_sizes import Sizes
from supervisor.core.speed import (
    HEADER_BYTES,
    RECOMPUTE_AND_GET_BYTES,
    REPLY_BYTES,
    DeviceSpeed,
    LinkSpeed,
    Workload,
)

HOST_NAME = "main host"
HOP_SETS, HOP_INPUT_BYTES = 5, 532
"""Messages that ``Workbench.hop_overhead_s`` sends, and their bytes but for the activation."""


CHAT = Workload(prompt_tokens=64, generated_tokens=256)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A cluster, a model, and what they are judged by."""

    name: str
    tests: str
    made: Made
    devices: tuple[Emulated, ...]
    work: Workload = CHAT
    by_request: bool = False
    """Judged by seconds per request; otherwise by tokens per second, after the prompt."""

    ctx_tokens: int = 1024
    kv_type: str = "f16"
    ubatch: int = 512
    host_layers: int = 0
    """How many layers the main host has memory for."""

    step: int = 1
    """Of the first pass over all placements; around the best of them, every one is tried."""

    @property
    def run(self) -> Run:
        return Run(ctx_tokens=self.ctx_tokens, kv_type=self.kv_type, ubatch=self.ubatch)

    @property
    def types(self) -> tuple[str, ...]:
        """What is measured of each device: what the model has, and its cache."""
        return tuple(dict.fromkeys((self.made.kind, self.made.output_kind, "F16")))

    @property
    def alike(self) -> Mapping[str, Hashable]:
        """The same for devices that differ in name only."""
        return {d.name: (d.slow, d.wire, d.cap_layers) for d in self.devices}

    @property
    def emulated(self) -> tuple[Emulated, ...]:
        """All that is measured: the main host too, by a worker of its own, without a brake."""
        return (*self.devices, Emulated(HOST_NAME, 1.0, UNSHAPED))


WIRED = Wire(0.6, 110)
BODY = Made(layers=8, width=2048, feed_forward=7168)
"""A quarter of a gigabyte, 31 MB per layer: more than the caches hold."""

SMALL_BODY = Made(layers=8, width=1024, feed_forward=4096, kind="Q8_0", output_kind="Q8_0")
CLUSTER = (
    Emulated("laptop", 1.5, Wire(1, 60)),
    Emulated("old-pc", 2.0, Wire(0.6, 110)),
    Emulated("phone", 3.0, Wire(4, 25)),
)

SCENARIOS = (
    Scenario(
        "one-fits",
        "the model fits on one device: leave the phone out",
        BODY,
        (Emulated("desktop", 1.5, WIRED), Emulated("phone", 3.0, Wire(6, 15))),
    ),
    Scenario(
        "bad-link",
        "fast device on a bad link, slow one on a good link: where the output goes",
        BODY,
        (Emulated("fast", 1.5, Wire(20, 6)), Emulated("slow", 3.6, Wire(1, 100))),
    ),
    Scenario(
        "equal-wired",
        "two equal devices, neither holds the model",
        BODY,
        (Emulated("left", 2.0, WIRED, 5), Emulated("right", 2.0, WIRED, 5)),
    ),
    Scenario(
        "capped",
        "the fast device holds 5 of 8 layers: the right second one",
        BODY,
        (
            Emulated("fast", 1.5, WIRED, 5),
            Emulated("slow", 3.0, WIRED),
            Emulated("slower", 4.5, WIRED),
        ),
        step=2,
    ),
    Scenario(
        "spare-rtt",
        "the faster spare has four times the round trip",
        BODY,
        (
            Emulated("fast", 1.5, WIRED, 5),
            Emulated("far", 2.5, Wire(8, 50)),
            Emulated("near", 3.5, Wire(2, 50)),
        ),
        step=2,
    ),
    Scenario(
        "vocabulary",
        "128k words and a tiny body on Wi-Fi: the output on the main host",
        Made(layers=8, width=768, feed_forward=3072, vocabulary=131_072),
        (Emulated("pad", 1.5, Wire(4, 12)), Emulated("phone", 2.5, Wire(5, 30))),
    ),
    Scenario(
        "quantised-cache",
        "a cache in q8_0 on Wi-Fi: rotations are sent with every token",
        Made(layers=8, width=2048, feed_forward=7168, heads=16, kv_heads=8),
        (Emulated("fast", 1.5, Wire(3, 8)), Emulated("slow", 2.5, Wire(1, 100))),
        kv_type="q8_0",
    ),
    Scenario(
        "long-context",
        "3000 tokens in a cache as large as the weights",
        Made(layers=8, width=1536, feed_forward=3072, heads=12, kv_heads=12),
        (Emulated("fast", 1.5, Wire(4, 30), 5), Emulated("slow", 2.5, WIRED)),
        work=Workload(prompt_tokens=3000, generated_tokens=128),
        ctx_tokens=4096,
    ),
    Scenario(
        "prefill-heavy",
        "long prompts, short answers: the strongest device last, half of the work",
        SMALL_BODY,
        CLUSTER,
        work=Workload(prompt_tokens=1024, generated_tokens=16),
        by_request=True,
        ctx_tokens=2048,
        ubatch=128,
        step=2,
    ),
    Scenario(
        "decode-heavy",
        "the same cluster and model, short prompts, long answers",
        SMALL_BODY,
        CLUSTER,
        work=Workload(prompt_tokens=64, generated_tokens=512),
        by_request=True,
        ctx_tokens=2048,
        ubatch=128,
        step=2,
    ),
    Scenario(
        "experts",
        "a mixture of experts: memory for all of them, time for those used",
        Made(layers=8, width=1536, feed_forward=768, experts=(16, 4)),
        (Emulated("fast", 1.5, WIRED, 5), Emulated("slow", 3.0, Wire(2, 40))),
    ),
    Scenario(
        "host-block",
        "the main host holds 4 of 8 layers itself; two workers",
        BODY,
        (Emulated("near", 3.0, WIRED), Emulated("far", 1.5, Wire(10, 20))),
        host_layers=4,
        step=2,
    ),
)


def speed_of(measured: Measured, main_type: str) -> DeviceSpeed:
    """As ``core/offers.py`` does it, and what attention costs."""
    found, attention = measured.device, measured.attention
    return DeviceSpeed(
        decode_bytes_per_s=found.decode_bytes_per_s[main_type],
        decode_by_type=found.decode_bytes_per_s,
        prefill_flops=found.prefill_flop_per_s[main_type],
        cache_bytes_per_s=attention.cache_bytes_per_s,
        attention_flops=attention.decode_flops,
        prefill_attention_flops=attention.prefill_flops,
        layer_overhead_s=LAYER_OPERATIONS * found.op_overhead_s,
    )


def link_of(found: Measured, width: int) -> LinkSpeed:
    """The way to a device, and what a token costs beyond its round trip and its bytes.

    Not ``hop_overhead_s`` as the device itself measures it: whoever passes the messages on takes
    his time for each of the twenty, and a ping is only one.
    """
    link = found.link
    hidden = F32_BYTES * width
    up = HOP_SETS * HEADER_BYTES + hidden + HOP_INPUT_BYTES + RECOMPUTE_AND_GET_BYTES
    bytes_s = up / link.up_bytes_per_s + (REPLY_BYTES + hidden) / link.down_bytes_per_s
    return LinkSpeed(
        rtt_p50_s=link.round_trip_p50_s,
        rtt_p90_s=link.round_trip_p90_s,
        up_bytes_per_s=link.up_bytes_per_s,
        down_bytes_per_s=link.down_bytes_per_s,
        overhead_s=max(0.0, found.hop_s - bytes_s),
    )


def request_of(
    scenario: Scenario,
    shape: ModelShape,
    measured: Mapping[str, Measured],
    *,
    token_overhead_s: float,
) -> PlanRequest:
    """What the planner is asked."""
    sizes = Sizes(shape, scenario.run, Rules())
    kind = scenario.made.kind
    host = HostOffer(
        available_bytes=0,
        speed=speed_of(measured[HOST_NAME], kind),
        may_hold_layers=scenario.host_layers > 0,
        token_overhead_s=token_overhead_s,
    )
    return PlanRequest(
        shape=shape,
        devices=tuple(
            _offer(device, measured[device.name], kind, sizes) for device in scenario.devices
        ),
        host=host.model_copy(update={"available_bytes": host_room_bytes(sizes, host, scenario)}),
        wanted=Wanted(
            ctx_tokens=scenario.ctx_tokens,
            kv_types=(scenario.kv_type,),
            ubatches=(scenario.ubatch,),
        ),
        goal=Goal(workload=scenario.work, requests_per_load=float("inf")),
    )


def _offer(device: Emulated, measured: Measured, kind: str, sizes: Sizes) -> DeviceOffer:
    offer = DeviceOffer(
        name=device.name,
        platform=Platform.CPU,
        available_bytes=0,
        speed=speed_of(measured, kind),
        link=link_of(measured, sizes.shape.embedding),
    )
    room = room_bytes(sizes, offer, device.cap_layers)
    return offer.model_copy(update={"available_bytes": room})


def host_room_bytes(sizes: Sizes, host: HostOffer, scenario: Scenario) -> int:
    """What the main host must have available for its layers and the output, and no more."""
    slack = sizes.shape.layers[0].size_bytes // 2
    wanted = sizes.host_use(host, scenario.host_layers, with_output=True).peak_bytes + slack
    return room_for(wanted, sizes, host, slack)
