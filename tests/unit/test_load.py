"""A load as observed: phases by the lines of two generations, progress, and both deadlines."""

import pytest

from supervisor.core import load as core
from supervisor.core.load import Limits, Load, Overdue, Phase

LIMITS = Limits(connect_s=90.0, stall_s=120.0)

# Log of llama.cpp 0.5.0-dev (commit 0c1e570, 2026-10) with -lv 4, shortened, and what each line
# tells: phase and newest step.
LINES_2026_10 = [
    ("0.00.002.895 I srv  llama_server: initializing ...", Phase.CONNECT, "nothing"),
    ("0.00.002.902 I device_info:", Phase.CONNECT, "nothing"),
    ("0.00.004.960 I srv    load_model: loading model 'demo.gguf'", Phase.LOAD, "nothing"),
    ("0.00.005.112 I llama_model_loader: - kv   0: general.name str", Phase.LOAD, "nothing"),
    (
        "0.00.005.823 I llama_prepare_model_devices: using device RPC0 (127.0.0.1:18555) "
        "(unknown id) - 24105 MiB free",
        Phase.LOAD,
        "worker attached",
    ),
    (
        "0.00.006.706 I load_tensors: loading model tensors, this can take a while... "
        "(load_mode = mmap)",
        Phase.LOAD,
        "reading tensors",
    ),
    (
        "0.00.009.670 I load_tensors: RPC0[127.0.0.1:18555] model buffer size =    19.45 MiB",
        Phase.LOAD,
        "weights allocated",
    ),
    (
        "0.00.026.748 I llama_kv_cache: RPC0[127.0.0.1:18555] KV buffer size =     4.00 MiB",
        Phase.LOAD,
        "KV cache allocated",
    ),
    (
        "0.00.029.640 I sched_reserve: RPC0[127.0.0.1:18555] compute buffer size =     9.51 MiB",
        Phase.LOAD,
        "compute buffers allocated",
    ),
    ("0.00.037.417 I srv  llama_server: model loaded", Phase.LOAD, "model loaded"),
    (
        "0.00.037.432 I srv  llama_server: listening on http://127.0.0.1:18999",
        Phase.LISTENING,
        "model loaded",
    ),
]

# The wording of b7527 (2025-12): no time stamps, other functions.
LINES_B7527 = [
    ("main: setting n_parallel = 4 and kv_unified = true", Phase.CONNECT, "nothing"),
    ("main: loading model", Phase.LOAD, "nothing"),
    ("srv    load_model: loading model '/models/m.gguf'", Phase.LOAD, "nothing"),
    (
        "llama_model_load_from_file_impl: using device RPC0 (10.0.0.2:50052) (unknown id) - "
        "7000 MiB free",
        Phase.LOAD,
        "worker attached",
    ),
    (
        "load_tensors: loading model tensors, this can take a while... (mmap = true)",
        Phase.LOAD,
        "reading tensors",
    ),
    (
        "load_tensors: RPC0[10.0.0.2:50052] model buffer size =  4000.00 MiB",
        Phase.LOAD,
        "weights allocated",
    ),
    ("main: model loaded", Phase.LOAD, "model loaded"),
    (
        "main: server is listening on http://127.0.0.1:8080 - starting the main loop",
        Phase.LISTENING,
        "model loaded",
    ),
    ("srv  update_slots: all slots are idle", Phase.LISTENING, "model loaded"),
]


def in_load(now_s: float = 10.0) -> Load:
    return core.observe_port_open(core.begin(0.0), now_s)


@pytest.mark.parametrize("log", [LINES_2026_10, LINES_B7527], ids=["2026-10", "b7527"])
def test_the_log_of_each_generation_moves_a_load_through_its_phases(
    log: list[tuple[str, Phase, str]],
) -> None:
    load = core.begin(0.0)
    for second, (line, phase, step) in enumerate(log, start=1):
        load = core.observe_line(load, line, float(second))
        assert (load.phase, load.last_seen) == (phase, step), line
        assert load.progress_at_s == second


def test_one_late_line_is_enough_to_be_listening() -> None:
    line = "main: server is listening on http://127.0.0.1:8080"
    assert core.observe_line(core.begin(0.0), line, 1.0).phase is Phase.LISTENING


def test_an_open_port_ends_the_connecting_and_nothing_else() -> None:
    load = core.observe_port_open(core.begin(0.0), 4.0)
    assert (load.phase, load.phase_since_s, load.progress_at_s) == (Phase.LOAD, 4.0, 4.0)
    assert core.observe_port_open(load, 9.0) == load


@pytest.mark.parametrize(
    ("now_s", "expected"),
    [(89.9, None), (90.0, Overdue(Phase.CONNECT, 90.0, "nothing"))],
)
def test_connecting_has_a_deadline_of_its_own(now_s: float, expected: Overdue | None) -> None:
    assert core.overdue(core.begin(0.0), LIMITS, now_s) == expected


def test_lines_do_not_extend_the_time_for_connecting() -> None:
    load = core.observe_line(core.begin(0.0), "device_info:", 89.0)
    assert core.next_deadline_s(load, LIMITS) == 90.0
    assert core.overdue(load, LIMITS, 90.0) is not None


@pytest.mark.parametrize(
    ("now_s", "expected"),
    [(129.9, None), (130.0, Overdue(Phase.LOAD, 120.0, "nothing"))],
)
def test_a_load_without_progress_is_overdue(now_s: float, expected: Overdue | None) -> None:
    assert core.overdue(in_load(10.0), LIMITS, now_s) == expected


def test_a_slow_load_may_take_for_ever_while_something_moves() -> None:
    load = in_load(10.0)
    for now_s in range(100, 3600, 100):
        load = core.observe_line(load, "llama_model_loader: - tensor", float(now_s))
        assert core.overdue(load, LIMITS, now_s + 119.0) is None
        assert core.next_deadline_s(load, LIMITS) == now_s + LIMITS.stall_s


def test_a_listening_server_is_never_overdue() -> None:
    load = core.observe_line(in_load(), "listening on http://127.0.0.1:1", 20.0)
    assert core.overdue(load, LIMITS, 1e9) is None


@pytest.mark.parametrize(
    ("resident_bytes", "cpu_s", "is_progress"),
    [
        (2000, 1.0, True),
        (1001, 1.0, True),
        (1000, 1.0, False),
        (900, 1.0, False),  # memory that shrinks is no weights
        (1000, 1.01, False),  # one clock tick is bookkeeping
        (1000, 1.02, True),
        (1000, 5.0, True),
        (None, None, False),
        (None, 1.5, True),
        (1001, None, True),
    ],
)
def test_a_worker_that_grows_or_works_is_progress(
    resident_bytes: int | None, cpu_s: float | None, is_progress: bool
) -> None:
    load = core.observe_worker(in_load(10.0), "pixel", 1000, 1.0, 11.0)
    load = core.observe_worker(load, "pixel", resident_bytes, cpu_s, 50.0)
    assert load.progress_at_s == (50.0 if is_progress else 11.0)


def test_workers_are_told_apart_and_named() -> None:
    load = core.observe_worker(in_load(10.0), "pixel", 5000, 1.0, 11.0)
    load = core.observe_worker(load, "mac", 100, 0.5, 12.0)
    assert load.last_seen == "mac receiving weights"
    assert dict(load.resident_bytes) == {"pixel": 5000, "mac": 100}
    late = core.overdue(load, LIMITS, 132.0)
    assert late == Overdue(Phase.LOAD, 120.0, "mac receiving weights")


def test_what_is_resident_never_goes_back() -> None:
    load = core.observe_worker(in_load(), "pixel", 5000, None, 11.0)
    load = core.observe_worker(load, "pixel", 4000, None, 12.0)
    assert dict(load.resident_bytes) == {"pixel": 5000}


def test_an_idle_workers_noise_does_not_hide_a_stall() -> None:
    load = core.observe_worker(in_load(10.0), "pixel", 1000, 1.0, 11.0)
    for now_s in range(12, 140):
        load = core.observe_worker(load, "pixel", 1000, 1.01, float(now_s))
    assert core.overdue(load, LIMITS, 140.0) is not None
