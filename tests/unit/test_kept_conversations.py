"""What llama-server may keep of earlier conversations: never over a network, never too much."""

from dataclasses import replace

import pytest
from planning_world import device as offer
from planning_world import host as main_host
from planning_world import layer, link, model, speed, wired
from test_launch_plan import FACTS, spec
from test_offers import CPU, CUDA, HOST, device

from supervisor.core import launch_plan
from supervisor.core.engine_defaults import EngineDefaults, engine_defaults
from supervisor.core.entities import Device, Plan
from supervisor.core.memory import GIB, MIB
from supervisor.core.model_shape import LayerShape, ModelShape
from supervisor.core.offers import Place, places_of
from supervisor.core.planning import HOST as MAIN_HOST
from supervisor.core.planning import Overrides, Placement, Planned, PlanRequest
from supervisor.core.search import plan as search
from supervisor.core.speed import LinkSpeed

PLAIN = model([layer(100 * MIB) for _ in range(8)])
WINDOW = layer(100 * MIB, kv_elements=512, window_tokens=512)
STATE = layer(100 * MIB, kv_elements=0, attention_elements=0, state_elements=537_344)
CABLE, WIFI = wired(), link(5, 12, 20)


def on_host(name: str, *ggml: object) -> Device:
    return device(name, *ggml, boot_id=HOST.boot_id)  # type: ignore[arg-type]


def made(
    *devices: Device,
    shape: ModelShape = PLAIN,
    host_gib: float = 32,
    most_mib: int = 8192,
    way: LinkSpeed = CABLE,
    slots: int = 1,
    prefill_gflops: float = 200,
) -> tuple[Plan, Placement, EngineDefaults]:
    """A plan over all of the devices, or over the main host alone, and what suits it."""
    places = {place.name: place for each in devices for place in places_of(each)}
    request = PlanRequest(
        shape=shape,
        devices=tuple(offer(name, 6, speed(20, prefill_gflops), way) for name in places),
        host=main_host(host_gib, may_hold_layers=not places),
        wanted=launch_plan.wanted(spec(slots=slots)),
        overrides=Overrides(devices=tuple(places) or (MAIN_HOST,)),
        rules=launch_plan.rules(floor_bytes=0, sampling=False, is_checked=True),
    )
    found = search(request)
    assert isinstance(found, Planned), found
    plan = launch_plan.launch_plan(FACTS, spec(slots=slots), request, found.best, places)
    return plan, found.best, defaults(plan, request, found.best, places, most_mib)


def defaults(
    plan: Plan, request: PlanRequest, best: Placement, places: dict[str, Place], most_mib: int
) -> EngineDefaults:
    return engine_defaults(plan, request, best, places, HOST, most_cache_mib=most_mib)


# -- the prompt cache ------------------------------------------------------------------------------


def test_over_a_network_no_prompt_is_kept_and_it_is_said_whose() -> None:
    _, _, found = made(on_host("own"), device("pi"))
    assert found.cache_ram_mib == 0
    assert found.reasons == (
        "Prompts of earlier conversations are not kept (--cache-ram 0): at every change of"
        " conversation they would be fetched over the network from pi.",
    )


def test_a_host_that_does_not_tell_its_boot_is_taken_for_another() -> None:
    _, _, found = made(device("own", boot_id=""))
    assert found.cache_ram_mib == 0


def test_on_the_main_host_alone_half_of_what_is_left_keeps_prompts() -> None:
    plan, _, found = made(host_gib=12)
    left = plan.host.budget_bytes - plan.host.peak_bytes
    assert plan.shards == ()
    assert 2 * GIB < left < 11 * GIB
    assert found.cache_ram_mib == left // 2 // MIB
    assert "of what the main host has left keeps prompts" in found.reasons[0]


def test_agents_on_the_main_host_share_its_memory() -> None:
    plan, _, found = made(on_host("one"), on_host("two"), host_gib=12)
    assert len(plan.shards) == 2
    needed = plan.host.peak_bytes + sum(shard.peak_bytes for shard in plan.shards)
    assert found.cache_ram_mib == (plan.host.budget_bytes - needed) // 2 // MIB
    assert found.cache_ram_mib * MIB + needed < plan.host.budget_bytes, "the plan comes first"


def test_a_card_has_memory_of_its_own() -> None:
    plan, best, found = made(on_host("own", CUDA, CPU), host_gib=12)
    by_place = {d.name: shard for d, shard in zip(best.devices, plan.shards, strict=True)}
    assert set(by_place) == {"own/CUDA0", "own/CPU"}
    needed = plan.host.peak_bytes + by_place["own/CPU"].peak_bytes
    assert found.cache_ram_mib == (plan.host.budget_bytes - needed) // 2 // MIB


def test_it_never_is_more_than_the_operator_allows() -> None:
    assert made(host_gib=64)[2].cache_ram_mib == 8192
    assert made(host_gib=64, most_mib=300)[2].cache_ram_mib == 300
    assert made(host_gib=64, most_mib=100)[2].cache_ram_mib == 100, "as it was asked for"
    off = made(host_gib=64, most_mib=0)[2]
    assert off.cache_ram_mib == 0
    assert "your settings say so" in off.reasons[0]


def test_where_little_is_left_the_plan_has_all_of_it() -> None:
    plan, _, _ = made(host_gib=12)
    spare_gib = (plan.host.budget_bytes - plan.host.peak_bytes) / GIB
    enough = made(host_gib=12 - spare_gib + 0.5)[2]
    assert 256 <= enough.cache_ram_mib < 512
    little = made(host_gib=12 - spare_gib + 0.3)[2]
    assert little.cache_ram_mib == 0
    assert "the main host has only" in little.reasons[0]
    none = made(on_host("one"), host_gib=2.5)[2]
    assert none.cache_ram_mib == 0


# -- context checkpoints ---------------------------------------------------------------------------


def test_models_that_can_be_rolled_back_need_no_checkpoints() -> None:
    _, _, found = made(device("pi"), way=WIFI)
    assert found.ctx_checkpoints is None
    assert len(found.reasons) == 1, "and nothing is said of them"


@pytest.mark.parametrize(
    ("one", "size_bytes", "steps"),
    [
        # As the engine copied it: 10.006 MiB of ten layers with a window of 512 tokens, in 20 or 40
        # steps; 14.349 MiB of seven Mamba-2 layers, in 14.
        (WINDOW, 10_485_760 / 10, 4),
        (STATE, 15_045_632 / 7, 2),
    ],
)
def test_a_checkpoint_takes_a_round_trip_for_each_step_and_its_bytes(
    one: LayerShape, size_bytes: float, steps: int
) -> None:
    """The link is such that four layers take exactly the limit of 50 ms, or a little more."""
    shape = model([one] * 4)
    for factor, checkpoints in ((0.98, None), (1.02, 0)):
        rate = 4 * size_bytes / (0.025 * factor)
        slow = LinkSpeed(
            rtt_p50_s=0.025 * factor / 4 / steps, up_bytes_per_s=rate, down_bytes_per_s=rate
        )
        _, _, found = made(device("pi"), shape=shape, way=slow, prefill_gflops=100_000)
        assert found.ctx_checkpoints == checkpoints, found.reasons
        assert (
            "50 ms" in found.reasons[1]
            or "49 ms" in found.reasons[1]
            or ("51 ms" in found.reasons[1])
        )


def test_over_wifi_they_are_off_and_it_is_said_why() -> None:
    _, _, found = made(device("pi"), device("phone"), shape=model([WINDOW] * 20), way=WIFI)
    assert found.ctx_checkpoints == 0
    assert found.reasons[1].startswith(
        "Context checkpoints are off (--ctx-checkpoints 0): a copy of the model's state (20.0 MiB)"
        " would be fetched twice per request and take 1."
    )
    assert found.reasons[1].endswith(("most of it from pi.", "most of it from phone."))


def test_near_devices_keep_the_engines_own_number() -> None:
    loopback = LinkSpeed(rtt_p50_s=1e-4, up_bytes_per_s=1e9, down_bytes_per_s=1e9)
    _, _, found = made(on_host("one"), shape=model([WINDOW] * 8), way=loopback)
    assert found.ctx_checkpoints is None
    assert "(8.0 MiB) is made in 12 ms" in found.reasons[1]
    _, _, alone = made(shape=model([WINDOW] * 8))
    assert alone.ctx_checkpoints is None
    assert "(8.0 MiB) is made, so that" in alone.reasons[1]


def test_a_recurrent_model_that_reads_slowly_keeps_them_over_slower_links() -> None:
    """Without one, a conversation that is changed is read again from its first token."""
    shape = model([STATE] * 8)
    quick = made(device("pi"), shape=shape, way=WIFI, prefill_gflops=20_000)
    slow = made(device("pi"), shape=shape, way=WIFI, prefill_gflops=50)
    assert quick[1].times.prompt_s < 10 < slow[1].times.prompt_s
    assert quick[2].ctx_checkpoints == 0
    assert slow[2].ctx_checkpoints is None
    windows = made(device("pi"), shape=model([WINDOW] * 8), way=WIFI, prefill_gflops=50)
    assert windows[2].ctx_checkpoints == 0, "a window keeps enough for small changes"


def test_they_are_fewer_where_the_main_host_has_no_memory_for_them() -> None:
    large = layer(100 * MIB, kv_elements=16_384, window_tokens=4096)
    shape = model([large] * 8)  # 2 GiB for each copy
    plan, _, found = made(shape=shape, host_gib=40)
    left = plan.host.budget_bytes - plan.host.peak_bytes
    assert found.ctx_checkpoints == left // 4 // (2 * GIB) == 4
    assert "At most 4 context checkpoints are kept" in found.reasons[1]
    _, _, split = made(shape=shape, host_gib=100, slots=4)
    assert split.ctx_checkpoints is not None
    assert split.ctx_checkpoints < 32, "each slot has its own"
    _, _, none = made(shape=shape, host_gib=20)
    assert none.ctx_checkpoints == 0
    assert "the main host has only" in none.reasons[1]


def test_the_whole_of_a_short_context_is_less_than_a_window() -> None:
    wide = model([layer(100 * MIB, kv_elements=512, window_tokens=100_000)] * 8)
    _, _, found = made(shape=wide)
    assert "(64.0 MiB)" in found.reasons[1], "4096 tokens of 2 KiB in 8 layers"


def test_layers_with_keys_alone_are_fetched_in_half_the_steps() -> None:
    keys = WINDOW.model_copy(update={"value_elements": 0})
    far = LinkSpeed(rtt_p50_s=0.004, up_bytes_per_s=1e12, down_bytes_per_s=1e12)
    both = made(device("pi"), shape=model([WINDOW] * 5), way=far)[2]
    latent = made(device("pi"), shape=model([keys] * 5), way=far)[2]
    assert both.ctx_checkpoints == 0, "20 steps of 4 ms"
    assert latent.ctx_checkpoints is None, "10 steps of 4 ms"


def test_another_boot_of_the_main_host_makes_everything_remote() -> None:
    plan, best, _ = made(on_host("own"))
    places = {place.name: place for place in places_of(on_host("own"))}
    request = PlanRequest(shape=PLAIN, devices=(offer("own", 6, speed(20, 200)),), host=main_host())
    other = replace(HOST, boot_id="later")
    found = engine_defaults(plan, request, best, places, other, most_cache_mib=8192)
    assert found.cache_ram_mib == 0
