"""Model shapes: what each layer weighs, reads and keeps, for the kinds of models there are."""

from dataclasses import dataclass
from typing import Any

import pytest

from supervisor.adapters.gguf import SkippedArray
from supervisor.core.ggml_types import F32, Q8_0, tensor_bytes
from supervisor.core.memory import Run, kv_bytes
from supervisor.core.model_shape import ModelShape, Tensor, shape_of
from supervisor.errors import ModelBroken

Q4_K, Q6_K = 12, 14
F16_8K = Run(ctx_tokens=8192)


def tensor(name: str, *shape: int, type_id: int = Q4_K) -> Tensor:
    return name, shape, type_id, tensor_bytes(type_id, shape)


def header(arch: str = "llama", layers: int = 4, **more: Any) -> dict[str, object]:
    """Metadata; keys of ``more`` have ``__`` for a dot."""
    values: dict[str, object] = {
        "block_count": layers,
        "embedding_length": 1024,
        "feed_forward_length": 4096,
        "attention.head_count": 16,
        "attention.head_count_kv": 4,
        "context_length": 32_768,
    }
    values |= {key.replace("__", "."): value for key, value in more.items()}
    metadata: dict[str, object] = {f"{arch}.{key}": value for key, value in values.items()}
    metadata["general.architecture"] = arch
    metadata["tokenizer.ggml.tokens"] = SkippedArray("string", 32_000)
    return metadata


def block(index: int, *names: str) -> list[Tensor]:
    """A dense block; extra tensors of 256 by 256 elements."""
    prefix = f"blk.{index}."
    return [
        tensor(prefix + "attn_norm.weight", 1024, type_id=F32),
        tensor(prefix + "attn_q.weight", 1024, 1024),
        tensor(prefix + "ffn_up.weight", 1024, 4096),
        tensor(prefix + "ffn_down.weight", 4096, 1024, type_id=Q6_K),
        *[tensor(prefix + name, 256, 256) for name in names],
    ]


def tensors(layers: int = 4, *, tied: bool = False, extra: str = "") -> list[Tensor]:
    ends = [] if tied else [tensor("output.weight", 1024, 32_000, type_id=Q6_K)]
    return [
        tensor("token_embd.weight", 1024, 32_000),
        tensor("output_norm.weight", 1024, type_id=F32),
        tensor("rope_freqs.weight", 64, type_id=F32),
        *ends,
        *[one for i in range(layers) for one in block(i, *([extra] if extra else []))],
    ]


def dense(layers: int = 4, arch: str = "llama", **more: Any) -> ModelShape:
    return shape_of(header(arch, layers, **more), tensors(layers))


def test_a_layer_weighs_what_its_tensors_weigh() -> None:
    shape = dense()
    own = 4096 + tensor_bytes(Q4_K, (1024, 1024)) + tensor_bytes(Q4_K, (1024, 4096))
    down = tensor_bytes(Q6_K, (4096, 1024))
    assert [layer.size_bytes for layer in shape.layers] == [own + down] * 4
    layer = shape.layers[0]
    assert dict(layer.reads) == {"F32": 4096, "Q4_K": own - 4096, "Q6_K": down}
    assert layer.main_type == "Q6_K"
    assert layer.largest_bytes == down
    assert layer.active_elements == 1024 * 1024 + 2 * 1024 * 4096
    assert (layer.feed_forward, layer.experts_used) == (4096, 0)


def test_the_ends_of_a_model_are_counted_apart() -> None:
    shape = dense()
    matrix = tensor_bytes(Q6_K, (1024, 32_000))
    assert shape.output.size_bytes == matrix + 4096
    assert shape.output_matrix_bytes == matrix
    assert shape.input_bytes == tensor_bytes(Q4_K, (1024, 32_000))
    assert (shape.vocabulary, shape.embedding, shape.heads) == (32_000, 1024, 16)
    assert (shape.head_length, shape.ctx_train_tokens) == (64, 32_768)
    assert shape.output_pattern == r"^output\.weight"


def test_tied_embeddings_are_paid_for_twice() -> None:
    shape = shape_of(header(), tensors(tied=True))
    assert shape.is_tied
    assert shape.output_matrix_bytes == shape.input_bytes
    assert shape.output.size_bytes == shape.input_bytes + 4096
    assert shape.output_pattern == r"^token_embd\.weight"


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (SkippedArray("string", 128_256), 128_256),
        (("a", "b"), 2),
        (None, 32_000),  # from the shape of token_embd
    ],
)
def test_the_vocabulary_is_counted_without_reading_it(tokens: object, expected: int) -> None:
    metadata = header()
    metadata["tokenizer.ggml.tokens"] = tokens
    assert shape_of(metadata, tensors()).vocabulary == expected


def test_grouped_heads_and_feed_forward_sizes_may_differ_per_layer() -> None:
    shape = dense(2, feed_forward_length=(2048, 4096), attention__head_count_kv=(4, 0))
    assert [layer.key_elements for layer in shape.layers] == [256, 0]
    assert [layer.feed_forward for layer in shape.layers] == [2048, 4096]
    assert [layer.attention_elements for layer in shape.layers] == [1024, 0]


def test_key_and_value_lengths_are_taken_from_the_header() -> None:
    layer = dense(attention__key_length=128, attention__value_length=96).layers[0]
    assert (layer.key_elements, layer.value_elements) == (512, 384)


def test_of_experts_only_those_in_use_are_read() -> None:
    experts = [
        tensor("blk.0.ffn_gate_inp.weight", 1024, 64, type_id=F32),
        tensor("blk.0.ffn_up_exps.weight", 1024, 512, 64),
        tensor("blk.0.ffn_up_shexp.weight", 1024, 512),
    ]
    metadata = header(layers=1, expert_count=64, expert_used_count=8)
    layer = shape_of(metadata, [*tensors(0), *experts]).layers[0]
    routed = tensor_bytes(Q4_K, (1024, 512, 64))
    shared = tensor_bytes(Q4_K, (1024, 512))
    assert layer.size_bytes == routed + shared + 4 * 1024 * 64
    assert dict(layer.reads) == {"F32": 4 * 1024 * 64, "Q4_K": routed // 8 + shared}
    assert layer.active_elements == 1024 * 512 * 8 + 1024 * 512 + 1024 * 64
    assert (layer.experts_used, layer.feed_forward) == (8, 0)
    assert layer.largest_bytes == routed


def test_leading_dense_layers_stay_dense() -> None:
    experts = [tensor("blk.1.ffn_up_exps.weight", 1024, 512, 64)]
    metadata = header(layers=2, expert_count=64, expert_used_count=(0, 8))
    shape = shape_of(metadata, [*tensors(1), *experts])
    assert [layer.experts_used for layer in shape.layers] == [0, 8]
    assert [layer.feed_forward for layer in shape.layers] == [4096, 0]


@pytest.mark.parametrize(
    ("arch", "more", "slides"),
    [
        ("gemma3", {}, "111110"),
        ("gemma2", {}, "101010"),
        ("gpt-oss", {}, "101010"),
        ("cohere2", {}, "111011"),
        ("smallthinker", {}, "011101"),
        ("gemma3", {"attention__sliding_window_pattern": 3}, "110110"),
        ("gemma4", {"attention__sliding_window_pattern": (True, True, False) * 2}, "110110"),
        ("gemma3", {"attention__sliding_window": 0}, "000000"),
        ("phi3", {}, "000000"),  # llama.cpp gives it a full cache
        ("qwen2", {}, "000000"),  # has the key, not the feature
        ("llama", {}, "000000"),
    ],
)
def test_sliding_windows_follow_the_pattern_of_the_architecture(
    arch: str, more: dict[str, Any], slides: str
) -> None:
    shape = dense(6, arch, **({"attention__sliding_window": 512} | more))
    assert "".join("1" if layer.window_tokens else "0" for layer in shape.layers) == slides
    assert {layer.window_tokens for layer in shape.layers} <= {512, None}


@pytest.mark.parametrize(("arch", "window"), [("gemma2", 4096), ("exaone-moe", 128)])
def test_some_architectures_have_a_window_that_no_key_tells(arch: str, window: int) -> None:
    assert dense(2, arch).layers[0].window_tokens == window


def test_sliding_layers_may_have_heads_of_their_own_length() -> None:
    shape = dense(
        6,
        "gemma4",
        attention__sliding_window=512,
        attention__sliding_window_pattern=(True,) * 5 + (False,),
        attention__key_length=512,
        attention__value_length=512,
        attention__key_length_swa=256,
        attention__value_length_swa=256,
    )
    assert [layer.key_elements for layer in shape.layers] == [1024] * 5 + [2048]


def test_latent_attention_keeps_keys_only() -> None:
    shape = dense(
        arch="deepseek2",
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
    )
    assert [(x.key_elements, x.value_elements) for x in shape.layers] == [(576, 0)] * 4


def test_layers_that_share_a_cache_have_none_and_stay_together() -> None:
    shape = dense(8, "gemma4", attention__shared_kv_layers=3)
    assert [layer.has_cache for layer in shape.layers] == [True] * 5 + [False] * 3
    assert [i for i in range(9) if not shape.cut_is_allowed(i)] == [4, 5, 6, 7]
    assert all(dense(8).cut_is_allowed(i) for i in range(9))
    assert dense(30, "gemma3n").last_cut == 18


@pytest.mark.parametrize(
    ("arch", "extra", "more", "state"),
    [
        ("mamba", "ssm_in.weight", {"ssm__conv_kernel": 4, "ssm__inner_size": 2048,
                                    "ssm__state_size": 16}, 3 * 2048 + 16 * 2048),
        ("mamba2", "ssm_in.weight", {"ssm__conv_kernel": 4, "ssm__inner_size": 2048,
                                     "ssm__state_size": 128, "ssm__group_count": 1},
         3 * (2048 + 256) + 128 * 2048),
        ("rwkv7", "time_mix_key.weight", {"wkv__head_size": 64}, 2 * 1024 + 64 * 1024),
        ("lfm2", "shortconv.conv.weight", {"shortconv__l_cache": 3}, 2 * 1024),
        ("kimi-linear", "ssm_conv1d_q.weight", {"kda__head_dim": 128, "ssm__conv_kernel": 4},
         3 * 3 * 2048 + 128 * 2048),
    ],
)  # fmt: skip
def test_recurrent_layers_keep_a_state_and_no_cache(
    arch: str, extra: str, more: dict[str, Any], state: int
) -> None:
    layer = shape_of(header(arch, **more), tensors(extra=extra)).layers[0]
    assert layer.state_elements == state
    assert not layer.has_cache
    assert kv_bytes(layer, Run(ctx_tokens=8192, slots=2)) == 2 * 4 * state


def test_hybrids_know_which_of_their_layers_attend() -> None:
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": 4096, "ssm__state_size": 128}
    shape = dense(8, "qwen3next", **ssm, full_attention_interval=4)
    assert [layer.has_cache for layer in shape.layers] == ([False] * 3 + [True]) * 2
    assert [layer.state_elements > 0 for layer in shape.layers] == ([True] * 3 + [False]) * 2


def test_a_header_may_list_the_recurrent_layers() -> None:
    given = (True, False, False, True)
    shape = dense(arch="qwen35", attention__recurrent_layers=given, ssm__inner_size=64,
                  ssm__state_size=8)  # fmt: skip
    assert [not layer.has_cache for layer in shape.layers] == list(given)


def test_falcon_h1_keeps_both() -> None:
    more = {"ssm__conv_kernel": 4, "ssm__inner_size": 1024, "ssm__state_size": 16}
    layer = shape_of(header("falcon-h1", **more), tensors(extra="ssm_in.weight")).layers[0]
    assert layer.has_cache
    assert layer.state_elements > 0


def test_blocks_for_drafting_count_as_layers_but_are_not_loaded() -> None:
    shape = dense(5, "glm4moe", nextn_predict_layers=1)
    assert shape.n_layers == 5
    assert [layer.size_bytes > 0 for layer in shape.layers] == [True] * 4 + [False]


def test_what_cannot_be_modelled_is_said() -> None:
    assert "extra caches" in dense(arch="deepseek32").notes[0]
    assert dense().notes == ()


def test_a_type_that_is_not_known_keeps_its_number() -> None:
    odd = ("blk.0.x.weight", (32, 32), 77, 512)
    assert shape_of(header(layers=1), [odd]).layers[0].main_type == "77"
    assert shape_of(header(layers=1), []).layers[0].main_type == "F32"


@dataclass
class Broken:
    metadata: dict[str, object]
    tensors: list[Tensor]
    says: str


@pytest.mark.parametrize(
    "case",
    [
        Broken({}, [], "no general.architecture"),
        Broken({"general.architecture": "llama"}, [], "no llama.block_count"),
        Broken(header(), [tensor("blk.4.x.weight", 256)], "none of the 4 layers"),
        Broken(header(feed_forward_length=(1, 2)), [], "2 entries for 4 layers"),
        Broken(header(attention__head_count_kv=(float("nan"),) * 4), [], "no whole numbers"),
    ],
    ids=lambda case: case.says,
)
def test_a_header_that_contradicts_itself_is_refused(case: Broken) -> None:
    with pytest.raises(ModelBroken, match=case.says):
        shape_of(case.metadata, case.tensors)


def test_other_blocks_and_norms_find_their_place() -> None:
    more = [
        tensor("token_embd_norm.weight", 1024, type_id=F32),
        tensor("dec.blk.0.attn_q.weight", 1024, 1024, type_id=Q8_0),
        tensor("position_embd.weight", 1024, 512, type_id=F32),
    ]
    plain, shape = dense(), shape_of(header(), [*tensors(), *more])
    added = [a.size_bytes - b.size_bytes for a, b in zip(shape.layers, plain.layers, strict=True)]
    assert added == [4096 + tensor_bytes(Q8_0, (1024, 1024)), 0, 0, 0]
    assert shape.input_bytes - plain.input_bytes == 4 * 1024 * 512
