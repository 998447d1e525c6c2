"""Memory in closed form: the numbers that were measured on the engine's own allocator."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_world import layer, model

from supervisor.core.memory import (
    GIB,
    MIB,
    Platform,
    Position,
    Run,
    compute_bytes,
    feed_forward_bytes,
    kv_bytes,
    load_peak_bytes,
    logits_bytes,
    margin_bytes,
    padded,
)
from supervisor.core.model_shape import ModelShape

LLAMA_8B = model([layer(130 * MIB, kv_elements=1024, feed_forward=14_336)] * 32)
LLAMA_70B = model(
    [layer(450 * MIB, embedding=8192, kv_elements=1024, feed_forward=28_672)] * 80, embedding=8192
)
QWEN3_4B = model(  # 32 heads of 128 elements: queries are wider than the embedding
    [layer(60 * MIB, embedding=4096, kv_elements=1024, feed_forward=9728)] * 36, embedding=2560
)


def compute(
    shape: ModelShape, position: Position, *, copies: bool = False, slots: int = 1, ub: int = 512
) -> float:
    run = Run(ctx_tokens=8192, ubatch=ub, slots=slots)
    forward = feed_forward_bytes(shape, shape.layers[0], run)
    return compute_bytes(shape, run, position, forward, copies=copies) / MIB


@pytest.mark.parametrize(
    ("kv_type", "expected_mib"), [("f16", 512), ("q8_0", 272), ("q4_0", 144), ("f32", 1024)]
)
def test_the_cache_of_sixteen_layers_is_as_measured(kv_type: str, expected_mib: int) -> None:
    run = Run(ctx_tokens=8192, kv_type=kv_type)
    assert 16 * kv_bytes(LLAMA_8B.layers[0], run) == expected_mib * MIB


@pytest.mark.parametrize(
    ("position", "copies", "slots", "measured_mib"),
    [
        (Position.FIRST, True, 1, 172.04),
        (Position.OUTPUT, True, 1, 172.04),
        (Position.OUTPUT, True, 512, 354.55),  # llama-fit-params keeps logits of every token
        (Position.HOST, True, 1, 72.05),
        (Position.FIRST, False, 1, 108.0),
        (Position.OUTPUT, False, 1, 108.0),
    ],
)
def test_compute_buffers_of_an_8b_model_are_as_measured(
    position: Position, copies: bool, slots: int, measured_mib: float
) -> None:
    found = compute(LLAMA_8B, position, copies=copies, slots=slots)
    assert found == pytest.approx(measured_mib, abs=0.1)


def test_compute_buffers_of_a_70b_model_are_as_measured() -> None:
    assert compute(LLAMA_70B, Position.MIDDLE, copies=True) == pytest.approx(376, abs=0.5)


def test_compute_buffers_scale_with_the_ubatch() -> None:
    whole = compute(LLAMA_8B, Position.MIDDLE, copies=True)
    assert compute(LLAMA_8B, Position.MIDDLE, copies=True, ub=128) == pytest.approx(whole / 4)


def test_wide_queries_are_added() -> None:
    run = Run(ctx_tokens=8192)
    plain = 2 * 8192 * 512 + 2 * 4 * 2560 * 512 + 3 * 4 * 9728 * 512
    wider = 4 * (4096 - 2560) * 512
    assert compute(QWEN3_4B, Position.MIDDLE) * MIB == plain + wider
    assert compute_bytes(QWEN3_4B, run, Position.HOST, 0) == 2 * 8192 * 512 + 2 * 4 * 2560 * 512


def test_experts_replace_the_feed_forward_part() -> None:
    shape = model([layer(100 * MIB, experts_used=8, feed_forward=0)])
    run = Run(ctx_tokens=4096)
    expected = 2 * 4 * 4096 * 8 * 512 + 3 * 4 * 4096 * 512
    assert feed_forward_bytes(shape, shape.layers[0], run) == expected


@pytest.mark.parametrize(
    ("window", "slots", "unified", "cells"),
    [
        (None, 1, True, 8192),
        (512, 1, True, 1024),  # 512 + 512
        (1000, 1, True, 1536),
        (1024, 4, True, 4608),  # one cache for four windows
        (1024, 4, False, 4 * 1536),
        (8192, 1, True, 8192),  # never more than the context
    ],
)
def test_sliding_layers_keep_only_their_window(
    window: int | None, slots: int, unified: bool, cells: int
) -> None:
    slides = layer(MIB, kv_elements=512, window_tokens=window)
    run = Run(ctx_tokens=8192, slots=slots, is_unified=unified)
    assert kv_bytes(slides, run) == cells * 1024 * 2


def test_models_with_windows_have_a_second_mask() -> None:
    run = Run(ctx_tokens=8192)
    full = model([layer(MIB)] * 2)
    sliding = model([layer(MIB), layer(MIB, window_tokens=1024)])
    more = compute_bytes(sliding, run, Position.MIDDLE, 0) - compute_bytes(
        full, run, Position.MIDDLE, 0
    )
    assert more == 2 * 1536 * 512


@pytest.mark.parametrize(
    ("ctx", "slots", "unified", "cells", "streams"),
    [
        (4096, 1, True, 4096, 1),
        (4000, 1, True, 4096, 1),
        (4096, 4, True, 4096, 1),
        (4096, 4, False, 1024, 4),
        (1000, 4, False, 256, 4),
        (1, 4, False, 256, 4),
    ],
)
def test_contexts_are_padded_and_divided(
    ctx: int, slots: int, unified: bool, cells: int, streams: int
) -> None:
    run = Run(ctx_tokens=ctx, slots=slots, is_unified=unified)
    assert (run.cells, run.streams) == (cells, streams)


def test_a_tensor_that_arrives_counts_only_if_it_is_larger_than_what_follows() -> None:
    assert load_peak_bytes(weights=1000, largest=300, kv=100, compute=100) == 1300
    assert load_peak_bytes(weights=1000, largest=300, kv=250, compute=100) == 1350


def test_the_main_host_keeps_one_row_of_logits_per_slot() -> None:
    assert logits_bytes(LLAMA_8B, Run(ctx_tokens=8192, slots=4)) == 4 * 4 * 128_256


@pytest.mark.parametrize(
    ("platform", "gib", "floor_gib", "margin_gib"),
    [
        (Platform.GPU, 4, 0, 0.5),
        (Platform.GPU, 24, 0, 2.4),  # five percent would be less than the tenth
        (Platform.CPU, 4, 0, 1),
        (Platform.CPU, 64, 0, 6.4),
        (Platform.ANDROID, 8, 0, 2.2),
        (Platform.GPU, 4, 2, 2),
        (Platform.ANDROID, 8, 3, 3),
    ],
)
def test_every_platform_keeps_its_head_room(
    platform: Platform, gib: float, floor_gib: float, margin_gib: float
) -> None:
    margin = margin_bytes(platform, int(gib * GIB), int(floor_gib * GIB))
    assert margin == pytest.approx(margin_gib * GIB)


@given(st.integers(1, 1 << 20), st.integers(1, 1 << 20), st.sampled_from(["f16", "q8_0", "q4_0"]))
def test_more_context_never_needs_less(one: int, other: int, kv_type: str) -> None:
    small, large = sorted((one, other))
    slides = layer(MIB, window_tokens=4096, state_elements=100)
    for kind in (LLAMA_8B.layers[0], slides):
        assert kv_bytes(kind, Run(ctx_tokens=small, kv_type=kv_type)) <= kv_bytes(
            kind, Run(ctx_tokens=large, kv_type=kv_type)
        )


@given(st.integers(1, 1 << 40))
def test_padding_is_the_next_multiple(tokens: int) -> None:
    assert padded(tokens) % 256 == 0
    assert 0 <= padded(tokens) - tokens < 256


@given(st.integers(0, 1 << 44), st.sampled_from(Platform))
def test_a_margin_is_never_less_than_a_tenth(available: int, platform: Platform) -> None:
    assert margin_bytes(platform, available) >= available // 10
