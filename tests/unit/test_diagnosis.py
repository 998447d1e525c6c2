"""From what was seen of a launch to its cause, with the real last words of real engines.

``logs/7.0`` was printed by llama.cpp 0c1e570; ``3.6``, ``between`` (builds of 2026 before RPC 6)
and ``metal`` hold the same failures in the words of other builds.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import errors as agent_errors
from agents.contract import RpcServerStatus, WorkerState
from agents.errors import ProjectError
from supervisor import errors
from supervisor.core import causes, diagnosis, log_causes
from supervisor.core.diagnosis import cause_of, diagnose
from supervisor.core.entities import Action, Cause
from supervisor.core.evidence import Evidence, WorkerEvidence

LOGS = Path(__file__).parent / "logs"
ERRORS_MD = Path(__file__).parents[2] / "docs" / "errors.md"
DOCUMENTED = frozenset(re.findall(r"^## (\w+)$", ERRORS_MD.read_text(), flags=re.MULTILINE))

RETRY, SHARE, UBATCH = Action.RETRY, Action.SMALLER_SHARE, Action.SMALLER_UBATCH
EXCLUDE, GIVE_UP = Action.EXCLUDE, Action.GIVE_UP
ABRT, BUS, ILL, KILL, SEGV, TERM, SYS = -6, -7, -4, -9, -11, -15, -31
GIB = 1 << 30


def tail(name: str) -> tuple[str, ...]:
    return tuple((LOGS / f"{name}.log").read_text().splitlines()) if name else ()


def status(
    state: WorkerState = WorkerState.READY,
    *,
    ended: int | None = None,
    oom_kills: int | None = None,
    process_state: str = "",
    code: str = "",
    detail: str = "",
) -> RpcServerStatus:
    return RpcServerStatus(
        state,
        generation=7,
        exit_status=ended,
        error_code=code,
        detail=detail,
        oom_kills=oom_kills,
        process_state=process_state,
        peak_bytes=3 * GIB,
    )


def failed(ended: int | None, *, oom_kills: int | None = None) -> RpcServerStatus:
    """What an agent says of an rpc-server that ended by itself."""
    return status(
        WorkerState.FAILED,
        ended=ended,
        oom_kills=oom_kills,
        code="rpc_server_exited",
        detail=f"rpc-server (pid 4711) ended with {ended}",
    )


LAPTOP = WorkerEvidence(
    "a-laptop",
    "laptop",
    endpoint="127.0.0.1:8112",
    status=status(process_state="S"),
    link_state="serving",
    rpc_protocol="7.0.0",
    engine_build="0c1e570",
)
PHONE = WorkerEvidence(
    "a-phone",
    "phone",
    platform="android",
    endpoint="127.0.0.1:8113",
    status=status(process_state="S"),
    link_state="serving",
    last_command="GRAPH_COMPUTE",
    waiting_s=6.25,
    rpc_protocol="7.0.0",
    engine_build="0c1e570",
    temperature_c=31.0,
    battery_percent=80.0,
    available_bytes=GIB // 2,
)
MAC = replace(PHONE, name="mac", agent_id="a-mac", platform="macos", temperature_c=None)


def of(worker: WorkerEvidence, log: str = "", **changes: object) -> WorkerEvidence:
    return replace(worker, log_tail=tail(log), **changes)  # type: ignore[arg-type]


def seen(
    log: str = "",
    ended: int | None = None,
    *workers: WorkerEvidence,
    phase: str = "load",
    found: ProjectError | None = None,
    protocol: str = "7.0.0",
    **more: object,
) -> Evidence:
    """The laptop is well in every case."""
    return Evidence(
        phase=phase,
        found=found,
        exit_status=ended,
        log_tail=tail(log),
        rpc_protocol=protocol,
        engine_build="0c1e570",
        workers=(LAPTOP, *workers),
        **more,  # type: ignore[arg-type]
    )


def alone(evidence: Evidence) -> Evidence:
    return replace(evidence, workers=())


NO_ROUTE = (
    f"0.00.104.811 E Failed to connect to {PHONE.endpoint} (No route to host)",
    "0.00.104.812 E connect: No route to host",
)
LOST = agent_errors.LinkLost("the link to phone was lost in phase decode: closed")
HUNG = errors.EngineHung("slot 0 made no progress for 31 s; phone and laptop answer")
CLOSED = "the link to phone was lost in phase load: the connection was closed (last command: HELLO)"
SILENT = (
    "the link to phone was lost in phase decode: silent for 6.1 s (last command: GRAPH_COMPUTE)"
)
HANGUP = "the link to phone was lost in phase load: the rpc-server closed the connection"

# Evidence, code, action, device, and a part of the sentence.
Case = tuple[Evidence, str, Action, str, str]
CASES: dict[str, Case] = {
    # -- llama-server says it: RPC 7.0, real
    "flag": (seen("7.0/bad_flag", 1), "engine_refused_flag", GIVE_UP, "", "--bogus"),
    "value": (seen("7.0/bad_value", 1), "engine_refused_flag", GIVE_UP, "", '"-ub": stoi'),
    "grammar": (seen("7.0/bad_grammar", ABRT), "engine_refused_flag", GIVE_UP, "", "parse grammar"),
    "projector": (seen("7.0/bad_projector", 1), "engine_refused_flag", GIVE_UP, "", "mmproj-y"),
    "adapter": (seen("7.0/bad_adapter", 1), "engine_refused_flag", GIVE_UP, "", "ad9.gguf"),
    "device flag": (seen("7.0/bad_device", 1), "engine_refused_flag", GIVE_UP, "", "RPC9"),
    "endpoint": (seen("7.0/bad_endpoint", ABRT), "engine_refused_flag", GIVE_UP, "", "nowhere"),
    "missing": (seen("7.0/model_missing", 1), "model_missing", GIVE_UP, "", "No such file"),
    "empty": (seen("7.0/model_empty", 1), "model_broken", GIVE_UP, "", "no GGUF file"),
    "magic": (seen("7.0/wrong_magic", 1), "model_broken", GIVE_UP, "", "'hell'"),
    "cut": (seen("7.0/truncated", 1), "model_broken", GIVE_UP, "", "'output.weight'"),
    "cut header": (seen("7.0/truncated_header", 1), "model_broken", GIVE_UP, "", "too early"),
    "tensor": (seen("7.0/missing_tensor", 1), "model_broken", GIVE_UP, "", "'blk.3.ffn_down"),
    "key": (seen("7.0/missing_key", 1), "engine_refused_model", GIVE_UP, "", "llama.block_count"),
    "architecture": (
        seen("7.0/unknown_architecture", 1),
        "architecture_unsupported",
        GIVE_UP,
        "",
        "'gemm9'",
    ),
    "template": (seen("7.0/bad_template", 1), "chat_template_broken", GIVE_UP, "", "{{"),
    "template, other order": (
        seen("7.0/bad_template_jinja", 1),
        "chat_template_broken",
        GIVE_UP,
        "",
        "{{ x",
    ),
    "template of the model": (
        seen("7.0/bad_template_model", 1),
        "chat_template_broken",
        GIVE_UP,
        "",
        "parsing error",
    ),
    "port": (seen("7.0/port_in_use", 1), "port_in_use", RETRY, "", "port: 55611"),
    "closed port": (
        seen("7.0/closed_port", ABRT, PHONE),
        "worker_unreachable",
        RETRY,
        "phone",
        "could not connect to phone",
    ),
    "local network of a Mac": (
        replace(seen("7.0/closed_port", ABRT, PHONE), log_tail=NO_ROUTE, platform="macos"),
        "local_network_denied",
        RETRY,
        "phone",
        "macOS keeps it from phone",
    ),
    "local network of a Mac, nobody knows who": (
        replace(seen("", ABRT, PHONE), log_tail=NO_ROUTE[1:], platform="macos"),
        "local_network_denied",
        RETRY,
        "",
        "macOS keeps it from a worker",
    ),
    "no route, and no Mac": (
        replace(seen("7.0/closed_port", ABRT, PHONE), log_tail=NO_ROUTE, platform="linux"),
        "worker_unreachable",
        RETRY,
        "phone",
        "could not connect to phone",
    ),
    "closed port of nobody": (
        seen("7.0/closed_port", ABRT),
        "worker_unreachable",
        RETRY,
        "",
        "127.0.0.1:8113",
    ),
    "version": (
        seen("7.0/refused_version", ABRT, PHONE),
        "worker_incompatible",
        EXCLUDE,
        "phone",
        "phone speaks another RPC version",
    ),
    "version of nobody": (
        seen("7.0/refused_version", ABRT),
        "worker_incompatible",
        GIVE_UP,
        "",
        "127.0.0.1:8113",
    ),
    "3.x worker": (
        seen("7.0/v3_worker", ABRT, replace(PHONE, rpc_protocol="3.6.0")),
        "worker_incompatible",
        EXCLUDE,
        "phone",
        "with RPC 3.6.0, the main host 0c1e570 with RPC 7.0.0",
    ),
    "weights on a worker": (
        seen("7.0/weights_worker", 1, of(PHONE, "7.0/rpc-server-allocation_refused")),
        "allocation_refused",
        SHARE,
        "phone",
        "phone refused 191.9 MiB for weights",
    ),
    "cache on a worker": (
        seen("7.0/kv_worker", 1, of(PHONE, "7.0/rpc-server-cache_refused")),
        "cache_does_not_fit",
        SHARE,
        "phone",
        "phone refused 3.1 GiB for the cache",
    ),
    "computation on a worker": (
        seen("7.0/compute_worker", 1, PHONE),
        "allocation_refused",
        SHARE,
        "phone",
        "phone refused 9.1 GiB for computation",
    ),
    "weights here": (
        seen("7.0/host_weights", 1, PHONE),
        "allocation_refused",
        SHARE,
        "",
        "the main host refused 192.5 MiB",
    ),
    "cache here": (
        seen("7.0/kv_host", 1, PHONE),
        "cache_does_not_fit",
        SHARE,
        "",
        "the main host refused 15.3 GiB",
    ),
    "map": (seen("7.0/host_mmap", 1), "allocation_refused", SHARE, "", "mmap failed"),
    "too many devices": (
        seen("7.0/too_many_devices", ABRT),
        "bad_split",
        GIVE_UP,
        "",
        "more devices",
    ),
    # -- the same in the words of builds of the 3.6 generation
    "3.6 missing": (seen("3.6/model_missing", 1), "model_missing", GIVE_UP, "", "missing.gguf"),
    "3.6 magic": (seen("3.6/wrong_magic", 1), "model_broken", GIVE_UP, "", "'hell'"),
    "3.6 cut": (seen("3.6/truncated", 1), "model_broken", GIVE_UP, "", "'output.weight'"),
    "3.6 number": (seen("3.6/wrong_number", 1), "model_broken", GIVE_UP, "", "expected 10, got 9"),
    "3.6 tensor": (seen("3.6/missing_tensor", 1), "model_broken", GIVE_UP, "", "output_norm"),
    "3.6 newer": (seen("3.6/newer_file", 1), "engine_refused_model", GIVE_UP, "", "version 4"),
    "3.6 architecture": (
        seen("3.6/unknown_architecture", 1),
        "architecture_unsupported",
        GIVE_UP,
        "",
        "'gemma9'",
    ),
    "3.6 template": (seen("3.6/bad_template", 1), "chat_template_broken", GIVE_UP, "", "row 1"),
    "3.6 port": (seen("3.6/port_in_use", 1), "port_in_use", RETRY, "", "port: 55611"),
    "3.6 without RPC": (
        seen("3.6/without_rpc", 1),
        "engine_without_rpc",
        GIVE_UP,
        "",
        "without RPC",
    ),
    "3.6 weights": (
        seen("3.6/weights_worker", 1, PHONE),
        "allocation_refused",
        SHARE,
        "phone",
        "phone refused 191.9 MiB for weights",
    ),
    "3.6 cache": (seen("3.6/kv_worker", 1, PHONE), "cache_does_not_fit", SHARE, "phone", "3.1 GiB"),
    "3.6 computation, tried twice": (
        seen("3.6/compute_retried", 1, PHONE),
        "allocation_refused",
        SHARE,
        "",
        "the main host refused 233.6 MiB",
    ),
    "3.6 unreachable": (
        seen("3.6/segv_at_start", SEGV, replace(PHONE, is_reachable=False), protocol="3.6.0"),
        "worker_unreachable",
        RETRY,
        "phone",
        "phone does not answer",
    ),
    "3.6 unreachable, nobody knows who": (
        seen("3.6/segv_at_start", SEGV, PHONE, protocol="3.6.0"),
        "worker_unreachable",
        RETRY,
        "",
        "cannot connect to a worker",
    ),
    "3.6 version": (
        seen("3.6/refused_version", SEGV, replace(PHONE, rpc_protocol="5.1.0"), protocol="3.6.0"),
        "worker_incompatible",
        EXCLUDE,
        "laptop",
        "laptop speaks another RPC version (RPC server version mismatch: 5.1.0)",
    ),
    "3.6 lost": (
        seen("3.6/worker_killed", ABRT, of(PHONE, status=failed(KILL)), protocol="3.6.0"),
        "worker_killed_by_android",
        RETRY,
        "phone",
        "Android killed",
    ),
    "3.6 lost, after a mere warning": (
        alone(seen("3.6/patch_differs", ABRT, protocol="3.6.0")),
        "worker_lost",
        RETRY,
        "",
        "the connection to a worker broke",
    ),
    # -- builds that start without a worker
    "without a worker": (
        seen("between/starts_without_worker", 1, PHONE, protocol="5.1.0"),
        "worker_unreachable",
        RETRY,
        "phone",
        "could not connect to phone",
    ),
    "without its device": (
        seen("between/device_gone", 1, PHONE, protocol="5.1.0"),
        "worker_unreachable",
        RETRY,
        "phone",
        "could not connect to phone",
    ),
    "without a worker, until the kernel came": (
        seen("between/starts_without_worker", KILL, PHONE, protocol="5.1.0", host_oom_kills=1),
        "worker_unreachable",
        RETRY,
        "phone",
        "took its layers itself",
    ),
    # -- workers that ended
    "Android": (
        seen("7.0/worker_killed", ABRT, of(PHONE, "7.0/rpc-server-killed", status=failed(KILL))),
        "worker_killed_by_android",
        RETRY,
        "phone",
        "Android killed the rpc-server of phone with SIGKILL during loading",
    ),
    "Android counts, and none was for memory": (
        seen("7.0/worker_killed", ABRT, of(PHONE, status=failed(KILL, oom_kills=0))),
        "worker_killed_by_android",
        RETRY,
        "phone",
        "Android killed",
    ),
    "OOM killer of a phone": (
        seen("7.0/killed_loading", ABRT, of(PHONE, status=failed(KILL, oom_kills=1))),
        "worker_out_of_memory",
        SHARE,
        "phone",
        "the kernel of phone killed its rpc-server for want of memory during loading; 512.0 MiB",
    ),
    "OOM killer, seen by its link": (
        seen(
            "", None, replace(PHONE, platform="linux", status=failed(KILL, oom_kills=2)), found=LOST
        ),
        "worker_out_of_memory",
        SHARE,
        "phone",
        "the kernel of phone",
    ),
    "kill": (
        seen("7.0/worker_killed", ABRT, of(MAC, status=failed(KILL))),
        "worker_killed",
        RETRY,
        "mac",
        "somebody killed the rpc-server of mac with SIGKILL during loading; whether memory was "
        "short is unknown",
    ),
    "kill, and memory was not short": (
        seen(
            "", None, replace(PHONE, platform="linux", status=failed(KILL, oom_kills=0)), found=LOST
        ),
        "worker_killed",
        RETRY,
        "phone",
        "memory was not short",
    ),
    "asked to end": (
        seen("7.0/worker_killed", ABRT, of(PHONE, status=failed(TERM))),
        "worker_killed",
        RETRY,
        "phone",
        "with SIGTERM",
    ),
    "crash": (
        seen("7.0/worker_killed", ABRT, of(PHONE, status=failed(SEGV)), phase="serving"),
        "worker_crashed",
        RETRY,
        "phone",
        "the rpc-server of phone crashed with SIGSEGV during serving",
    ),
    "wrong processor": (
        seen("7.0/worker_killed", ABRT, of(PHONE, status=failed(ILL))),
        "worker_crashed",
        EXCLUDE,
        "phone",
        "an instruction that this processor lacks",
    ),
    "seccomp": (
        seen("7.0/worker_killed", ABRT, of(PHONE, status=failed(SYS))),
        "worker_crashed",
        EXCLUDE,
        "phone",
        "a system call that the system forbids",
    ),
    "bus error of a Mac": (
        seen("7.0/worker_killed", ABRT, of(MAC, status=failed(-10))),
        "worker_crashed",
        RETRY,
        "mac",
        "SIGBUS",
    ),
    "exit": (
        seen("", None, of(MAC, "7.0/rpc-server-killed", status=failed(0)), found=LOST),
        "rpc_server_exited",
        RETRY,
        "mac",
        "ended with 0",
    ),
    "port of a worker": (
        seen("", None, of(PHONE, "7.0/rpc-server-port_in_use", status=failed(0)), phase="workers"),
        "port_in_use",
        RETRY,
        "phone",
        "another program took its port on phone",
    ),
    "option of a worker": (
        seen("", None, of(PHONE, "7.0/rpc-server-unknown_argument", status=failed(0))),
        "engine_refused_flag",
        EXCLUDE,
        "phone",
        "unknown argument: --threads",
    ),
    "silent from the start": (
        seen(
            "",
            None,
            of(
                PHONE,
                status=status(WorkerState.FAILED, code="rpc_server_silent", detail="no HELLO"),
            ),
            phase="workers",
        ),
        "rpc_server_silent",
        RETRY,
        "phone",
        "no HELLO",
    ),
    "abort for want of memory": (
        seen(
            "7.0/worker_killed",
            ABRT,
            of(PHONE, "7.0/rpc-server-allocation_refused", status=failed(ABRT)),
        ),
        "allocation_refused",
        SHARE,
        "phone",
        "phone refused it memory",
    ),
    "full disk of a worker": (
        seen(
            "",
            ABRT,
            replace(PHONE, status=failed(ABRT), log_tail=("write: No space left on device",)),
        ),
        "disk_full",
        RETRY,
        "phone",
        "the disk of phone is full",
    ),
    "of two, the one that tells more": (
        seen(
            "",
            ABRT,
            replace(MAC, status=failed(KILL)),
            replace(PHONE, status=failed(KILL, oom_kills=1)),
        ),
        "worker_out_of_memory",
        SHARE,
        "phone",
        "the kernel of phone",
    ),
    # -- GPUs
    "GPU time-out": (
        seen("7.0/worker_killed", ABRT, of(MAC, "metal/rpc-server-timeout", status=failed(ABRT))),
        "gpu_timeout",
        UBATCH,
        "mac",
        "work on the GPU of mac took so long",
    ),
    "GPU time-out, interactivity": (
        seen("", None, of(MAC, "metal/rpc-server-interactivity", status=failed(ABRT)), found=LOST),
        "gpu_timeout",
        UBATCH,
        "mac",
        "work on the GPU of mac",
    ),
    "GPU out of memory": (
        seen(
            "7.0/worker_killed",
            ABRT,
            of(MAC, "metal/rpc-server-out_of_memory", status=failed(ABRT)),
        ),
        "gpu_out_of_memory",
        SHARE,
        "mac",
        "the GPU of mac ran out of memory",
    ),
    "GPU out of memory, old words": (
        seen(
            "3.6/worker_killed",
            ABRT,
            of(MAC, "metal/rpc-server-old_out_of_memory", status=failed(ABRT)),
        ),
        "gpu_out_of_memory",
        SHARE,
        "mac",
        "the GPU of mac ran out of memory",
    ),
    "GPU failed, and its rpc-server lives": (
        seen("", None, of(MAC, "metal/rpc-server-timeout"), found=HUNG, phase="serving"),
        "gpu_timeout",
        UBATCH,
        "mac",
        "during serving",
    ),
    "GPU of the main host": (
        seen(
            "metal/llama-server-timeout",
            None,
            PHONE,
            phase="first token",
            found=errors.EngineNotReady("the first completion failed: Compute error"),
        ),
        "gpu_timeout",
        UBATCH,
        "",
        "the GPU of the main host took so long",
    ),
    "GPU of the main host, and it ended": (
        seen("metal/llama-server-timeout", ABRT, PHONE),
        "gpu_timeout",
        UBATCH,
        "",
        "the GPU of the main host",
    ),
    # -- frozen, restarted, stopped
    "frozen worker": (
        seen("", None, replace(PHONE, status=status(process_state="T")), found=HUNG, phase="ready"),
        "worker_frozen",
        RETRY,
        "phone",
        "is stopped by a signal or a debugger (state T) during serving",
    ),
    "frozen worker, found by the watch": (
        seen("", None, PHONE, found=errors.WorkerFrozen("phone: GRAPH_COMPUTE waits for 9.1 s")),
        "worker_frozen",
        RETRY,
        "phone",
        "GRAPH_COMPUTE waits for 9.1 s",
    ),
    "frozen llama-server": (
        seen("", None, PHONE, found=HUNG, process_state="T"),
        "engine_frozen",
        RETRY,
        "",
        "llama-server is stopped",
    ),
    "hung llama-server": (
        seen("", None, PHONE, found=errors.EngineHung("no progress"), process_state="R"),
        "engine_hung",
        RETRY,
        "",
        "no progress",
    ),
    "restarted agent": (
        seen("7.0/worker_killed", ABRT, replace(PHONE, status=None, restarted=True)),
        "agent_restarted",
        RETRY,
        "phone",
        "the agent of phone began anew",
    ),
    "not yet started": (
        seen(
            "",
            None,
            replace(PHONE, status=None, restarted=True),
            phase="workers",
            found=errors.AgentUnreachable("laptop: no answer"),
        ),
        "agent_unreachable",
        RETRY,
        "laptop",
        "laptop: no answer",
    ),
    "stopped by its agent": (
        seen("7.0/worker_killed", ABRT, replace(PHONE, status=status(WorkerState.STOPPED))),
        "worker_lost",
        RETRY,
        "phone",
        "the agent of phone stopped its rpc-server",
    ),
    "not yet asked for": (
        seen(
            "",
            None,
            replace(PHONE, status=status(WorkerState.STOPPED)),
            phase="workers",
            found=agent_errors.RpcServerSilent("laptop: no HELLO"),
        ),
        "rpc_server_silent",
        RETRY,
        "laptop",
        "laptop: no HELLO",
    ),
    # -- links
    "black hole": (
        seen("", None, replace(PHONE, link_state="lost", link_detail=SILENT), found=LOST),
        "link_black_hole",
        RETRY,
        "phone",
        "silent for 6.1 s during loading (last command: GRAPH_COMPUTE), though its agent answers",
    ),
    "unreachable": (
        seen(
            "",
            None,
            replace(
                PHONE, link_state="lost", link_detail=SILENT, is_reachable=False, silent_s=8.24
            ),
            found=LOST,
            phase="ready",
        ),
        "worker_unreachable",
        RETRY,
        "phone",
        "last heard of 8.2 s ago, and the link to phone was lost during serving",
    ),
    "unreachable, without links": (
        seen(
            "",
            None,
            replace(PHONE, link_state="", is_reachable=False),
            found=errors.WorkerLost("phone: last heard of 30 s ago"),
        ),
        "worker_unreachable",
        RETRY,
        "phone",
        "phone does not answer",
    ),
    "unreachable, after an abort": (
        seen("7.0/worker_killed", ABRT, replace(PHONE, is_reachable=False)),
        "worker_unreachable",
        RETRY,
        "phone",
        "phone does not answer",
    ),
    "link": (
        seen("", None, replace(PHONE, link_state="lost", link_detail=CLOSED), found=LOST),
        "link_lost",
        RETRY,
        "phone",
        "the connection was closed (last command: HELLO)",
    ),
    "link refused": (
        seen(
            "",
            None,
            replace(PHONE, link_state="lost", link_code="link_refused", link_detail="phone: taken"),
            found=LOST,
        ),
        "link_refused",
        RETRY,
        "phone",
        "phone: taken",
    ),
    "hung up": (
        seen("7.0/killed_loading", ABRT, replace(PHONE, link_detail=HANGUP)),
        "link_lost",
        RETRY,
        "phone",
        "the rpc-server closed the connection",
    ),
    "hung up for want of memory": (
        seen("7.0/killed_loading", ABRT, of(PHONE, "metal/rpc-server-refused", link_detail=HANGUP)),
        "allocation_refused",
        SHARE,
        "phone",
        "phone refused memory (failed to allocate buffer, size =  9345.25 MiB)",
    ),
    "hung up on another version": (
        seen("7.0/v3_worker", ABRT, of(PHONE, "7.0/rpc-server-old_client")),
        "worker_incompatible",
        EXCLUDE,
        "phone",
        "phone does not understand",
    ),
    "hung up, and nobody knows who": (
        seen("7.0/worker_killed", ABRT, PHONE),
        "worker_lost",
        RETRY,
        "",
        "the connection to a worker broke",
    ),
    # -- found by our own watching
    "model replaced": (
        seen("", None, replace(PHONE, status=failed(KILL)), found=errors.ModelReplaced("m.gguf")),
        "model_replaced",
        RETRY,
        "",
        "m.gguf",
    ),
    "link process": (
        seen(
            "7.0/worker_killed",
            ABRT,
            replace(PHONE, link_state="lost", link_detail=SILENT),
            found=errors.LinkProcessEnded("the link process was killed by SIGKILL"),
        ),
        "link_process_ended",
        RETRY,
        "",
        "SIGKILL",
    ),
    "stalled load": (
        seen(
            "", None, PHONE, found=errors.LoadStalled("no progress for 60 s (worker phone waits)")
        ),
        "load_stalled",
        RETRY,
        "phone",
        "no progress for 60 s",
    ),
    "an agent's own error": (
        seen(
            "", None, PHONE, found=errors.AgentRefused("phone: every port is taken", "no_free_port")
        ),
        "no_free_port",
        RETRY,
        "phone",
        "every port is taken",
    ),
    "an error of a newer agent": (
        seen("", None, PHONE, found=errors.AgentRefused("phone: what is this", "of_next_year")),
        "agent_refused",
        RETRY,
        "phone",
        "what is this",
    ),
    "a device that cannot serve": (
        seen("", None, PHONE, found=errors.AgentRefused("phone: no programs", "engine_missing")),
        "engine_missing",
        EXCLUDE,
        "phone",
        "no programs",
    ),
    # -- llama-server ended, and says nothing of it
    "host out of memory": (
        seen("7.0/worker_killed", KILL, host_oom_kills=1, host_available_bytes=GIB // 4),
        "host_out_of_memory",
        SHARE,
        "",
        "the kernel of the main host killed llama-server for want of memory during loading; 256.0 "
        "MiB are available now",
    ),
    "host out of memory, and nobody saw its end": (
        seen("7.0/sigterm", None, host_oom_kills=1),
        "host_out_of_memory",
        SHARE,
        "",
        "the kernel of the main host",
    ),
    "killed": (
        seen("7.0/sigterm", KILL, host_oom_kills=0, phase="ready"),
        "engine_killed",
        RETRY,
        "",
        "somebody ended llama-server during serving: it was killed by SIGKILL, and memory was not",
    ),
    "killed, not counted": (
        seen("7.0/sigterm", KILL),
        "engine_killed",
        RETRY,
        "",
        "whether memory was short is not known",
    ),
    "killed, after a GPU had failed": (
        seen("metal/llama-server-timeout", KILL),
        "engine_killed",
        RETRY,
        "",
        "killed by SIGKILL",
    ),
    "asked": (seen("7.0/sigterm", 0), "engine_killed", RETRY, "", "ended with status 0"),
    "truncated while mapped": (
        seen("7.0/truncated_while_mapped", BUS, PHONE),
        "model_replaced",
        RETRY,
        "",
        "was cut short or replaced",
    ),
    "public address": (
        seen("", None, LAPTOP, found=agent_errors.PublicAddressRefused("laptop: 9.9.9.2")),
        "public_address_refused",
        GIVE_UP,
        "laptop",
        "9.9.9.2",
    ),
    "no engine": (
        seen("", None, found=agent_errors.EngineMissing("no llama-server on the main host")),
        "engine_missing",
        GIVE_UP,
        "",
        "on the main host",
    ),
    "wrong build": (seen("", ILL), "engine_unusable", GIVE_UP, "", "SIGILL"),
    "full disk": (
        replace(seen("", 1), log_tail=("E write failed: No space left on device",)),
        "disk_full",
        RETRY,
        "",
        "the disk of the main host is full",
    ),
    "crash of llama-server": (
        seen("7.0/sigterm", SEGV, PHONE),
        "engine_exited",
        RETRY,
        "",
        "llama-server was killed by SIGSEGV during loading",
    ),
    "crash of an old llama-server that served": (
        seen("3.6/segv_at_start", SEGV, PHONE, protocol="3.6.0", was_ready=True),
        "engine_exited",
        RETRY,
        "",
        "SIGSEGV",
    ),
    "nothing": (alone(seen("", 3)), "engine_exited", RETRY, "", "its last words: none"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_cause_has_its_code_action_device_and_sentence(name: str) -> None:
    evidence, code, action, device, part = CASES[name]
    found = diagnose(evidence)
    assert (found.code, found.action, found.device) == (code, action, device), found
    assert part in found.sentence
    by_name = {worker.name: worker.agent_id for worker in evidence.workers}
    assert found.agent_id == by_name.get(device, "")
    assert not re.search(r"[{}]who|[{}]line|[{}]size", found.text)
    assert_is_fit_to_show(found)


def assert_is_fit_to_show(found: Cause) -> None:
    assert found.code in DOCUMENTED
    assert found.sentence
    assert len(found.evidence) <= 8
    assert all(0 < len(line) <= 300 and "\n" not in line for line in found.evidence)
    assert len(set(found.evidence)) == len(found.evidence)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case[0].found is None])
def test_what_was_not_said_by_our_watching_has_a_remedy(name: str) -> None:
    assert diagnose(CASES[name][0]).remedy


# -- completeness ----------------------------------------------------------------------------------


def test_every_code_of_the_table_is_reached_by_a_case() -> None:
    reached = {code for _, code, _, _, _ in CASES.values()}
    assert {kind.code for kind in causes._ADVICE} - reached == set()


def test_every_rule_decides_a_case() -> None:
    def deciding(evidence: Evidence) -> diagnosis.Rule | None:
        return next((rule for rule in diagnosis._RULES if rule(evidence)), None)

    deciders = {deciding(evidence) for evidence, *_ in CASES.values()}
    assert [rule.__name__ for rule in diagnosis._RULES if rule not in deciders] == []
    assert None in deciders


def rows() -> Iterator[log_causes.LogCause]:
    yield from log_causes.ENGINE_CAUSES
    yield from log_causes.WORKER_CAUSES
    yield from log_causes.WORKER_REFUSALS


def test_every_row_fits_a_line_of_a_case() -> None:
    lines = [
        line
        for evidence, *_ in CASES.values()
        for log in (evidence.log_tail, *(worker.log_tail for worker in evidence.workers))
        for line in log
    ]
    unused = [row.pattern.pattern for row in rows() if not log_causes.first_hit([row], lines)]
    assert unused == []


def test_every_log_is_used() -> None:
    used = {evidence.log_tail for evidence, *_ in CASES.values()}
    used |= {w.log_tail for evidence, *_ in CASES.values() for w in evidence.workers}
    names = [str(path.relative_to(LOGS).with_suffix("")) for path in LOGS.rglob("*.log")]
    assert sorted(name for name in names if tail(name) not in used) == []


# -- evidence and remedies -------------------------------------------------------------------------


def test_the_line_that_decided_comes_first_without_time_and_path() -> None:
    found = diagnose(CASES["closed port"][0])
    assert found.evidence[0] == "llama-server: ggml-rpc.cpp: Failed to connect to 127.0.0.1:8113"
    found = diagnose(CASES["cut"][0])
    assert found.evidence[0] == (
        "llama-server: llama_model_load: error loading model: tensor 'output.weight' data is not "
        "within the file bounds, model is corrupted or incomplete"
    )


def test_a_worker_speaks_under_its_name() -> None:
    found = diagnose(CASES["GPU time-out"][0])
    assert found.evidence[0] == (
        "rpc-server of mac: error: Caused GPU Timeout Error "
        "(00000002:kIOGPUCommandBufferCallbackErrorTimeout)"
    )
    assert "rpc-server of mac: ggml_metal_synchronize: error: command buffer 1 failed" in " ".join(
        found.evidence
    )


def test_memory_of_a_killed_worker_is_shown() -> None:
    found = diagnose(CASES["OOM killer of a phone"][0])
    assert found.evidence[0] == ("kernel of phone: killed 1 process for want of memory since then")
    assert (
        "memory of phone: its rpc-server had up to 3.0 GiB, 512.0 MiB available now"
        in found.evidence
    )


def test_the_remedy_for_android_names_the_options() -> None:
    remedy = diagnose(CASES["Android"][0]).remedy
    for part in ("Disable child process restrictions", "adb shell settings put global", "battery"):
        assert part in remedy


@pytest.mark.parametrize(
    ("changes", "line", "hint"),
    [
        ({"battery_percent": 3.2}, "battery of phone: 3 % left", "charge it"),
        ({"temperature_c": 46.7}, "battery of phone: 47 °C", "let it cool"),
        ({"battery_percent": 5.0, "temperature_c": 43.0}, "", ""),
        ({"temperature_c": 71.0, "platform": "linux"}, "", ""),
        ({"battery_percent": None, "temperature_c": None}, "", ""),
    ],
)
def test_an_empty_or_hot_battery_is_told_of_a_device_that_is_gone(
    changes: dict[str, object], line: str, hint: str
) -> None:
    gone = replace(PHONE, is_reachable=False, link_state="lost", **changes)  # type: ignore[arg-type]
    found = diagnose(seen("", None, gone, found=LOST))
    assert [each for each in found.evidence if "battery" in each] == ([line] if line else [])
    assert found.remedy.endswith(hint)
    assert ("battery" in found.remedy) == bool(hint)


def test_several_devices_that_are_gone_at_once_point_at_the_main_host() -> None:
    gone = replace(PHONE, is_reachable=False, link_state="lost")
    both = replace(
        seen("", None, gone, found=LOST), workers=(replace(LAPTOP, is_reachable=False), gone)
    )
    assert "2 devices are gone at once" in diagnose(both).remedy
    assert "at once" not in diagnose(seen("", None, gone, found=LOST)).remedy


def test_a_process_that_waits_for_its_disk_is_told() -> None:
    stuck = replace(PHONE, status=status(process_state="D"))
    found = diagnose(seen("", None, stuck, found=errors.EngineHung("phone waits for 31 s")))
    assert (found.code, found.device) == ("engine_hung", "phone")
    assert "rpc-server of phone: process state D" in found.evidence
    assert "link to phone: serving (last command: GRAPH_COMPUTE, unanswered for 6.2 s)" in (
        found.evidence
    )


def test_a_long_line_is_cut() -> None:
    long = replace(alone(seen("", 1)), log_tail=("error loading model: " + "x" * 4000,))
    found = diagnose(long)
    assert_is_fit_to_show(found)
    assert len(found.sentence) < 500


def test_an_endpoint_decides_not_the_number_of_the_device() -> None:
    # The number in RPC0[...] counts per worker, so that every worker has an RPC0.
    lines = ("E llama_model_load: error loading model: unable to allocate RPC0[10.0.0.3:1] buffer",)
    second = replace(PHONE, endpoint="10.0.0.3:1")
    assert diagnose(replace(seen("", 1, second), log_tail=lines)).device == "phone"


def test_a_refusal_that_names_no_buffer_is_looked_up_at_the_workers() -> None:
    lines = ("llama_init_from_model: failed to allocate buffer for kv cache",)
    refusing = of(PHONE, "7.0/rpc-server-cache_refused")
    found = diagnose(replace(seen("", 1, refusing), log_tail=lines))
    assert (found.code, found.device) == ("cache_does_not_fit", "phone")


def test_chatter_of_a_server_that_serves_is_no_evidence() -> None:
    chatter = ("0.01.000.000 I slot update_slots: the user asked for an error, fail, abort",)
    found = diagnose(
        replace(alone(seen("", SEGV)), log_tail=(*chatter, "0.01.000.001 E bad thing failed"))
    )
    assert found.evidence == ("llama-server: bad thing failed",)


# -- errors without processes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "action"),
    [
        (errors.NoDevices("no device is ready; join one; now"), "no_devices", RETRY),
        (errors.InsufficientMemory("needs 40 GiB"), "insufficient_memory", GIVE_UP),
        (errors.ModelMissing("m.gguf"), "model_missing", GIVE_UP),
        (errors.AgentRefused("phone: taken", "port_in_use"), "port_in_use", RETRY),
        (errors.AgentRefused("phone: odd", "of_next_year"), "agent_refused", RETRY),
        (errors.WorkerIncompatible("phone speaks RPC 5"), "worker_incompatible", GIVE_UP),
        (errors.DeviceReturned("phone is back"), "device_returned", RETRY),
        (agent_errors.EngineMissing("no llama-server"), "engine_missing", GIVE_UP),
        (ProjectError("what"), "engine_exited", RETRY),
    ],
)
def test_an_error_without_processes_keeps_its_words(
    error: ProjectError, code: str, action: Action
) -> None:
    found = cause_of(error, phase="planning")
    assert (found.code, found.action, found.device) == (code, action, "")
    assert found.sentence == found.text == str(error)
    assert found.evidence == ("phase: planning",)


@pytest.mark.parametrize("code", sorted(causes._KINDS))
def test_every_error_is_a_cause(code: str) -> None:
    kind = causes._KINDS[code]
    error = kind.__new__(kind)
    error.args = ("words",)
    found = cause_of(error, phase="")
    assert found.code == code
    assert found.code in DOCUMENTED
    assert found.action is not Action.EXCLUDE, "no device is known"
    if issubclass(kind, errors.InputError):
        assert found.action is GIVE_UP


# -- whatever comes --------------------------------------------------------------------------------

ALL_LINES = sorted({line for path in LOGS.rglob("*.log") for line in path.read_text().splitlines()})
A_LOG = st.lists(st.one_of(st.sampled_from(ALL_LINES), st.text(max_size=40)), max_size=6).map(tuple)
A_STATUS = st.builds(
    RpcServerStatus,
    state=st.sampled_from(WorkerState),
    exit_status=st.none() | st.integers(-64, 3),
    error_code=st.sampled_from(["", "rpc_server_exited", "worker_taken", "of_next_year"]),
    detail=st.text(max_size=20),
    oom_kills=st.none() | st.integers(0, 2),
    process_state=st.sampled_from(["", *"RSDTtZ"]),
)
A_WORKER = st.builds(
    WorkerEvidence,
    agent_id=st.text(max_size=4),
    name=st.text(max_size=6),
    platform=st.sampled_from(["linux", "android", "macos", ""]),
    endpoint=st.sampled_from(["", "127.0.0.1:8112", "127.0.0.1:8113"]),
    is_reachable=st.booleans(),
    silent_s=st.floats(0, 1e6),
    restarted=st.booleans(),
    status=st.none() | A_STATUS,
    log_tail=A_LOG,
    link_state=st.sampled_from(["", "connecting", "serving", "done", "lost"]),
    link_code=st.sampled_from(["", "link_lost", "link_refused", "rpc_framing", "of_next_year"]),
    link_detail=st.sampled_from(["", SILENT, CLOSED, HANGUP]),
    waiting_s=st.floats(0, 1e6),
    rpc_protocol=st.sampled_from(["", "3.6.0", "7.0.0"]),
    temperature_c=st.none() | st.floats(-20, 90),
    battery_percent=st.none() | st.floats(0, 100),
    available_bytes=st.none() | st.integers(0, 1 << 40),
)
AN_ERROR = st.builds(
    lambda kind, text: kind(text),
    st.sampled_from(
        [
            errors.EngineHung,
            errors.LoadStalled,
            errors.WorkerLost,
            errors.WorkerIncompatible,
            errors.ModelReplaced,
            errors.DeviceReturned,
            errors.InsufficientMemory,
            agent_errors.LinkLost,
            agent_errors.PortInUse,
        ]
    ),
    st.text(max_size=30),
)
EVIDENCE = st.builds(
    Evidence,
    phase=st.sampled_from(["", "workers", "verify", "connect", "load", "first token", "ready"]),
    found=st.none() | AN_ERROR,
    exit_status=st.none() | st.integers(-64, 3),
    log_tail=A_LOG,
    process_state=st.sampled_from(["", *"RSDTtZ"]),
    host_oom_kills=st.none() | st.integers(0, 2),
    host_available_bytes=st.none() | st.integers(0, 1 << 40),
    rpc_protocol=st.sampled_from(["", "3.6.0", "5.1.0", "7.0.0"]),
    workers=st.lists(A_WORKER, max_size=3).map(tuple),
    was_ready=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(EVIDENCE)
def test_whatever_was_seen_there_is_a_cause_that_the_document_has(evidence: Evidence) -> None:
    found = diagnose(evidence)
    assert_is_fit_to_show(found)
    known = {(worker.agent_id, worker.name) for worker in evidence.workers}
    assert (found.agent_id, found.device) in {("", ""), *known}
    if found.action is Action.EXCLUDE:
        assert (found.agent_id, found.device) in known
