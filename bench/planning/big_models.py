"""What the planner says about models far larger than any device, to be read by people.

    uv run python bench/planning/big_models.py
    uv run python bench/planning/big_models.py --only home

A 70B model of 42 GB (Llama 3 with the mix of types that Q4_K_M has) and a mixture of experts of
600 GB (DeepSeek-V3). The files are sparse: real headers with vocabularies, no weights. The devices
are invented; their figures are those that such devices reach, not those of their data sheets.
"""

import argparse
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parent))

from header import tokenizer
from shapes import ALIGNMENT, Entry, string, text

from supervisor.adapters.models import read_model
from supervisor.adapters.sparse_model import PartStart, sparse_model
from supervisor.core.explain import explain
from supervisor.core.ggml_types import F32, Q8_0, tensor_bytes
from supervisor.core.memory import GIB, Platform
from supervisor.core.model_shape import ModelShape
from supervisor.core.planning import DeviceOffer, HostOffer, Planned, PlanRequest, Wanted
from supervisor.core.search import plan
from supervisor.core.speed import DeviceSpeed, LinkSpeed
from supervisor.core.what_if import what_if

Q4_K, Q6_K = 12, 14
GB = 1e9
T = TypeVar("T")


# -- models ------------------------------------------------------------------------------------


def llama_70b() -> PartStart:
    """Llama 3 70B as llama-quantize writes it in Q4_K_M."""
    width, forward, kv_width, layers, vocabulary = 8192, 28672, 1024, 80, 128_256
    entries: list[Entry] = [
        ("token_embd.weight", (width, vocabulary), Q4_K),
        ("output_norm.weight", (width,), F32),
        ("output.weight", (width, vocabulary), Q6_K),
    ]
    for layer in range(layers):
        block = f"blk.{layer}"
        # Half of the layers have finer values: the first and the last eighth, then every third.
        is_fine = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        finer = Q6_K if is_fine else Q4_K
        entries += [
            (f"{block}.attn_norm.weight", (width,), F32),
            (f"{block}.attn_q.weight", (width, width), Q4_K),
            (f"{block}.attn_k.weight", (width, kv_width), Q4_K),
            (f"{block}.attn_v.weight", (width, kv_width), finer),
            (f"{block}.attn_output.weight", (width, width), Q4_K),
            (f"{block}.ffn_norm.weight", (width,), F32),
            (f"{block}.ffn_gate.weight", (width, forward), Q4_K),
            (f"{block}.ffn_up.weight", (width, forward), Q4_K),
            (f"{block}.ffn_down.weight", (forward, width), finer),
        ]
    keys = {
        "context_length": 131_072,
        "embedding_length": width,
        "block_count": layers,
        "feed_forward_length": forward,
        "attention.head_count": 64,
        "attention.head_count_kv": 8,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "rope.dimension_count": 128,
    }
    return header("llama", "Llama-3-70B-Q4_K_M", keys, vocabulary, entries)


def deepseek_v3() -> PartStart:
    """DeepSeek-V3, 671 billion weights: experts in Q6_K and Q8_0, the rest in Q8_0."""
    layers, dense, vocabulary = 61, 3, 129_280
    entries: list[Entry] = [
        ("token_embd.weight", (7168, vocabulary), Q8_0),
        ("output_norm.weight", (7168,), F32),
        ("output.weight", (7168, vocabulary), Q8_0),
    ]
    for layer in range(layers):
        block = f"blk.{layer}"
        entries += _latent_attention(block)
        entries += _feed_forward(block, is_dense=layer < dense)
    keys = {
        "context_length": 163_840,
        "embedding_length": 7168,
        "block_count": layers,
        "feed_forward_length": 18_432,
        "attention.head_count": 128,
        "attention.head_count_kv": 1,
        "attention.key_length": 576,
        "attention.value_length": 512,
        "attention.key_length_mla": 192,
        "attention.value_length_mla": 128,
        "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512,
        "rope.dimension_count": 64,
        "leading_dense_block_count": dense,
        "expert_count": 256,
        "expert_used_count": 8,
        "expert_shared_count": 1,
        "expert_feed_forward_length": 2048,
        "expert_gating_func": 2,
        "expert_weights_scale": 2.5,
    }
    return header("deepseek2", "DeepSeek-V3-Q6_K_L", keys, vocabulary, entries)


def _latent_attention(block: str) -> Iterator[Entry]:
    yield f"{block}.attn_norm.weight", (7168,), F32
    yield f"{block}.attn_q_a.weight", (7168, 1536), Q8_0
    yield f"{block}.attn_q_a_norm.weight", (1536,), F32
    yield f"{block}.attn_q_b.weight", (1536, 128 * 192), Q8_0
    yield f"{block}.attn_kv_a_mqa.weight", (7168, 576), Q8_0
    yield f"{block}.attn_kv_a_norm.weight", (512,), F32
    yield f"{block}.attn_k_b.weight", (128, 512, 128), Q8_0
    yield f"{block}.attn_v_b.weight", (512, 128, 128), Q8_0
    yield f"{block}.attn_output.weight", (128 * 128, 7168), Q8_0
    yield f"{block}.ffn_norm.weight", (7168,), F32


def _feed_forward(block: str, *, is_dense: bool) -> Iterator[Entry]:
    if is_dense:
        yield f"{block}.ffn_gate.weight", (7168, 18_432), Q8_0
        yield f"{block}.ffn_up.weight", (7168, 18_432), Q8_0
        yield f"{block}.ffn_down.weight", (18_432, 7168), Q8_0
        return
    yield f"{block}.ffn_gate_inp.weight", (7168, 256), F32
    yield f"{block}.exp_probs_b.bias", (256,), F32
    yield f"{block}.ffn_gate_exps.weight", (7168, 2048, 256), Q6_K
    yield f"{block}.ffn_up_exps.weight", (7168, 2048, 256), Q6_K
    yield f"{block}.ffn_down_exps.weight", (2048, 7168, 256), Q8_0
    yield f"{block}.ffn_gate_shexp.weight", (7168, 2048), Q8_0
    yield f"{block}.ffn_up_shexp.weight", (7168, 2048), Q8_0
    yield f"{block}.ffn_down_shexp.weight", (2048, 7168), Q8_0


def header(
    architecture: str,
    name: str,
    keys: Mapping[str, int | float],
    vocabulary: int,
    entries: Sequence[Entry],
) -> PartStart:
    """The file of such a model, up to its weights."""
    numbers = {**keys, "attention.layer_norm_rms_epsilon": 1e-6}
    metadata = {"general.architecture": text(architecture), "general.name": text(name)}
    metadata |= {f"{architecture}.{key}": number(value) for key, value in numbers.items()}
    metadata |= tokenizer(vocabulary)
    start = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(metadata)))
    for key, value in metadata.items():
        start += string(key) + value
    offset = 0
    for tensor, dimensions, type_id in entries:
        layout = f"<I{len(dimensions)}QIQ"
        start += string(tensor) + struct.pack(layout, len(dimensions), *dimensions, type_id, offset)
        offset += -(-tensor_bytes(type_id, dimensions) // ALIGNMENT) * ALIGNMENT
    start += bytes(-len(start) % ALIGNMENT)
    return PartStart(f"{name}.gguf", bytes(start), len(start) + offset)


def number(value: float) -> bytes:
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    return struct.pack("<If", 6, value)


# -- clusters ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model and what there is to run it."""

    name: str
    model: Callable[[], PartStart]
    devices: tuple[DeviceOffer, ...]
    host: HostOffer


def speed(gb_per_s: float, tflops: float, *, is_guess: bool = False) -> DeviceSpeed:
    return DeviceSpeed(
        decode_bytes_per_s=gb_per_s * GB,
        decode_by_type={"Q6_K": gb_per_s * GB * 0.85},
        prefill_flops=tflops * 1e12,
        layer_overhead_s=0.00005,
        is_guess=is_guess,
    )


def link(rtt_ms: float, mb_per_s: float, tail: float = 1.5) -> LinkSpeed:
    return LinkSpeed(
        rtt_p50_s=rtt_ms / 1e3,
        rtt_p90_s=rtt_ms * tail / 1e3,
        up_bytes_per_s=mb_per_s * 1e6,
        down_bytes_per_s=mb_per_s * 1e6,
        overhead_s=0.0003,
    )


def device(
    name: str,
    gib: float,
    rate: DeviceSpeed,
    path: LinkSpeed,
    platform: Platform = Platform.GPU,
    *,
    is_reliable: bool = True,
) -> DeviceOffer:
    return DeviceOffer(
        name=name,
        platform=platform,
        available_bytes=int(gib * GIB),
        speed=rate,
        link=path,
        is_reliable=is_reliable,
    )


def host(gib: float, gb_per_s: float) -> HostOffer:
    return HostOffer(
        available_bytes=int(gib * GIB),
        speed=speed(gb_per_s, 0.6),
        token_overhead_s=0.0005,
        disk_bytes_per_s=3e9,
    )


LOOPBACK, CABLE, FAST_CABLE, WIFI = link(0.1, 2000), link(0.5, 112), link(0.3, 280), link(5, 30, 4)
PHONES = tuple(
    device(
        f"phone-{number}",
        gib,
        speed(12, 0.12, is_guess=number == 3),
        WIFI,
        Platform.ANDROID,
        is_reliable=False,
    )
    for number, gib in ((1, 7.5), (2, 5.2), (3, 5.2))
)
LAPTOP = device("laptop", 11, speed(30, 0.3), WIFI, Platform.CPU)
GRAPHICS_CARD = device("pc/CUDA0", 22.5, speed(750, 60), LOOPBACK)
HOME = (
    GRAPHICS_CARD,
    device("mac-studio", 46, speed(300, 12), CABLE),
    device("mac-mini", 46, speed(200, 6), CABLE),
    LAPTOP,
    *PHONES,
)
SMALL_HOME = (GRAPHICS_CARD, LAPTOP, *PHONES)
LARGE = (
    *(device(f"mac-{n}", 108, speed(400, 14), FAST_CABLE) for n in range(1, 5)),
    *(device(f"box-{n}", 100, speed(190, 8), FAST_CABLE) for n in range(1, 5)),
)
PC = host(24, 40)
WANTED = Wanted(ctx_tokens=8192)
CASES = (
    Case("home", llama_70b, HOME, PC),
    Case("small home", llama_70b, SMALL_HOME, PC),
    Case("large", deepseek_v3, LARGE, host(28, 40)),
    Case("too small", deepseek_v3, HOME, PC),
    Case("much too small", llama_70b, (LAPTOP, *PHONES), host(6, 20)),
)


# -- output ------------------------------------------------------------------------------------


def timed(work: Callable[[], T]) -> tuple[T, float]:
    started_s = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started_s


def show(case: Case, shape: ModelShape) -> None:
    request = PlanRequest(shape=shape, devices=case.devices, host=case.host, wanted=WANTED)
    result, plan_s = timed(lambda: plan(request))
    print(f"plan: {plan_s:.3f} s")
    if isinstance(result, Planned):
        changes, changes_s = timed(lambda: what_if(request, result.best))
        print(f"what-ifs: {changes_s:.3f} s for {len(changes)}")
        sentences = explain(request, result, changes)
    else:
        sentences = explain(request, result)
    print(f"explanation, {len(sentences)} sentences:")
    for sentence in sentences:
        print(f"  {sentence}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one cluster")
    options = parser.parse_args()
    for case in CASES:
        if options.only in (None, case.name):
            with tempfile.TemporaryDirectory() as folder:
                path = sparse_model([case.model()], Path(folder))
                model, header_s = timed(lambda: read_model(str(path)))  # noqa: B023
            print(f"\n== {case.name}: {model.facts.name}, {model.facts.size_bytes / GB:.0f} GB")
            print(f"header: {header_s:.3f} s")
            show(case, model.shape)


if __name__ == "__main__":
    main()
