"""What the invented home remembers: launches, history, requests, keys, settings, logs."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

from agents.command import rpc_server_argv
from lab.page_home import (
    BUILD,
    KEY_FILE,
    KNOWN_FLAGS,
    LARGE,
    MAIN_HOST,
    MEDIUM,
    RPC_PROTOCOL,
    SMALL,
    VERSION,
    Home,
    deployment_id,
    engine,
)
from supervisor.api.settings_api import settings_view
from supervisor.core.callers import Scope
from supervisor.core.commands import llama_server_argv
from supervisor.core.entities import (
    Action,
    AgentId,
    Cause,
    EngineRecord,
    EventRecord,
    LaunchId,
    LaunchRecord,
    LinkView,
    MemorySample,
    Milestone,
    Plan,
    ProcessMemory,
    WorkerRecord,
)
from supervisor.core.keys import ApiKey
from supervisor.core.process_memory import host_memory, worker_memory
from supervisor.core.request_record import RequestRecord
from supervisor.errors import (
    LinkBlackHole,
    LoadStalled,
    WorkerOutOfMemory,
    WorkerUnreachable,
)
from supervisor.settings import load

NEAR_END_PORTS: Final = range(8199, 8100, -1)


def stamp(at: datetime) -> str:
    """As the supervisor writes times."""
    return at.isoformat(timespec="milliseconds")


# -- causes ------------------------------------------------------------------------------------

PHONE_LEFT: Final = Cause(
    code=WorkerUnreachable.code,
    sentence="pixel-8 does not answer during serving; it was last heard of 31.4 s ago, and the "
    "link to pixel-8 was lost while it waited for GRAPH_COMPUTE",
    evidence=(
        "link to pixel-8: silent for 5.0 s in phase serve; last command GRAPH_COMPUTE, 2.1 s ago",
        "pixel-8: battery 64 %, not charging, 37.0 C; Wi-Fi",
        "llama-server: ggml-rpc: failed to receive response from 127.0.0.1:8197",
    ),
    remedy="check that device, its Wi-Fi and the firewalls between both; it is left out until it "
    "answers",
    action=Action.RETRY,
    agent_id="a-pixel-8",
    device="pixel-8",
)
OUT_OF_MEMORY: Final = Cause(
    code=WorkerOutOfMemory.code,
    sentence="the kernel of old-phone killed its rpc-server for want of memory during loading; "
    "0.2 GiB are available now",
    evidence=(
        "kernel of old-phone: 1 process was killed for want of memory since it started",
        "rpc-server of old-phone: 0.9 GiB resident, planned 0.5 GiB; 0.2 GiB available",
        "rpc-server of old-phone: ended by SIGKILL (status -9)",
        "link to old-phone: closed in phase load after SET_TENSOR of 18.4 MiB",
        "old-phone: battery 18 %, not charging, 44.0 C",
        "llama-server: load_tensors: RPC2 model buffer size = 291.09 MiB",
    ),
    remedy="its share gets smaller; close other programs there, or add a device",
    action=Action.SMALLER_SHARE,
    agent_id="a-old-phone",
    device="old-phone",
)
STALLED: Final = Cause(
    code=LoadStalled.code,
    sentence="loading made no progress for 120 s (phase: load; mac-mini answers nothing; 61 % "
    "seen)",
    evidence=("link to mac-mini: 5.3 GiB of 8.7 GiB sent, then nothing for 120 s",),
    remedy="it is started anew; if it repeats, see the logs of the workers",
    agent_id="a-mac-mini",
    device="mac-mini",
)
BLACK_HOLE: Final = Cause(
    code=LinkBlackHole.code,
    sentence="the link to attic-pc was silent for 5.2 s, though its agent answers: one connection "
    "is dropped without a word, the other is not",
    evidence=("link to attic-pc: silent for 5.2 s in phase serve",),
    remedy="it is made anew; look at firewalls, Wi-Fi roaming and VPNs between both",
    agent_id="a-attic-pc",
    device="attic-pc",
)

# -- links and timelines -----------------------------------------------------------------------

STEPS: Final = ("planned", "workers ready", "verified", "connected", "loaded", "first token")


def timeline(*took_s: float) -> tuple[Milestone, ...]:
    """The milestones that were reached, by the time that each took."""
    at_s, found = 0.0, []
    for name, each_s in zip(STEPS, took_s, strict=False):
        at_s += each_s
        found.append(Milestone(name=name, at_s=round(at_s, 3), took_s=each_s))
    return tuple(found)


def worker_bytes(plan: Plan) -> dict[str, int]:
    """Bytes of weights by name of device."""
    found: dict[str, int] = {}
    for shard in plan.shards:
        found[shard.device] = found.get(shard.device, 0) + shard.weight_bytes
    return found


def links(
    plan: Plan, home: Home, *, parts: Sequence[float] = (), **changes: Any
) -> tuple[LinkView, ...]:
    """One link per worker; ``parts`` of the weights are there already, else all, and it serves."""
    found = []
    for index, (name, total) in enumerate(worker_bytes(plan).items()):
        kind, part = home.kind(name), parts[index] if parts else 1.0
        done, rate = int(total * part), int(kind.up_mb_per_s * 1e6 * 0.83)
        is_loading = part < 1.0
        loading = {
            "remaining_bytes": total - done,
            "bytes_per_s": rate,
            "eta_s": round((total - done) / rate, 1),
        }
        serving = {
            "wire_share": round(kind.rtt_ms / (kind.rtt_ms + 24), 3),
            "wire_s": 3.1,
            "compute_s": 61.5,
        }
        found.append(
            LinkView.model_validate(
                {
                    "device": name,
                    "state": "serving",
                    "phase": "load" if is_loading else "serve",
                    "round_trip_ms": kind.rtt_ms,
                    "weight_bytes": done,
                    "saved_bytes": done // 3 if index == 1 else 0,
                    "sent_bytes": int(done * 0.94),
                    "received_bytes": 912_384,
                    "last_command": "SET_TENSOR" if is_loading else "GRAPH_COMPUTE",
                    **(loading if is_loading else serving),
                    **changes,
                }
            )
        )
    return tuple(found)


# -- launches ----------------------------------------------------------------------------------


def record(number: int, name: str, plan: Plan, home: Home, at: datetime) -> LaunchRecord:
    """A launch that runs, with its exact commands."""
    endpoints: dict[AgentId, str] = {}
    workers = []
    ports = dict(zip(plan.agent_ids, NEAR_END_PORTS, strict=False))
    for agent_id in plan.agent_ids:
        shards = [shard for shard in plan.shards if shard.agent_id == agent_id]
        kind = home.kind(shards[0].device)
        endpoints[agent_id] = f"127.0.0.1:{ports[agent_id]}"
        devices = [shard.ggml_device for shard in shards]
        program = engine().rpc_server
        if kind.platform == "android":
            program = "/data/data/com.termux/files/usr/bin/ggml-rpc-server"
        workers.append(
            WorkerRecord(
                agent_id=agent_id,
                device=kind.name,
                host="127.0.0.1",
                port=ports[agent_id],
                link=f"{kind.address}:8103",
                address=kind.address,
                rpc_protocol=RPC_PROTOCOL,
                engine_build=BUILD,
                round_trip_ms=kind.rtt_ms,
                argv=tuple(rpc_server_argv(program, "127.0.0.1", 8110, kind.cores, devices)),
                environment={"GGML_NO_BACKTRACE": "1"},
            )
        )
    argv = llama_server_argv(
        engine().llama_server,
        plan,
        endpoints,
        port=8110,
        known=KNOWN_FLAGS,
        alias=name,
        key_file=KEY_FILE,
    )
    logs = "/home/ada/.local/share/supervisor/logs"
    return LaunchRecord(
        id=LaunchId(number),
        deployment=deployment_id(name),
        started_at=stamp(at),
        plan=plan,
        main_host=MAIN_HOST,
        engine=EngineRecord(
            path=engine().llama_server, version=VERSION, build=BUILD, rpc_protocol=RPC_PROTOCOL
        ),
        workers=tuple(workers),
        argv=tuple(argv),
        environment={"GGML_NO_BACKTRACE": "1", "LC_ALL": "C.UTF-8"},
        log_path=f"{logs}/llama-server-{number}.log",
        pid=20_000 + number,
        port=8110,
        timeline=timeline(0.09, 1.4, 0.6, 2.2, 84.5 + number % 7, 3.1),
        memory=(
            _measured(host_memory(plan)),
            *(_measured(worker_memory(plan, each)) for each in plan.agent_ids),
        ),
        links=links(plan, home),
        link_pid=19_000 + number,
        link_log_path=f"{logs}/link-{number}.log",
        outcome="ready",
    )


def _measured(memory: ProcessMemory) -> ProcessMemory:
    """It took a little less than predicted; what a GPU holds is not seen."""
    most = int(memory.predicted_bytes * (0.12 if memory.has_gpu else 0.94))
    sample = MemorySample(resident_bytes=most, peak_bytes=int(most * 1.05))
    return memory.model_copy(update={"measured_bytes": most, "ready": sample})


def ended(launch: LaunchRecord, outcome: str, after_s: float, cause: Cause | None) -> LaunchRecord:
    """The same, after its end."""
    at = datetime.fromisoformat(launch.started_at) + timedelta(seconds=after_s)
    name, number = launch.deployment, launch.id
    reason = cause.text if cause else "stopped by request"
    code = cause.code if cause else ""
    last = "ready" if outcome == "stopped" or after_s > 200 else "starting"
    goal = "stopping" if outcome == "stopped" else "backoff"
    changes = [("pending -> fetching", 0), ("fetching -> starting", 1)]
    changes += [("starting -> ready", 92)] if last == "ready" else []
    events = [
        EventRecord(
            id=number * 10 + index,
            at=stamp(datetime.fromisoformat(launch.started_at) + timedelta(seconds=each_s)),
            kind="deployment",
            subject=name,
            change=change,
            launch_id=number,
        )
        for index, (change, each_s) in enumerate(changes)
    ]
    events.append(
        EventRecord(
            id=number * 10 + len(events),
            at=stamp(at),
            kind="deployment",
            subject=name,
            change=f"{last} -> {goal}",
            launch_id=number,
            code=code,
            text=reason,
        )
    )
    failed = {"timeline": launch.timeline[:4]} if last == "starting" else {}
    update: dict[str, Any] = {
        "outcome": outcome,
        "ended_at": stamp(at),
        "error_code": code,
        "reason": reason,
        "cause": cause,
        "transitions": tuple(events),
        **failed,
    }
    return launch.model_copy(update=update)


USUAL: Final = ("attic-pc", "mac-mini", "pixel-8")


def launches(home: Home, now: datetime) -> list[LaunchRecord]:
    """Twelve, newest first; 40 and 38 differ in their context and in one worker."""
    usual = home.plan(LARGE, ctx_tokens=16_384, devices=USUAL, name="qwen-14b")
    fewer = ("attic-pc", "mac-mini", "old-phone")
    other = home.plan(LARGE, ctx_tokens=8192, devices=fewer, name="qwen-14b")
    medium = home.plan(MEDIUM, ctx_tokens=8192, name="llama-8b")
    small = home.plan(SMALL, ctx_tokens=4096, name="llama-3b")

    def made(number: int, name: str, plan: Plan, hours: float) -> LaunchRecord:
        return record(number, name, plan, home, now - timedelta(hours=hours))

    return [
        made(41, "qwen-14b", usual, 0.62),
        ended(made(40, "qwen-14b", usual, 3.1), "failed", 8612, PHONE_LEFT),
        ended(made(39, "llama-8b", medium, 5.0), "stopped", 4210, None),
        ended(made(38, "qwen-14b", other, 8.4), "failed", 47, OUT_OF_MEMORY),
        ended(made(37, "qwen-14b", other, 8.5), "failed", 51, OUT_OF_MEMORY),
        ended(made(36, "llama-3b", small, 26), "stopped", 61_200, None),
        ended(made(35, "llama-8b", medium, 28), "stopped", 5000, None),
        ended(made(34, "qwen-14b", usual, 31), "failed", 180, STALLED),
        ended(made(33, "qwen-14b", usual, 52), "stopped", 9400, None),
        ended(made(32, "llama-8b", medium, 75), "failed", 3021, BLACK_HOLE),
        ended(made(31, "llama-3b", small, 99), "stopped", 700, None),
        ended(made(30, "llama-3b", small, 100), "stopped", 1800, None),
    ]


# -- history, requests, keys -------------------------------------------------------------------


def history(records: Sequence[LaunchRecord], now: datetime) -> list[EventRecord]:
    """Everything that happened, oldest first."""
    rows = [event for each in reversed(records) for event in each.transitions]
    rows += [
        EventRecord(
            at=stamp(now - timedelta(hours=120)), kind="supervisor", subject=MAIN_HOST,
            change="started", text="supervisor 0.1.0",
        ),
        EventRecord(
            at=stamp(now - timedelta(minutes=38)), kind="device", subject="pixel-8",
            change="lost -> ready",
        ),
    ]  # fmt: skip
    rows.sort(key=lambda event: event.at)
    return [event.model_copy(update={"id": index}) for index, event in enumerate(rows, 1)]


def request(
    now: datetime, rng: Random, age_s: float, name: str = "qwen-14b", **changes: Any
) -> RequestRecord:
    """One that was answered so long ago."""
    prompt, tokens = rng.randrange(40, 2600), rng.randrange(12, 420)
    rate = round(6.6 + rng.random() * 0.8, 2)
    first_s = round(0.4 + prompt / 310, 3)
    known: dict[str, Any] = {
        "at": stamp(now - timedelta(seconds=age_s)),
        "deployment": name,
        "launch_id": 41,
        "path": "/v1/chat/completions",
        "caller": rng.choice(("local", "local", "open-webui", "alice")),
        "is_stream": True,
        "status": 200,
        "queue_s": 0.0,
        "first_token_s": first_s,
        "total_s": round(first_s + tokens / rate, 3),
        "prompt_tokens": prompt,
        "cached_tokens": prompt // 3,
        "generated_tokens": tokens,
        "tokens_per_s": rate,
    }
    return RequestRecord.model_validate({**known, **changes})


def requests(now: datetime, name: str = "qwen-14b", count: int = 14) -> list[RequestRecord]:
    """The newest first; one that its client left, one that was refused, one that was resumed."""
    rng = Random(7)
    found = [request(now, rng, 20 + 47 * index, name) for index in range(count)]
    odd: dict[int, dict[str, Any]] = {
        2: {"status": 499, "generated_tokens": 31, "tokens_per_s": 6.9},
        4: {"queue_s": 8.214},
        5: {"resumed": 1, "retries": 1},
        7: {
            "status": 503, "code": "waited_too_long", "queue_s": 300.0, "first_token_s": None,
            "total_s": 300.0, "prompt_tokens": None, "cached_tokens": None,
            "generated_tokens": None, "tokens_per_s": None,
        },
        9: {
            "path": "/v1/embeddings", "is_stream": False, "first_token_s": None, "total_s": 0.412,
            "generated_tokens": None, "tokens_per_s": None,
        },
    }  # fmt: skip
    return [each.model_copy(update=odd.get(index, {})) for index, each in enumerate(found[:count])]


def keys(now: datetime) -> list[ApiKey]:
    """Three people and programs."""
    return [
        ApiKey(
            name="alice", scopes=(Scope.INFERENCE, Scope.READ), shown="sk-7Qm2",
            created_at=stamp(now - timedelta(days=31)), requests=1204, prompt_tokens=812_034,
            generated_tokens=233_018, last_used_at=stamp(now - timedelta(minutes=3)),
        ),
        ApiKey(
            name="open-webui", scopes=(Scope.INFERENCE,), shown="sk-b91x", requests_per_minute=60,
            concurrent=4, wait_s=120, created_at=stamp(now - timedelta(days=12)), requests=310,
            prompt_tokens=99_120, generated_tokens=40_711,
            last_used_at=stamp(now - timedelta(hours=7)),
        ),
        ApiKey(
            name="backup-admin", scopes=(Scope.ADMIN,), shown="sk-Zz04",
            created_at=stamp(now - timedelta(days=2)),
        ),
    ]  # fmt: skip


def settings_of_home() -> dict[str, Any]:
    """What ``GET /api/settings`` answers, from the real settings."""
    folder = Path("/home/ada/.local/share/supervisor")
    found = load(
        'model_folders = ["/models"]\njoin_hours = 2\n',
        {"SUPERVISOR_LOG_FORMAT": "json"},
        default_folder=folder,
        path=Path("/home/ada/.config/supervisor/supervisor.toml"),
    )
    return settings_view(found).model_dump(mode="json")


# -- logs --------------------------------------------------------------------------------------


def log_lines(process: str, count: int = 220) -> Iterator[str]:
    """What a process might have written; a hostile line among them."""
    yield f"build: 1 ({BUILD}) with cc (Debian 12.2.0) for x86_64-linux-gnu"
    yield f"main: {process} begins"
    for number in range(3, count + 1):
        at = f"{number / 40:9.3f}"
        if number % 97 == 0:
            yield f"{at} W ggml-rpc: slow answer of 127.0.0.1:8198: 1{number % 10}4 ms"
        elif number == 100:
            yield f'{at} I prompt: <img src=x onerror="document.title=1"> & "quotes" \u202e end'
        elif number % 151 == 0:
            yield f"{at} E srv: request {number} was cancelled by its client"
        elif number % 5 == 0:
            yield (
                f"{at} I slot print_timing: id  0 | task {number} | prompt eval time = "
                f"{number * 1.7:.2f} ms /   {number % 90} tokens; eval time = {number * 9.1:.2f} ms"
            )
        else:
            yield f"{at} I load_tensors: layer {number % 48:3} assigned to device RPC{number % 3}"
