"""Which tensors of a model the workers of a plan will receive, in the order of their arrival.

It decides what is sent ahead, and no more: what is missing here arrives when llama-server sends it,
and what is here in vain costs time on the link.

llama-server makes one buffer per remote device and fills one after the other. Within a buffer,
tensors come in the order in which the code of their architecture names them, whatever their order
in the file: the output first, then block by block.

Source:
    llama.cpp as vendored by llama-cpp-python 0.3.36: ``src/llama-model.cpp`` ``load_tensors``,
    ``src/llama-model-loader.cpp`` ``create_tensor`` and ``load_all_data`` (which sorts by size
    where the file is not mapped, but ``commands.FLAGS`` map it), ``src/models/*.cpp``
    ``load_arch_tensors``, ``src/llama-arch.cpp`` ``LLM_TENSOR_INFOS``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from agents.chunks import SMALLEST_TENSOR_BYTES
from supervisor.core.entities import AgentId, Plan, Shard
from supervisor.core.model_shape import BLOCK, EMBEDDINGS, INPUT, NOT_COUNTED, OUTPUT_MATRIX

FIRST_BLOCK: Final = ("token_embd_norm.", "per_layer_model_proj.", "per_layer_proj_norm.")
"""Belong to no block, but are placed with the first one and come before it."""

DRAFTING: Final = "nextn."
"""A block with such tensors is for drafting: it counts as a layer, but is not loaded."""

WITHOUT_COPY: Final = frozenset(
    {"bitnet", "bert", "eurobert", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert"}
    | {"nomic-bert", "nomic-bert-moe"}
)
"""Architectures that have no output matrix and make no copy of the embeddings for it."""

ORDER: Final = """
output token_embd altup_proj altup_unembd_proj
time_mix_w1 time_mix_w2 time_mix_a1 time_mix_a2 time_mix_v1 time_mix_v2 time_mix_g1 time_mix_g2
time_mix_decay_w1 time_mix_decay_w2 time_mix_key time_mix_value time_mix_receptance time_mix_gate
time_mix_output channel_mix_key channel_mix_value channel_mix_receptance
ssm_in ssm_conv1d_q ssm_conv1d_k ssm_conv1d_v
attn_q_a attn_q_b attn_qkv attn_q attn_k attn_v attn_kv attn_kv_a_mqa attn_kv_b attn_k_b attn_v_b
ssm_f_a ssm_f_b ssm_g_a ssm_g_b attn_output attn_output_a attn_output_b attn_gate
indexer.proj indexer.attn_k indexer.attn_q_b
ssm_conv1d ssm_x ssm_dt ssm_a ssm_ba ssm_beta ssm_alpha ssm_out
shortconv.conv shortconv.in_proj shortconv.out_proj
ffn_gate ffn_down ffn_up ffn_gate_inp ffn_latent_down ffn_latent_up
ffn_gate_exps ffn_down_exps ffn_gate_up_exps ffn_up_exps
ffn_gate_chexps ffn_down_chexps ffn_up_chexps
ffn_gate_inp_shexp ffn_gate_shexp ffn_down_shexp ffn_up_shexp
inp_gate proj altup_predict_coef laurel_l laurel_r
"""
"""How most architectures order the large tensors of a block. Others come last, as in the file."""

VARIANTS: Final = (
    (
        "ffn_gate ffn_up ffn_down",
        "bailingmoe3 chatglm eurobert gemma gemma-embedding gemma2 gemma3 gemma3n gemma4 jais2"
        " laguna olmo2 plamo3 seed_oss spark2_5 talkie",
    ),
    ("ffn_down ffn_up ffn_gate", "deepseek2-ocr"),
    ("ffn_down ffn_gate ffn_up", "jais"),
    (
        "ffn_down_exps ffn_gate_up_exps ffn_gate_exps ffn_up_exps",
        "cohere2moe deepseek2 deepseek2-ocr granite_swa hy_v3 mistral4 qwen35moe qwen3next"
        " qwen4exp",
    ),
    ("ffn_gate_up_exps ffn_gate_exps ffn_up_exps ffn_down_exps", "bailingmoe3 gemma4 hy_v4 laguna"),
    (
        "ffn_gate_shexp ffn_up_shexp ffn_down_shexp",
        "bailingmoe3 granite granitehybrid granitemoe granite_swa hunyuan-moe hy_v3 laguna llama"
        " minicpm mistral3 qwen35moe qwen3next qwen4exp refact step35",
    ),
    ("attn_gate attn_output", "hrm_text kimi-k3 minimax-01 spark2_5"),
    ("ssm_conv1d ssm_out attn_qkv attn_q attn_k attn_v attn_output", "falcon-h1"),
    (
        "ffn_gate ffn_down ffn_up ffn_gate_inp ffn_gate_exps ffn_down_exps ffn_up_exps"
        " attn_qkv attn_q attn_k attn_v attn_output"
        " shortconv.conv shortconv.in_proj shortconv.out_proj",
        "lfm2 lfm2moe",
    ),
)
"""Names of ``ORDER`` that some architectures order otherwise, among themselves, and which do."""


class FileTensor(NamedTuple):
    """One tensor of a model; ``offset_bytes`` counts from the start of its file."""

    name: str
    file: Path
    offset_bytes: int
    size_bytes: int


def tensors_by_agent(
    plan: Plan, tensors: Sequence[FileTensor]
) -> dict[AgentId, tuple[FileTensor, ...]]:
    """The tensors that each worker will receive, in order; those that are cut into chunks.

    Args:
        plan: What llama-server is started with.
        tensors: Of all files of the model, in the order of their headers.
    """
    placed = _placed(plan, tensors)
    return {
        agent: tuple(
            tensor
            for _, shard in _buffers(plan, agent)
            for layer in _layers(plan, shard)
            for tensor in placed.get(layer, ())
        )
        for agent in plan.agent_ids
    }


def sending_order(plan: Plan, endpoints: Mapping[AgentId, str]) -> tuple[AgentId, ...]:
    """Workers as llama-server serves them, one after the other: by the names of their buffers.

    A worker with several devices is named once for each; others may come in between.

    Args:
        plan: What llama-server is started with.
        endpoints: As its ``--rpc`` names them.
    """
    buffers = [
        (f"{device}[{endpoints[agent]}]", agent)
        for agent in plan.agent_ids
        for device, _ in _buffers(plan, agent)
    ]
    return tuple(agent for _, agent in sorted(buffers))


def _buffers(plan: Plan, agent: AgentId) -> list[tuple[str, Shard]]:
    """The devices of one worker by the names that their buffers begin with, in their order.

    Names are compared as text (``llama_model_loader::ctx_key_comparator``): RPC10[ is before RPC1[.
    """
    shards = [shard for shard in plan.shards if shard.agent_id == agent]
    named = [(f"RPC{index}", shard) for index, shard in enumerate(shards)]
    return sorted(named, key=lambda item: f"{item[0]}[")


def _layers(plan: Plan, shard: Shard) -> list[int]:
    """The layers of a shard as they are sent; the one after the last block is the output."""
    layers = range(shard.first_layer, shard.first_layer + shard.layers)
    return sorted(layers, key=lambda layer: (layer < plan.model.block_count, layer))


def _placed(plan: Plan, tensors: Sequence[FileTensor]) -> dict[int, list[FileTensor]]:
    """Large tensors by layer, each layer in the order of loading; none that stays at home."""
    patterns = [re.compile(text.partition("=")[0]) for text in plan.tensor_overrides]
    found: dict[int, list[FileTensor]] = {}
    for layer, tensor in _with_layers(plan, tensors):
        pinned = any(pattern.search(tensor.name) for pattern in patterns)
        if tensor.size_bytes >= SMALLEST_TENSOR_BYTES and not pinned:
            found.setdefault(layer, []).append(tensor)
    for group in found.values():
        group.sort(key=lambda tensor: _rank(tensor.name, plan.model.architecture))
    return found


def _with_layers(plan: Plan, tensors: Sequence[FileTensor]) -> Iterator[tuple[int, FileTensor]]:
    blocks = [BLOCK.fullmatch(tensor.name) for tensor in tensors]
    drafting = {int(block[1]) for block in blocks if block and block[2].startswith(DRAFTING)}
    output = plan.model.block_count
    has_copy = _has_copy(plan, tensors)
    for tensor, block in zip(tensors, blocks, strict=True):
        if block:
            if int(block[1]) not in drafting:
                yield int(block[1]), tensor
        elif tensor.name.startswith(FIRST_BLOCK):
            yield 0, tensor
        elif not tensor.name.startswith((*INPUT, *NOT_COUNTED)) or (
            has_copy and tensor.name == EMBEDDINGS
        ):
            yield output, tensor


def _has_copy(plan: Plan, tensors: Sequence[FileTensor]) -> bool:
    """Whether the embeddings are sent again, as the output matrix."""
    is_tied = all(tensor.name != OUTPUT_MATRIX for tensor in tensors)
    return is_tied and plan.model.architecture not in WITHOUT_COPY


def _rank(name: str, architecture: str) -> tuple[bool, bool, int]:
    """Where in its layer a tensor comes; equal ones keep the order of the file."""
    block = BLOCK.fullmatch(name)
    stem, _, kind = (block[2] if block else name).rpartition(".")
    places = _places(architecture)
    # Biases are large in mixtures of experts only, whose code names them after all weights.
    return bool(block), kind != "weight", places.get(stem, len(places))


@cache
def _places(architecture: str) -> dict[str, int]:
    places = {name: index for index, name in enumerate(ORDER.split())}
    for names, architectures in VARIANTS:
        if architecture in architectures.split():
            order = names.split()
            indices = sorted(places[name] for name in order)
            places |= dict(zip(order, indices, strict=True))
    return places
