"""What the planner is offered: true memory, never twice, measured speeds before guesses."""

from dataclasses import replace

import pytest
from planning_world import layer, model

from agents.contract import DeviceFacts, GgmlDevice, RpcServerStatus, WorkerState
from supervisor.core.entities import AgentId, Device, HostShare, ModelFacts, Plan, Shard
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.core.memory import GIB, MIB, Platform
from supervisor.core.offers import (
    HOST_WORKSPACE_BYTES,
    HostFacts,
    Measurements,
    Place,
    as_if_stopped,
    device_offers,
    holds_layers_itself,
    host_held_bytes,
    host_offer,
    host_reserve_bytes,
    is_host_itself,
    places_of,
)
from supervisor.core.planning import DeviceOffer

SHAPE = model([layer(100 * MIB) for _ in range(8)])
NOTHING = Measurements({}, {})
HOST = HostFacts("boot-host", "linux", 4, 16 * GIB, may_hold_layers=True)
CPU = GgmlDevice("CPU", total_bytes=64 * GIB, free_bytes=64 * GIB)
CUDA = GgmlDevice("CUDA0", total_bytes=24 * GIB, free_bytes=20 * GIB)
METAL = GgmlDevice("MTL0", total_bytes=48 * GIB, free_bytes=40 * GIB)


def device(
    name: str,
    *ggml: GgmlDevice,
    boot_id: str | None = None,
    platform: str = "linux",
    address: str = "10.0.0.2",
    round_trip_ms: float | None = None,
) -> Device:
    facts = DeviceFacts(
        agent_id=f"id-{name}",
        name=name,
        platform=platform,
        boot_id=f"boot-{name}" if boot_id is None else boot_id,
        cores=4,
        memory_available_bytes=8 * GIB,
        ggml_devices=list(ggml or (CPU,)),
    )
    return Device(
        id=AgentId(f"id-{name}"),
        name=name,
        address=address,
        rest_port=8102,
        state="ready",
        silent_s=0.0,
        facts=facts,
        rpc_server=None,
        round_trip_ms=round_trip_ms,
    )


def offers(
    *devices: Device, measured: Measurements = NOTHING, host: HostFacts = HOST
) -> dict[str, DeviceOffer]:
    places = [place for each in devices for place in places_of(each)]
    return {offer.name: offer for offer in device_offers(places, host, measured, SHAPE)}


def only(each: Device) -> Place:
    (place,) = places_of(each)
    return place


def test_a_cpu_offers_what_its_agent_measured_not_what_ggml_reports() -> None:
    assert offers(device("pi"))["pi"].available_bytes == 8 * GIB


def test_a_card_offers_its_own_free_memory_beside_the_processors() -> None:
    found = offers(device("desktop", CUDA, CPU))
    assert found["desktop/CUDA0"].available_bytes == 20 * GIB
    assert found["desktop/CUDA0"].platform is Platform.GPU
    assert found["desktop/CPU"].available_bytes == 8 * GIB


def test_a_mac_offers_its_memory_once() -> None:
    found = offers(device("mac", METAL, CPU, platform="macos"))
    assert list(found) == ["mac"]
    assert found["mac"].available_bytes == 8 * GIB, "no more than what is available now"


def test_devices_in_one_memory_share_it() -> None:
    found = offers(device("one", boot_id="b"), device("two", boot_id="b"), device("three"))
    assert found["one"].available_bytes == found["two"].available_bytes == 4 * GIB
    assert found["three"].available_bytes == 8 * GIB


def test_devices_on_the_main_host_leave_it_what_it_needs_itself() -> None:
    found = offers(device("own", boot_id=HOST.boot_id))
    reserve = host_reserve_bytes(SHAPE)
    assert reserve > SHAPE.input_bytes + HOST_WORKSPACE_BYTES
    assert found["own"].available_bytes == 8 * GIB - reserve


def test_an_unknown_boot_is_never_taken_for_the_main_hosts() -> None:
    stranger = only(device("stranger", boot_id=""))
    assert not is_host_itself(stranger, replace(HOST, boot_id=""))


def test_the_main_hosts_own_processor_needs_no_worker_unless_it_may_hold_nothing() -> None:
    own = only(device("own", boot_id=HOST.boot_id))
    assert is_host_itself(own, HOST)
    assert not is_host_itself(own, replace(HOST, may_hold_layers=False))
    assert not is_host_itself(only(device("other")), HOST)


@pytest.mark.parametrize(
    ("ggml", "platform", "holds"), [(METAL, "macos", False), (CUDA, "linux", True)]
)
def test_a_gpu_in_the_main_hosts_own_memory_replaces_its_processor(
    ggml: GgmlDevice, platform: str, holds: bool
) -> None:
    own = device("own", ggml, CPU, boot_id=HOST.boot_id, platform=platform)
    assert holds_layers_itself(HOST, places_of(own)) is holds


def measured(agent: str, correction: float = 1.0) -> Measurements:
    speed = DeviceMeasured(
        agent_id=AgentId(agent),
        ggml_device="CPU",
        taken_at="2026-01-01T00:00:00+00:00",
        rpc_protocol="7.0.0",
        engine_build="b1",
        decode_bytes_per_s={"Q4_K": 8e9, "Q6_K": 6e9, "Q8_0": 9e9},
        prefill_flop_per_s={"Q4_K": 50e9, "Q8_0": 90e9},
        op_overhead_s=2e-6,
        hop_overhead_s=4e-4,
        correction=correction,
    )
    link = LinkMeasured(
        agent_id=AgentId(agent),
        taken_at="2026-01-01T00:00:00+00:00",
        rtt_p50_s=0.004,
        rtt_p90_s=0.02,
        up_bytes_per_s=30e6,
        down_bytes_per_s=20e6,
    )
    return Measurements({(speed.agent_id, "CPU"): speed}, {link.agent_id: link})


def test_a_measured_device_is_no_guess() -> None:
    found = offers(device("pi"), measured=measured("id-pi"))["pi"]
    assert not found.speed.is_guess
    assert not found.link.is_guess
    assert found.speed.rate("Q6_K") == 6e9
    assert found.speed.rate("IQ3_S") == 8e9, "the model's main type stands for what is unknown"
    assert found.speed.prefill_flops == 50e9
    assert found.speed.layer_overhead_s == pytest.approx(40e-6)
    assert found.link.overhead_s == 4e-4
    assert (found.link.up_bytes_per_s, found.link.down_bytes_per_s) == (30e6, 20e6)


def test_runs_that_were_slower_than_predicted_make_a_device_slower() -> None:
    found = offers(device("pi"), measured=measured("id-pi", correction=1.25))["pi"]
    assert found.speed.rate("Q6_K") == pytest.approx(6e9 / 1.25)
    assert found.speed.layer_overhead_s == pytest.approx(50e-6)


def test_attention_is_as_it_was_measured_or_like_weights() -> None:
    plain = measured("id-pi")
    assert offers(device("pi"), measured=plain)["pi"].speed.attention_flops == 0
    key = (AgentId("id-pi"), "CPU")
    figures = {
        "attention_flop_per_s": 20e9,
        "cache_bytes_per_s": 6e9,
        "prefill_attention_flop_per_s": 60e9,
        "sustained_factor": 0.5,
    }
    known = Measurements({key: plain.devices[key].model_copy(update=figures)}, plain.links)
    found = offers(device("pi"), measured=known)["pi"].speed
    assert found.attention_flops == pytest.approx(10e9)
    assert found.cache_bytes_per_s == pytest.approx(3e9)
    assert found.prefill_attention_flops == pytest.approx(30e9)


def test_a_phone_is_as_fast_as_it_is_after_a_minute_of_work() -> None:
    fresh = measured("id-pi")
    key = (AgentId("id-pi"), "CPU")
    hot = fresh.devices[key].model_copy(update={"sustained_factor": 0.5})
    found = offers(device("pi"), measured=Measurements({key: hot}, fresh.links))["pi"]
    assert found.speed.rate("Q6_K") == pytest.approx(3e9)
    assert found.speed.prefill_flops == pytest.approx(25e9)
    assert found.speed.layer_overhead_s == pytest.approx(80e-6)


def test_an_unmeasured_device_is_guessed_from_its_kind() -> None:
    found = offers(
        device("phone", platform="android"), device("desktop", CUDA), device("pi", round_trip_ms=9)
    )
    assert all(offer.speed.is_guess and offer.link.is_guess for offer in found.values())
    speeds = {name: offer.speed.decode_bytes_per_s for name, offer in found.items()}
    assert speeds["phone"] < speeds["pi"] < speeds["desktop"]
    assert found["pi"].link.rtt_p50_s == pytest.approx(0.009), "the round trip is known already"
    assert found["phone"].link.rtt_p50_s > found["desktop"].link.rtt_p50_s


@pytest.mark.parametrize(
    ("change", "is_reliable"),
    [
        ({}, True),
        ({"battery_charging": False}, False),
        ({"battery_charging": True}, True),
        ({"temperature_c": 90.0}, False),
        ({"temperature_c": 60.0}, True),
        ({"platform": "android"}, False),
    ],
)
def test_what_may_drop_out_has_to_earn_its_place(
    change: dict[str, object], is_reliable: bool
) -> None:
    made = device("laptop")
    assert made.facts is not None
    changed = made.model_copy(update={"facts": replace(made.facts, **change)})  # type: ignore[arg-type]
    assert offers(changed)["laptop"].is_reliable is is_reliable


def test_the_main_host_is_as_fast_as_its_own_agent_measured() -> None:
    places = places_of(device("own", boot_id=HOST.boot_id))
    known = host_offer(HOST, places, measured("id-own"), SHAPE)
    assert known.speed.decode_bytes_per_s == 8e9
    assert known.may_hold_layers
    assert host_offer(HOST, places, NOTHING, SHAPE).speed.is_guess
    assert host_offer(HOST, [], NOTHING, SHAPE).available_bytes == 16 * GIB


def hot(each: Device, part: float = 0.5) -> Device:
    assert each.facts is not None
    facts = replace(each.facts, derate=part, derate_reason="hot (44 °C)")
    return each.model_copy(update={"facts": facts})


@pytest.mark.parametrize("known", [NOTHING, measured("id-phone")], ids=["guessed", "measured"])
def test_a_hot_device_has_only_a_part_of_its_speed(known: Measurements) -> None:
    cool = offers(device("phone"), measured=known)["phone"].speed
    found = offers(hot(device("phone")), measured=known)["phone"].speed
    assert found.is_guess is cool.is_guess
    assert found.layer_overhead_s == pytest.approx(2 * cool.layer_overhead_s)
    assert found.decode_by_type == {k: v / 2 for k, v in cool.decode_by_type.items()}
    rates = ["decode_bytes_per_s", "prefill_flops", "cache_bytes_per_s"]
    rates += ["attention_flops", "prefill_attention_flops"]
    for name in rates:
        assert getattr(found, name) == pytest.approx(getattr(cool, name) / 2)


def test_a_main_host_that_is_hot_has_only_a_part_of_its_speed() -> None:
    cool, warm = device("own", boot_id=HOST.boot_id), hot(device("own", boot_id=HOST.boot_id))
    for known in (NOTHING, measured("id-own")):
        usual = host_offer(HOST, places_of(cool), known, SHAPE).speed
        found = host_offer(HOST, places_of(warm), known, SHAPE).speed
        assert found.decode_bytes_per_s == pytest.approx(usual.decode_bytes_per_s / 2)


@pytest.mark.parametrize("part", [1.0, 0.0, -1.0, 2.0])
def test_a_part_that_is_none_changes_nothing(part: float) -> None:
    assert offers(hot(device("pi"), part)) == offers(device("pi"))


def running(*shards: Shard) -> Plan:
    facts = ModelFacts(path="/m", name="m", architecture="llama", block_count=8, size_bytes=9)
    own = HostShare(weight_bytes=GIB, kv_bytes=2 * MIB, compute_bytes=3 * MIB)
    return Plan(model=facts, ctx_tokens=4096, slots=1, shards=shards, host=own)


def shard(name: str, ggml: str, mib: int) -> Shard:
    return Shard(
        agent_id=AgentId(f"id-{name}"),
        device=name,
        ggml_device=ggml,
        host="h",
        layers=4,
        weight_bytes=mib * MIB,
        kv_bytes=MIB,
        compute_bytes=MIB,
    )


def free_mib(each: Device, plan: Plan) -> float:
    facts = as_if_stopped(each, plan, HOST).facts
    assert facts is not None
    return (facts.memory_available_bytes - 8 * GIB) / MIB


def test_what_runs_gives_its_memory_back_before_something_better_is_planned() -> None:
    plan = running(shard("pi", "CPU", 100), shard("desktop", "CUDA0", 500))
    assert free_mib(device("pi"), plan) == 102
    assert free_mib(device("other"), plan) == 0
    assert free_mib(device("desktop", CUDA, CPU), plan) == 0, "a card's memory is its own"
    assert free_mib(device("own", boot_id=HOST.boot_id), plan) == host_held_bytes(plan) / MIB == 5
    mac = running(shard("mac", "MTL0", 300))
    assert free_mib(device("mac", METAL, CPU, platform="macos"), mac) == 302


def test_no_more_is_given_back_than_the_worker_was_seen_to_use_or_the_device_has() -> None:
    plan = running(shard("pi", "CPU", 100))
    pi = device("pi")
    assert pi.facts is not None
    status = RpcServerStatus(WorkerState.READY, resident_bytes=40 * MIB)
    assert free_mib(pi.model_copy(update={"rpc_server": status}), plan) == 40
    tight = replace(pi.facts, memory_total_bytes=8 * GIB + 7 * MIB)
    assert free_mib(pi.model_copy(update={"facts": tight}), plan) == 7
    assert as_if_stopped(pi.model_copy(update={"facts": None}), plan, HOST).facts is None
