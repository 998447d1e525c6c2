"""What workers need beside their buffers, against what ten real launches took."""

import pytest
from planning_world import layer, model

from supervisor.core.memory import MIB, Run
from supervisor.core.model_shape import LayerShape
from supervisor.core.workspace import KEPT_BYTES, OTHER_BYTES, TILE_BYTES, workspace_bytes


def small(**changes: object) -> LayerShape:
    return layer(6 * MIB, embedding=1024, feed_forward=2816).model_copy(update=changes)


@pytest.mark.parametrize(
    ("ctx_tokens", "ubatch", "feed_forward", "embedding", "measured_mib"),
    [
        (2048, 512, 2816, 1024, 5.4),
        (4096, 256, 2816, 1024, 5.8),
        (8192, 512, 2816, 1024, 12.1),
        (8192, 128, 2816, 1024, 5.2),
        (2048, 512, 8192, 1536, 8.6),
        (1024, 128, 2560, 512, 2.6),
    ],
)
def test_it_bounds_what_was_measured_beside_the_buffers(
    ctx_tokens: int, ubatch: int, feed_forward: int, embedding: int, measured_mib: float
) -> None:
    shape = model([small(feed_forward=feed_forward)] * 12, embedding=embedding)
    run = Run(ctx_tokens=ctx_tokens, ubatch=ubatch)
    found = workspace_bytes(shape, run, 2 * MIB, threads=1) / MIB
    assert measured_mib <= found <= 1.4 * measured_mib + 3


def test_a_recurrent_layer_sends_its_whole_projection() -> None:
    recurrent = small(state_elements=500_000, key_elements=0, value_elements=0)
    run = Run(ctx_tokens=4096, ubatch=256)
    shape = model([recurrent] * 4, embedding=2048)
    found = workspace_bytes(shape, run, 9 * MIB, threads=1) / MIB
    assert 11.2 <= found <= 16


def test_long_contexts_need_large_masks() -> None:
    shape = model([small()] * 4, embedding=1024)
    short, long = (workspace_bytes(shape, Run(ctx_tokens=n), 0) for n in (32768, 65536))
    assert long - short == 1.5 * 2 * 512 * 32768


def test_two_masks_are_two_messages_that_add_up() -> None:
    run = Run(ctx_tokens=8192)
    full = workspace_bytes(model([small()] * 2, embedding=1024), run, 0)
    windowed = model([small(), small(window_tokens=1024)], embedding=1024)
    assert workspace_bytes(windowed, run, 0) - full == 1.5 * 2 * 512 * 1536


def test_what_is_kept_of_a_large_tensor_is_used_for_messages() -> None:
    run, shape = Run(ctx_tokens=512, ubatch=32), model([small()] * 2, embedding=1024)
    assert workspace_bytes(shape, run, 20 * MIB, threads=1) == 20 * MIB + OTHER_BYTES
    assert workspace_bytes(shape, run, 500 * MIB, threads=1) == KEPT_BYTES + OTHER_BYTES


def test_each_thread_has_a_tile() -> None:
    run, shape = Run(ctx_tokens=4096), model([small()] * 2, embedding=1024)
    one, four = (workspace_bytes(shape, run, 0, threads=n) for n in (1, 4))
    assert four - one == 3 * TILE_BYTES


def test_experts_that_are_used_together_are_multiplied_together() -> None:
    run = Run(ctx_tokens=512)
    dense = workspace_bytes(model([small(feed_forward=0)], embedding=1024), run, 0)
    routed = model([small(feed_forward=0, experts_used=8)], embedding=1024)
    assert workspace_bytes(routed, run, 0) - dense == round(7 * 1024 * 512 * 292 / 256)
