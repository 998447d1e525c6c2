"""All rows."""

import signal

from chaos import faults, lasting, rows
from chaos.faults import FROZEN_S, Fault
from chaos.rows import VICTIM, Row, struck
from chaos.world import Setup

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
MIB = 1 << 20
RELAYED = Setup(relayed=(VICTIM,))
SHORT_BELIEF = {"late_after_s": 2, "stale_after_s": 4}
"""Of silent devices: less than the supervisor is frozen for."""

LONG_PAUSE = {"retry_first_s": 2}
"""Before a repair, so that something can happen in it."""

FAULTS = (
    Fault(
        "worker-kill",
        "rpc-server of a worker: SIGKILL",
        ("worker_killed",),
        faults.to_worker(KILL),
    ),
    Fault(
        "worker-stop",
        "rpc-server of a worker: SIGSTOP",
        ("worker_frozen",),
        faults.to_worker(STOP),
        detect_s=FROZEN_S,
    ),
    Fault(
        "agent-kill",
        "agent of a worker: SIGKILL",
        ("worker_unreachable", "agent_restarted"),
        faults.to_agent(KILL),
    ),
    Fault(
        "agent-stop",
        "agent of a worker: SIGSTOP",
        ("worker_unreachable",),
        faults.to_agent(STOP),
        faults.thaw,
        detect_s=FROZEN_S,
    ),
    Fault("engine-kill", "llama-server: SIGKILL", ("engine_killed",), faults.to_engine(KILL)),
    Fault(
        "engine-stop",
        "llama-server: SIGSTOP",
        ("engine_frozen",),
        faults.to_engine(STOP),
        detect_s=FROZEN_S,
    ),
    Fault("link-kill", "link process: SIGKILL", ("link_process_ended",), faults.to_link(KILL)),
    Fault(
        "link-stop",
        "link process: SIGSTOP",
        ("link_process_frozen",),
        faults.to_link(STOP),
        detect_s=FROZEN_S,
    ),
    Fault(
        "black-hole",
        "link to a worker: a black hole",
        ("link_black_hole",),
        faults.open_hole,
        faults.close_hole,
        detect_s=FROZEN_S,
        needs_relay=True,
    ),
)
"""Those that a launch does not survive."""

MORE_FAULTS = (
    Fault("link-cut", "link to a worker: cut", ("link_lost",), faults.cut, needs_relay=True),
    Fault(
        "supervisor-kill",
        "supervisor: SIGKILL and started again",
        (),
        faults.restart_supervisor,
    ),
    Fault("supervisor-stop", "supervisor: SIGSTOP and SIGCONT", (), faults.freeze_supervisor),
)
"""For long runs, besides."""

FAST = ("worker-kill", "worker-stop", "engine-kill", "black-hole")

ROWS = (
    *(struck(fault, is_fast=fault.name in FAST) for fault in FAULTS),
    Row(
        "worker-out-of-memory",
        "rpc-server of a worker: killed for its memory",
        rows.out_of_memory,
        ("worker_out_of_memory",),
    ),
    Row(
        "flapping",
        "link to a worker: breaks whenever it is used",
        rows.flapping,
        ("link_*", "worker_*"),
        RELAYED,
    ),
    Row(
        "model-renamed",
        "model file: another one renamed over it",
        rows.replaced(rows.rename_over),
        ("model_replaced",),
        detect_s=FROZEN_S,
    ),
    Row(
        "model-overwritten",
        "model file: overwritten in place",
        rows.replaced(rows.write_over),
        ("model_replaced",),
        detect_s=FROZEN_S,
    ),
    Row(
        "supervisor-kill",
        "supervisor: SIGKILL, started again 1 s later",
        lasting.supervisor_killed,
        serve_s=lasting.ADOPTION_S,
        serve_goal_s=lasting.ADOPTION_GOAL_S,
        is_fast=True,
    ),
    Row(
        "supervisor-kill-while-starting",
        "supervisor: SIGKILL in the middle of a launch, started again 1 s later",
        lasting.supervisor_killed_while_starting,
    ),
    Row(
        "supervisor-stop",
        f"supervisor: SIGSTOP for {lasting.FREEZE_S:g} s",
        lasting.supervisor_frozen,
        setup=Setup(settings=SHORT_BELIEF),
        serve_s=lasting.ADOPTION_S,
        serve_goal_s=lasting.ADOPTION_GOAL_S,
    ),
    Row(
        "two-supervisors",
        "a second supervisor on the same data folder",
        lasting.two_supervisors,
        is_fast=True,
    ),
    Row(
        "main-disk-full",
        "disk of the main host: full",
        lasting.main_disk_full,
        setup=Setup(disks={"supervisor": 24 * MIB}),
    ),
    Row(
        "main-disk-full-and-worker-kill",
        "disk of the main host: full, and rpc-server of a worker: SIGKILL",
        lasting.main_disk_full_and_a_worker_killed,
        ("worker_killed",),
        setup=Setup(disks={"supervisor": 24 * MIB}),
    ),
    Row(
        "worker-disk-full",
        "disk of a worker: full",
        lasting.worker_disk_full,
        setup=Setup(disks={VICTIM: 48 * MIB}),
    ),
    Row(
        "clock-back",
        "clock of the main host: an hour back, then SIGKILL of a worker, then another hour",
        lasting.clock_set_back,
        ("worker_killed",),
        setup=Setup(has_clock=True, settings=LONG_PAUSE),
    ),
)
