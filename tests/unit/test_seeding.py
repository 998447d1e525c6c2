"""Which weights each worker of a plan will receive, and when."""

import random
from pathlib import Path

import pytest

from agents.chunks import SMALLEST_TENSOR_BYTES
from supervisor.core.entities import AgentId, HostShare, ModelFacts, Plan, Shard
from supervisor.core.planning import NO_OVERRIDE
from supervisor.core.seeding import ORDER, VARIANTS, FileTensor, sending_order, tensors_by_agent

LLAMA = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up")
KIB = 1 << 10


def tensor(name: str, size_bytes: int = SMALLEST_TENSOR_BYTES) -> FileTensor:
    return FileTensor(name, Path("/m.gguf"), 0, size_bytes)


def tensors(*names: str) -> list[FileTensor]:
    return [tensor(f"{name}.weight") for name in names]


def block(layer: int, *stems: str) -> list[FileTensor]:
    return tensors(*(f"blk.{layer}.{stem}" for stem in stems))


def model(layers: int, *others: str) -> list[FileTensor]:
    """Shuffled, since the order of the file must not matter."""
    found = tensors(*others, *(f"blk.{n}.{stem}" for n in range(layers) for stem in LLAMA))
    random.Random(1).shuffle(found)
    return found


def plan_of(
    *shards: tuple[str, int],
    host_layers: int = 0,
    architecture: str = "llama",
    overrides: tuple[str, ...] = (),
) -> Plan:
    """Shards by worker and number of layers; the last one's includes the output."""
    made, first = [], host_layers
    for agent, layers in shards:
        made.append(
            Shard(
                agent_id=AgentId(agent),
                device=agent,
                ggml_device="CPU",
                host="127.0.0.1",
                layers=layers,
                first_layer=first,
            )
        )
        first += layers
    facts = ModelFacts(
        path="/m.gguf",
        name="m",
        architecture=architecture,
        block_count=first - 1 if shards else 1,
        size_bytes=1,
    )
    return Plan(
        model=facts,
        ctx_tokens=512,
        slots=1,
        shards=tuple(made),
        host=HostShare(layers=host_layers),
        tensor_overrides=overrides,
    )


def names(plan: Plan, of: list[FileTensor]) -> dict[str, list[str]]:
    """Without the suffix ``.weight``."""
    return {
        agent: [tensor.name.removesuffix(".weight") for tensor in sent]
        for agent, sent in tensors_by_agent(plan, of).items()
    }


def blocks(*layers: int) -> list[str]:
    return [f"blk.{layer}.{stem}" for layer in layers for stem in LLAMA]


OUTER = ("token_embd", "output_norm", "output")


def test_each_worker_gets_its_blocks_and_the_last_one_the_output_first() -> None:
    plan = plan_of(("b", 3), ("a", 2), overrides=(NO_OVERRIDE,))
    assert names(plan, model(4, "token_embd", "output")) == {
        "b": blocks(0, 1, 2),
        "a": ["output", *blocks(3)],
    }


def test_what_the_main_host_holds_is_not_sent() -> None:
    plan = plan_of(("a", 1), ("b", 2), host_layers=2)
    assert names(plan, model(4, "token_embd", "output")) == {
        "a": blocks(2),
        "b": ["output", *blocks(3)],
    }
    assert tensors_by_agent(plan_of(), model(1, "token_embd", "output")) == {}


def test_without_an_output_matrix_the_embeddings_are_sent_as_one() -> None:
    plan = plan_of(("a", 1), ("b", 2))
    sent = names(plan, model(2, "token_embd", "output_norm"))
    assert sent["b"] == ["token_embd", "output_norm", *blocks(1)]
    assert sent["a"] == blocks(0)
    bitnet = plan_of(("a", 2), architecture="bitnet")
    assert names(bitnet, model(1, "token_embd"))["a"] == blocks(0)


@pytest.mark.parametrize("matrix", ["output", "token_embd"])
def test_an_output_pinned_to_the_main_host_is_not_sent(matrix: str) -> None:
    plan = plan_of(("a", 1), ("b", 2), overrides=(rf"^{matrix}\.weight=CPU",))
    assert names(plan, model(2, *{"token_embd", "output_norm", matrix})) == {
        "a": blocks(0),
        "b": ["output_norm", *blocks(1)],
    }


def test_a_worker_may_have_nothing_but_the_output() -> None:
    assert names(plan_of(("a", 2), ("b", 1)), model(2, "output")) == {
        "a": blocks(0, 1),
        "b": ["output"],
    }


def test_small_tensors_inputs_and_rope_factors_are_not_sent_as_chunks() -> None:
    given = [
        tensor("blk.0.attn_q.weight", SMALLEST_TENSOR_BYTES - 1),
        tensor("blk.0.attn_k.weight", SMALLEST_TENSOR_BYTES),
        *tensors("token_embd", "position_embd", "per_layer_token_embd", "rope_freqs", "output"),
        tensor("output_norm.weight", 4 * KIB),
    ]
    assert names(plan_of(("a", 2)), given) == {"a": ["output", "blk.0.attn_k"]}


def test_what_belongs_to_no_block_comes_before_the_first_one() -> None:
    given = [*model(2, "per_layer_model_proj", "altup_proj", "output"), *tensors("dense_2")]
    assert names(plan_of(("a", 1), ("b", 2), architecture="gemma3n"), given) == {
        "a": ["per_layer_model_proj", *swapped(blocks(0))],
        "b": ["output", "altup_proj", "dense_2", *swapped(blocks(1))],
    }


def swapped(of: list[str]) -> list[str]:
    """As gemma has it: up before down."""
    return [*of[:-2], of[-1], of[-2]]


def test_blocks_for_drafting_are_counted_but_not_sent() -> None:
    given = [*model(3, "output"), *block(2, "nextn.eh_proj")]
    assert names(plan_of(("a", 1), ("b", 3)), given) == {
        "a": blocks(0),
        "b": ["output", *blocks(1)],
    }


@pytest.mark.parametrize(
    ("architecture", "order"),
    [
        ("llama", "ffn_gate ffn_down ffn_up"),
        ("qwen3", "ffn_gate ffn_down ffn_up"),
        ("gemma3", "ffn_gate ffn_up ffn_down"),
        ("never seen", "attn_qkv attn_output ffn_down ffn_up"),
        ("qwen3moe", "attn_output ffn_gate_inp ffn_gate_exps ffn_down_exps ffn_up_exps"),
        ("deepseek2", "attn_output ffn_gate_inp ffn_down_exps ffn_gate_exps ffn_up_exps"),
        ("gemma4", "ffn_gate ffn_up ffn_down ffn_gate_inp ffn_gate_up_exps ffn_down_exps"),
        ("llama4", "ffn_gate_shexp ffn_down_shexp ffn_up_shexp"),
        ("qwen35moe", "ffn_gate_shexp ffn_up_shexp ffn_down_shexp"),
        ("qwen35", "attn_qkv attn_gate ssm_conv1d ssm_beta ssm_alpha ssm_out ffn_gate"),
        ("falcon-h1", "ssm_in ssm_conv1d ssm_out attn_q attn_output ffn_gate"),
        ("lfm2", "ffn_gate ffn_down ffn_up attn_q shortconv.in_proj shortconv.out_proj"),
        ("llama", "attn_q ffn_up zebra aardvark"),
    ],
)
def test_a_block_is_ordered_as_the_code_of_its_architecture_names_it(
    architecture: str, order: str
) -> None:
    stems = order.split()
    shuffled = [stem for stem in stems if stem not in ("zebra", "aardvark")]
    random.Random(2).shuffle(shuffled)
    given = block(0, *shuffled, *(stem for stem in stems if stem in ("zebra", "aardvark")))
    plan = plan_of(("a", 2), architecture=architecture)
    assert names(plan, given) == {"a": [f"blk.0.{stem}" for stem in stems]}


def test_biases_of_experts_come_after_all_weights() -> None:
    given = [tensor("blk.0.ffn_gate_exps.bias"), *block(0, "ffn_gate_exps", "ffn_up_exps")]
    [sent] = tensors_by_agent(plan_of(("a", 2), architecture="gpt-oss"), given).values()
    assert sent == (given[1], given[2], given[0])


def test_variants_speak_of_what_is_in_the_order() -> None:
    known = ORDER.split()
    assert len(set(known)) == len(known)
    for stems, _ in VARIANTS:
        assert set(stems.split()) <= set(known)


def test_devices_of_one_worker_are_filled_in_the_order_of_their_names() -> None:
    shards = [("a", 1)] * 6 + [("b", 1)] + [("a", 1)] * 6 + [("a", 2)]
    plan = plan_of(*shards)
    layers = [int(name.split(".")[1]) for name in names(plan, model(14))["a"]]
    assert list(dict.fromkeys(layers)) == [0, 11, 12, 13, 1, 2, 3, 4, 5, 7, 8, 9, 10]
    endpoints = {AgentId("a"): "127.0.0.1:50053", AgentId("b"): "127.0.0.1:50052"}
    order = sending_order(plan, endpoints)
    assert order[:3] == ("b", "a", "a")
    assert len(order) == 14


def test_workers_are_served_by_their_endpoints_and_not_by_their_place_in_the_plan() -> None:
    plan = plan_of(("a", 1), ("b", 2))
    endpoints = {AgentId("a"): "127.0.0.1:9999", AgentId("b"): "127.0.0.1:10000"}
    assert sending_order(plan, endpoints) == ("b", "a"), "as text"
