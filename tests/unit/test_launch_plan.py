"""From a placement to the plan of a launch, and what the engine's own figures change."""

import pytest
from planning_world import device as offer
from planning_world import host as main_host
from planning_world import layer, model, speed, wired
from pydantic import ValidationError
from test_offers import CPU, CUDA, device

from supervisor.core import launch_plan
from supervisor.core.engine_memory import EngineMemory, EngineUse
from supervisor.core.entities import DeploymentSpec, ModelFacts, Plan, Preset
from supervisor.core.memory import GIB, MIB
from supervisor.core.offers import Place, places_of
from supervisor.core.planning import HOST, Overrides, Planned, PlanRequest
from supervisor.core.search import plan as search

SHAPE = model([layer(100 * MIB) for _ in range(8)])
FACTS = ModelFacts(path="/m.gguf", name="m", architecture="llama", block_count=8, size_bytes=GIB)
PLACES = [*places_of(device("a")), *places_of(device("b"))]


def spec(**more: object) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"model": "/m.gguf"} | more)


def request(
    *, host_gib: float = 8, names: tuple[str, ...] = ("a", "b"), **over: object
) -> PlanRequest:
    return PlanRequest(
        shape=SHAPE,
        devices=tuple(offer(name, 6, speed(20, 200), wired()) for name in ("a", "b")),
        host=main_host(host_gib, may_hold_layers=not names),
        overrides=Overrides.model_validate({"devices": names} | over),
        rules=launch_plan.rules(floor_bytes=0, sampling=False, is_checked=True),
    )


def planned(asked: PlanRequest) -> Plan:
    found = search(asked)
    assert isinstance(found, Planned)
    places = {place.name: place for place in PLACES}
    return launch_plan.launch_plan(FACTS, spec(), asked, found.best, places)


def test_a_plan_names_who_holds_which_layers_and_adds_up_to_ngl() -> None:
    plan = planned(request())
    assert {shard.device for shard in plan.shards} == {"a", "b"}
    assert plan.shards[0].first_layer == 0
    assert plan.shards[1].first_layer == plan.shards[0].layers
    assert sum(shard.layers for shard in plan.shards) == plan.gpu_layers == 9
    assert all(shard.peak_bytes <= shard.budget_bytes for shard in plan.shards)
    assert all(shard.available_bytes == 8 * GIB for shard in plan.shards), "as the agent said"


def test_an_output_on_the_main_host_is_nobodys_else() -> None:
    plan = planned(request(pin_output=HOST))
    assert not any(shard.has_output for shard in plan.shards)
    assert plan.host.has_output
    assert plan.tensor_overrides == (r"^output\.weight=CPU",)
    assert plan.gpu_layers == 9, "the layer is offloaded, only its matrix is not"


def test_a_pinned_output_is_computed_there() -> None:
    plan = planned(request(pin_output="a"))
    assert [shard.device for shard in plan.shards if shard.has_output] == ["a"]
    assert plan.shards[-1].device == "a"


def test_the_main_host_alone_needs_no_shard() -> None:
    plan = planned(request(names=(), host_gib=64, exclude=("a", "b")))
    assert plan.shards == ()
    assert plan.gpu_layers == 0
    assert plan.host.layers == 8
    assert plan.host.has_output
    assert plan.tensor_overrides == ()
    assert plan.prediction is not None
    assert [stage.device for stage in plan.prediction.stages] == [HOST]


def test_a_prediction_tells_where_the_time_of_a_token_goes() -> None:
    plan = planned(request())
    prediction = plan.prediction
    assert prediction is not None
    total_s = sum(s.compute_s + s.network_s for s in prediction.stages) + prediction.output_s
    host_s = 1 / prediction.decode_tokens_per_s - total_s
    assert host_s == pytest.approx(0.0005), "the main host's own time per token"
    assert not prediction.is_guess


def engine_says(plan: Plan, **weights: int) -> Plan:
    uses = [EngineUse(s.device, weights.get(s.device, MIB), MIB, MIB) for s in plan.shards]
    host = EngineUse("Host", weights.get("host", MIB), MIB, MIB)
    return launch_plan.with_engine_memory(plan, SHAPE, EngineMemory(tuple(uses), host))


def test_the_engines_figures_replace_ours() -> None:
    plan = engine_says(planned(request()), a=3 * GIB)
    use = next(shard for shard in plan.shards if shard.device == "a")
    assert plan.memory_from == "engine"
    assert (use.weight_bytes, use.kv_bytes) == (3 * GIB, MIB)
    assert use.compute_bytes > MIB, "and what the engine never names: messages, conversions"
    assert use.peak_bytes > use.weight_bytes + MIB, "a tensor on its way is there as well"


def test_who_needs_too_much_by_the_engines_word_is_asked_for_less() -> None:
    asked = request()
    found = search(asked)
    assert isinstance(found, Planned)
    plan = planned(asked)
    assert launch_plan.overcharged(engine_says(plan), found.best) == {}
    bytes_less = launch_plan.overcharged(engine_says(plan, a=8 * GIB, host=9 * GIB), found.best)
    assert set(bytes_less) == {"a", HOST}
    less = launch_plan.with_less(asked, bytes_less)
    before = {each.name: each.available_bytes for each in asked.devices}
    after = {each.name: each.available_bytes for each in less.devices}
    ours = next(shard for shard in plan.shards if shard.device == "a")
    left = ours.budget_bytes * (1 - ours.peak_bytes / (8 * GIB))
    assert after["a"] == pytest.approx(before["a"] - left, rel=0.05)
    assert after["b"] == before["b"]
    assert less.host.available_bytes < asked.host.available_bytes


def desktop() -> list[Place]:
    return [*places_of(device("desktop", CUDA, CPU)), *PLACES]


def test_a_device_is_its_cards_unless_one_of_them_is_named() -> None:
    found = launch_plan.overrides(spec(devices=["desktop", "a"]), desktop(), [])
    assert found.devices == ("desktop/CUDA0", "a")
    found = launch_plan.overrides(spec(order=["desktop/CPU", HOST]), desktop(), [])
    assert found.order == ("desktop/CPU", HOST)


def test_to_exclude_a_device_excludes_all_of_it_even_if_it_is_not_there_now() -> None:
    found = launch_plan.overrides(spec(exclude=["desktop", "lost"]), desktop(), ["desktop", "lost"])
    assert found.exclude == ("desktop/CUDA0", "desktop/CPU")
    found = launch_plan.overrides(spec(exclude=["nobody"]), desktop(), ["desktop"])
    assert found.exclude == ("nobody",), "the search will say that there is none of that name"


def test_wishes_reach_the_search() -> None:
    asked = spec(ctx_tokens=8192, min_ctx_tokens=2048, slots=4, goal="latency", prompt_tokens=7)
    assert launch_plan.wanted(asked).ctx_tokens == 8192
    assert launch_plan.wanted(asked).min_ctx_tokens == 2048
    assert not launch_plan.wanted(asked).is_unified
    assert launch_plan.goal(asked).workload.prompt_tokens == 7
    assert launch_plan.goal(asked).requests_per_load == float("inf")
    assert launch_plan.goal(spec(goal=Preset.FEWEST_DEVICES)).fewest_devices


def test_without_the_engines_word_the_formulas_get_a_margin() -> None:
    exact = launch_plan.rules(floor_bytes=5, sampling=True, is_checked=True)
    careful = launch_plan.rules(floor_bytes=5, sampling=True, is_checked=False)
    assert (exact.compute_factor, exact.compute_extra_bytes) == (1.0, 0)
    assert careful.compute_factor > 1
    assert careful.compute_extra_bytes > 0
    assert exact.margin_floor_bytes == careful.margin_floor_bytes == 5
    assert exact.allow_sampling_on_devices


def test_a_plan_of_an_older_version_is_read_as_it_was_launched() -> None:
    stored = planned(request()).model_dump(mode="json")
    for name in ("cache_ram_mib", "ctx_checkpoints"):
        del stored[name]
    found = Plan.model_validate(stored)
    assert (found.cache_ram_mib, found.ctx_checkpoints) == (0, None)


def test_a_deployment_of_an_older_version_runs_until_it_is_stopped_and_has_one_name() -> None:
    found = spec()
    assert (found.on_demand, found.ttl_s, found.aliases) == (False, None, ())
    found = spec(on_demand=True, ttl_s=60, aliases=[" gpt-4o ", "x" * 200])
    assert found.aliases == ("gpt-4o", "x" * 200)
    assert DeploymentSpec.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "wrong",
    [
        {"ttl_s": 0},
        {"ttl_s": -1},
        {"aliases": [""]},
        {"aliases": ["  "]},
        {"aliases": ["x" * 201]},
        {"aliases": ["a"] * 17},
    ],
)
def test_impossible_wishes_of_the_gateway_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        spec(**wrong)
