"""What the planner is offered: the devices' own facts joined with what was measured of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from sys import maxsize
from typing import Final

from agents.contract import DeviceFacts, GgmlDevice
from supervisor.core import guesses, mac_gpus
from supervisor.core.entities import AgentId, Device, Plan
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.core.memory import MIB, Platform
from supervisor.core.model_shape import ModelShape
from supervisor.core.planning import DeviceOffer, HostOffer
from supervisor.core.speed import DeviceSpeed, LinkSpeed
from supervisor.core.wires import in_use

LAYER_OPERATIONS: Final = 20
"""Nodes of a llama layer's graph that compute something; each costs a fixed time."""

USUAL_TYPE: Final = "Q4_K"
HOT_C: Final = 85.0
HOT_BATTERY_C: Final = 43.0
HOST_WORKSPACE_BYTES: Final = 256 * MIB
"""llama-server itself: its graph, its buffers for requests, and Python beside it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A ggml device that may hold layers, and how the planner calls it."""

    name: str
    device: Device
    facts: DeviceFacts
    ggml: GgmlDevice

    @property
    def shares_host_memory(self) -> bool:
        """Whether its memory is the one that programs have, and not a card's own."""
        return self.ggml.is_cpu or self.facts.platform in ("macos", "android")

    @property
    def available_bytes(self) -> int:
        """Memory that may really be taken: rpc-servers report all memory of a CPU as free."""
        if self.ggml.is_cpu:
            return self.facts.memory_available_bytes
        if self.shares_host_memory:
            return min(self.ggml.free_bytes, self.facts.memory_available_bytes)
        return self.ggml.free_bytes


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the main host is."""

    boot_id: str
    platform: str
    cores: int
    available_bytes: int
    may_hold_layers: bool
    option_bytes: int = 0
    """Of that, what files of model options take."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measurements that still count."""

    devices: Mapping[tuple[AgentId, str], DeviceMeasured]
    links: Mapping[AgentId, LinkMeasured]


def places_of(device: Device) -> list[Place]:
    """The ggml devices of a device that can take layers.

    Where a GPU shares the memory of programs, the CPU beside it has nothing of its own to offer.
    """
    facts = device.facts
    if facts is None:
        return []
    usable = [ggml for ggml in facts.ggml_devices if not ggml.name.upper().startswith("BLAS")]
    cards = [ggml for ggml in usable if not ggml.is_cpu]
    if cards and facts.platform in ("macos", "android"):
        usable = cards
    single = len(usable) == 1
    return [
        Place(device.name if single else f"{device.name}/{ggml.name}", device, facts, ggml)
        for ggml in usable
    ]


def is_on(place: Place, host: HostFacts) -> bool:
    """Whether a place is in the main host itself."""
    return bool(host.boot_id) and place.facts.boot_id == host.boot_id


def holds_layers_itself(host: HostFacts, places: Iterable[Place]) -> bool:
    """Whether llama-server's own processor may hold layers; not beside a GPU in the same memory."""
    return host.may_hold_layers and not any(
        is_on(place, host) and place.shares_host_memory and not place.ggml.is_cpu
        for place in places
    )


def is_host_itself(place: Place, host: HostFacts) -> bool:
    """Whether a place is the very processor that llama-server can use without any worker."""
    return host.may_hold_layers and place.ggml.is_cpu and is_on(place, host)


def as_if_stopped(device: Device, plan: Plan, host: HostFacts) -> Device:
    """A device with the memory that it would have without what runs of a plan."""
    facts = device.facts
    if facts is None:
        return device
    held = _held_bytes(device, plan)
    if host.boot_id and facts.boot_id == host.boot_id:
        held += host_held_bytes(plan)
    free = min(facts.memory_available_bytes + held, facts.memory_total_bytes or maxsize)
    return device.model_copy(update={"facts": replace(facts, memory_available_bytes=free)})


def _held_bytes(device: Device, plan: Plan) -> int:
    """What an rpc-server takes of the memory that programs have, not of a card's own."""
    facts, cards = device.facts, set[str]()
    if facts is not None and facts.platform not in ("macos", "android"):
        cards = {ggml.name for ggml in facts.ggml_devices if not ggml.is_cpu}
    shards = [s for s in plan.shards if s.agent_id == device.id and s.ggml_device not in cards]
    planned = sum(s.weight_bytes + s.kv_bytes + s.compute_bytes for s in shards)
    seen = device.rpc_server.resident_bytes if device.rpc_server else None
    return planned if seen is None else min(planned, seen)


def host_held_bytes(plan: Plan) -> int:
    """The same of llama-server: the pages of its mapped model count as available already."""
    return plan.host.kv_bytes + plan.host.compute_bytes + plan.host.option_bytes


def device_offers(
    places: Sequence[Place], host: HostFacts, measured: Measurements, shape: ModelShape
) -> tuple[DeviceOffer, ...]:
    """One offer per place; places that share memory are offered their part of it."""
    parts = _shared(places, host, shape)
    return tuple(
        DeviceOffer(
            name=place.name,
            platform=_platform(place),
            available_bytes=parts.get(place.name, place.available_bytes),
            speed=_speed(place, measured, shape),
            link=_link(place, measured),
            is_reliable=_is_reliable(place),
            ubatch_cap=(cap := mac_gpus.ubatch_cap(place.facts, place.ggml)),
            is_small_mac=cap is not None,
            gpu_limit=mac_gpus.gpu_limit(place.facts, place.ggml),
        )
        for place in places
    )


def host_offer(
    host: HostFacts, places: Sequence[Place], measured: Measurements, shape: ModelShape
) -> HostOffer:
    """The main host's own processor; it was measured if an agent of ours runs on it."""
    own = [p for p in places if is_on(p, host) and p.ggml.is_cpu]
    known = (measured.devices.get((p.device.id, p.ggml.name)) for p in own)
    found = next((m for m in known if m is not None), None)
    speed = (
        _measured_speed(found, shape)
        if found
        else guesses.device_speed("CPU", host.platform, host.cores)
    )
    derate = min((place.facts.derate for place in own), default=1.0)
    return HostOffer(
        available_bytes=max(0, host.available_bytes - host.option_bytes),
        speed=derated(speed, derate),
        platform=Platform.ANDROID if host.platform == "android" else Platform.CPU,
        may_hold_layers=holds_layers_itself(host, places),
    )


def host_reserve_bytes(shape: ModelShape) -> int:
    """What llama-server needs for itself, before it holds any layer: planning.md 2.1."""
    largest = max((layer.largest_bytes for layer in shape.layers), default=0)
    sending = 2 * max(largest, shape.output.largest_bytes)
    return shape.input_bytes + sending + HOST_WORKSPACE_BYTES


def _shared(places: Sequence[Place], host: HostFacts, shape: ModelShape) -> dict[str, int]:
    """The same bytes are never offered twice: equal parts for places in one memory."""
    groups: dict[str, list[Place]] = {}
    for place in places:
        if place.shares_host_memory:
            groups.setdefault(place.facts.boot_id or place.device.id, []).append(place)
    parts: dict[str, int] = {}
    for group in groups.values():
        own = host_reserve_bytes(shape) + host.option_bytes
        reserve = own if is_on(group[0], host) else 0
        for place in group:
            parts[place.name] = max(0, place.available_bytes - reserve) // len(group)
    return parts


def _platform(place: Place) -> Platform:
    if place.facts.platform == "android":
        return Platform.ANDROID
    return Platform.CPU if place.ggml.is_cpu else Platform.GPU


def _speed(place: Place, measured: Measurements, shape: ModelShape) -> DeviceSpeed:
    found = measured.devices.get((place.device.id, place.ggml.name))
    usual = (
        _measured_speed(found, shape)
        if found is not None
        else guesses.device_speed(place.ggml.name, place.facts.platform, place.facts.cores)
    )
    return derated(usual, place.facts.derate)


def derated(speed: DeviceSpeed, part: float) -> DeviceSpeed:
    """The speed of a device that has only a part of it now, from 0 to 1, because it is hot."""
    if not 0 < part < 1:
        return speed
    return DeviceSpeed(
        decode_bytes_per_s=speed.decode_bytes_per_s * part,
        decode_by_type={name: rate * part for name, rate in speed.decode_by_type.items()},
        prefill_flops=speed.prefill_flops * part,
        cache_bytes_per_s=speed.cache_bytes_per_s * part,
        attention_flops=speed.attention_flops * part,
        prefill_attention_flops=speed.prefill_attention_flops * part,
        layer_overhead_s=speed.layer_overhead_s / part,
        is_guess=speed.is_guess,
    )


def _measured_speed(found: DeviceMeasured, shape: ModelShape) -> DeviceSpeed:
    """Decode for every type that was measured; prefill for the type that most of the model has."""
    slower = found.correction / found.sustained_factor
    decode = {name: rate / slower for name, rate in found.decode_bytes_per_s.items()}
    prefill = {
        name: rate * found.sustained_factor for name, rate in found.prefill_flop_per_s.items()
    }
    main = _main_type(shape)
    usual = decode.get(main) or decode.get(USUAL_TYPE) or min(decode.values())
    return DeviceSpeed(
        decode_bytes_per_s=usual,
        decode_by_type=decode,
        prefill_flops=prefill.get(main) or prefill.get(USUAL_TYPE) or min(prefill.values()),
        cache_bytes_per_s=found.cache_bytes_per_s / slower,
        attention_flops=found.attention_flop_per_s / slower,
        prefill_attention_flops=found.prefill_attention_flop_per_s * found.sustained_factor,
        layer_overhead_s=LAYER_OPERATIONS * found.op_overhead_s * slower,
    )


def _main_type(shape: ModelShape) -> str:
    totals: dict[str, int] = {}
    for layer in shape.layers:
        totals[layer.main_type] = totals.get(layer.main_type, 0) + layer.read_bytes
    return max(totals, key=totals.__getitem__, default=USUAL_TYPE)


def _link(place: Place, measured: Measurements) -> LinkSpeed:
    found = measured.links.get(place.device.id)
    own = measured.devices.get((place.device.id, place.ggml.name))
    overhead_s = own.hop_overhead_s if own else guesses.TOKEN_OVERHEAD_S
    if found is None:
        round_trip = place.device.round_trip_ms
        guess = guesses.link_speed(
            place.device.address,
            place.facts.platform,
            None if round_trip is None else round_trip / 1e3,
        )
        return guess.model_copy(update={"overhead_s": overhead_s, **_of_wire(place.device)})
    return LinkSpeed(
        rtt_p50_s=found.rtt_p50_s,
        rtt_p90_s=found.rtt_p90_s,
        up_bytes_per_s=found.up_bytes_per_s,
        down_bytes_per_s=found.down_bytes_per_s,
        overhead_s=overhead_s,
    )


def _of_wire(device: Device) -> dict[str, float]:
    """What was measured of the wire alone, while the link through it was not."""
    wire = in_use(device)
    if wire is None or wire.round_trip_ms is None or not wire.up_bytes_per_s:
        return {}
    trip_s, rate = wire.round_trip_ms / 1e3, wire.up_bytes_per_s
    return {
        "rtt_p50_s": trip_s,
        "rtt_p90_s": trip_s * guesses.TAIL,
        "up_bytes_per_s": rate,
        "down_bytes_per_s": rate,
    }


def _is_reliable(place: Place) -> bool:
    """Phones are on Wi-Fi, and the system may end programs; batteries run out; heat throttles."""
    return not any(_doubts(place))


def _doubts(place: Place) -> Iterator[bool]:
    facts = place.facts
    yield facts.platform == "android"
    yield facts.battery_charging is False
    limit_c = HOT_BATTERY_C if facts.platform == "android" else HOT_C
    yield facts.temperature_c is not None and facts.temperature_c >= limit_c
