"""Projectors and adapters count where they lie."""

import pytest
from planning_world import layer, model

from supervisor.core.entities import AgentId, HostShare, ModelFacts, Plan, Shard
from supervisor.core.option_memory import (
    OptionMemory,
    with_adapter_bytes,
    with_adapters,
    with_host_options,
)

ADAPTERS = OptionMemory(layers={0: 10, 1: 20, 2: 40}, input_bytes=3, output_bytes=5)


def shard(first: int, layers: int, *, has_output: bool = False) -> Shard:
    return Shard(
        agent_id=AgentId("a"), device="a", ggml_device="CPU", host="h", layers=layers,
        first_layer=first, has_output=has_output, weight_bytes=100, peak_bytes=200,
    )  # fmt: skip


def plan(*shards: Shard, host: HostShare) -> Plan:
    facts = ModelFacts(path="/m", name="m", architecture="llama", block_count=3, size_bytes=9)
    return Plan(model=facts, ctx_tokens=4096, slots=1, shards=shards, host=host)


def test_the_shape_is_heavier_by_layer() -> None:
    shape = model([layer(1000), layer(1000), layer(1000)])
    heavier = with_adapters(shape, ADAPTERS)
    assert heavier.weight_bytes == shape.weight_bytes + 78
    grown = [b.size_bytes - a.size_bytes for a, b in zip(shape.layers, heavier.layers, strict=True)]
    assert grown == [10, 20, 40]
    assert heavier.layers[2].read_bytes == shape.layers[2].read_bytes + 40
    assert heavier.output.size_bytes == shape.output.size_bytes + 5
    assert with_adapters(shape, OptionMemory(host_bytes=7)) is shape


def test_the_engines_figures_get_the_adapters_of_their_layers() -> None:
    host = HostShare(layers=1, weight_bytes=50, peak_bytes=60)
    made = with_adapter_bytes(plan(shard(1, 1), shard(2, 2, has_output=True), host=host), ADAPTERS)
    assert [s.weight_bytes for s in made.shards] == [120, 145]
    assert [s.peak_bytes for s in made.shards] == [220, 245]
    assert (made.host.weight_bytes, made.host.peak_bytes) == (63, 73)


def test_an_output_on_the_main_host_has_its_adapter_there() -> None:
    host = HostShare(layers=3, has_output=True)
    assert with_adapter_bytes(plan(host=host), ADAPTERS).host.peak_bytes == 78


@pytest.mark.parametrize("option_bytes", [0, 1000])
def test_what_lies_on_the_main_host_is_told_and_leaves_the_rest_as_it_was(
    option_bytes: int,
) -> None:
    host = HostShare(peak_bytes=60, budget_bytes=90, available_bytes=100)
    made = with_host_options(plan(host=host), OptionMemory(host_bytes=option_bytes)).host
    assert made.option_bytes == option_bytes
    assert made.budget_bytes - made.peak_bytes == 30
    assert made.available_bytes == 100 + option_bytes
