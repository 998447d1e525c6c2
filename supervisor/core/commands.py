"""The exact command lines: one table of flags, one function for everything about devices."""

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from agents.command import rpc_server_argv
from agents.contract import RPC_PORTS, DeviceFacts
from supervisor.core.entities import AgentId, LaunchRecord, Plan, WorkerRecord
from supervisor.core.rdma import NO_RDMA

LOOPBACK = "127.0.0.1"

BATCH_TOKENS = 2048
"""llama-server's own default for ``-b``: the most tokens it takes in one go."""

_FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")


@dataclass(frozen=True, slots=True)
class Flag:
    """One option we want, in the spelling of each generation, and why.

    ``spellings`` are tried in order; an engine whose ``--help`` has none of them goes without.
    """

    spellings: tuple[tuple[str, ...], ...]
    reason: str
    value: Literal["", "key_file", "cache_ram_mib", "ctx_checkpoints"] = ""
    """Which of ``Chosen`` follows it."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Values of options that differ from launch to launch; ``None``: without that option."""

    key_file: str | None = None
    cache_ram_mib: int | None = 0
    ctx_checkpoints: int | None = None


FLAGS = (
    Flag((("-fit", "off"), ("--fit", "off")), "we placed the layers; fit only reconnects workers"),
    Flag((("--no-warmup",),), "the first completion is our own proof of readiness"),
    Flag(
        (("--api-key-file",),),
        "only the gateway may ask it; a key itself among arguments could be read by everybody",
        "key_file",
    ),
    Flag(
        (("--cache-ram",),),
        "the prompt cache reads the KV cache back from the workers: only if they are local",
        "cache_ram_mib",
    ),
    Flag(
        (("--ctx-checkpoints",), ("--swa-checkpoints",)),
        "each copies state from the workers while the request waits: not over slow links",
        "ctx_checkpoints",
    ),
    Flag(
        (("--sse-ping-interval", "10"),),
        "slow devices need longer for a token than many clients wait for the next byte",
    ),
    Flag((("-lv", "4"), ("--verbosity", "4")), "level 4 prints buffer sizes and load steps"),
    Flag((("--load-mode", "mmap"),), "map the model file; --mmap and --no-mmap ended in 2026"),
    Flag((("--metrics",),), "token counters"),
    Flag((("--slots",),), "progress of busy slots; off by default in some builds"),
    Flag((("--no-webui",), ("--no-ui",)), "the dashboard is ours"),
)


def known_flags(help_text: str) -> frozenset[str]:
    """Every option that a program's ``--help`` mentions."""
    return frozenset(_FLAG.findall(help_text))


def chosen_flags(known: frozenset[str], chosen: Chosen = Chosen()) -> list[str]:
    """The flags of ``FLAGS`` that this engine has, each in its spelling."""
    words: list[str] = []
    values = asdict(chosen)
    for flag in FLAGS:
        spelling = next((each for each in flag.spellings if each[0] in known), None)
        if spelling is None or (flag.value and values[flag.value] is None):
            continue
        words += [*spelling, *([str(values[flag.value])] if flag.value else [])]
    return words


def device_arguments(plan: Plan, endpoints: Mapping[AgentId, str]) -> list[str]:
    """``--rpc``, ``--device``, ``-ngl``, ``--tensor-split`` and ``-ot``, which must never disagree.

    llama-server numbers remote devices ``RPC0, RPC1, ...`` in the order of ``--rpc`` and, per
    endpoint, in the order that the rpc-server offers them (its ``-d``); ``--tensor-split`` counts
    in the order of ``--device``. ``--rpc`` comes first because ``--device`` is resolved at once.
    Whole layers that sum to ``-ngl`` are placed exactly as written. Without any device,
    llama-server is alone, and must not take a GPU that nobody planned with.
    """
    if not plan.shards:
        return ["--device", "none", "-ngl", "0"]
    numbered = [
        (index, shard)
        for index, shard in enumerate(
            shard for agent in plan.agent_ids for shard in plan.shards if shard.agent_id == agent
        )
    ]
    names = {id(shard): f"RPC{index}" for index, shard in numbered}
    arguments = [
        "--rpc",
        ",".join(endpoints[agent] for agent in plan.agent_ids),
        "--device",
        ",".join(names[id(shard)] for shard in plan.shards),
        "-ngl",
        str(plan.gpu_layers),
        "--tensor-split",
        ",".join(str(shard.layers) for shard in plan.shards),
    ]
    if plan.tensor_overrides:
        arguments += ["-ot", ",".join(plan.tensor_overrides)]
    return arguments


def llama_server_argv(
    program: str,
    plan: Plan,
    endpoints: Mapping[AgentId, str],
    *,
    port: int,
    known: frozenset[str],
    alias: str,
    key_file: str | None = None,
) -> list[str]:
    """The complete llama-server command. It listens on loopback; the gateway is in front of it.

    Args:
        program: llama-server.
        plan: What it is to do.
        endpoints: Where it finds each worker.
        port: Its own.
        known: Options that this engine has.
        alias: What it calls the model.
        key_file: Holds the key that it asks for; ``None``: it answers everybody on this host.
    """
    chosen = Chosen(key_file, plan.cache_ram_mib, plan.ctx_checkpoints)
    return [
        program,
        "--model",
        plan.model.path,
        "--alias",
        alias,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *device_arguments(plan, endpoints),
        "-c",
        str(plan.ctx_tokens),
        "-np",
        str(plan.slots),
        "-ub",
        str(plan.ubatch),
        "-b",
        str(max(plan.ubatch, BATCH_TOKENS)),
        "-ctk",
        plan.kv_type,
        "-ctv",
        plan.kv_type,
        *(["--backend-sampling"] if plan.samples_on_device else []),
        *plan.option_words,
        *chosen_flags(known, chosen),
    ]


def planned_commands(
    plan: Plan,
    devices: Mapping[AgentId, DeviceFacts],
    llama_server: str,
    *,
    known: frozenset[str],
    alias: str,
    key_file: str | None = None,
    direct: bool = False,
) -> list[tuple[str, list[str]]]:
    """What a launch of this plan would run: (device, command), the main host's last, as ``""``.

    Unless ``direct``, llama-server finds the near ends of links beside it. The ports are the first
    that agents and main host try; a launch takes the next free ones.
    """
    ports: Counter[str] = Counter()
    endpoints: dict[AgentId, str] = {}
    commands: list[tuple[str, list[str]]] = []
    for agent_id in plan.agent_ids:
        shards = [shard for shard in plan.shards if shard.agent_id == agent_id]
        first, facts = shards[0], devices[agent_id]
        port = _next_port(ports, first.host)
        endpoints[agent_id] = f"{first.host}:{port}"
        host = first.host if direct else LOOPBACK
        program = facts.engine.rpc_server if facts.engine else "ggml-rpc-server"
        names = [shard.ggml_device for shard in shards]
        argv = rpc_server_argv(program, host, port, facts.threads or facts.cores, names)
        commands.append((first.device, argv))
    if not direct:
        tops = reversed(RPC_PORTS)
        endpoints = {
            agent: f"{LOOPBACK}:{port}" for agent, port in zip(endpoints, tops, strict=False)
        }
    port = _next_port(ports, LOOPBACK)
    own = llama_server_argv(
        llama_server, plan, endpoints, port=port, known=known, alias=alias, key_file=key_file
    )
    return [*commands, ("", own)]


def _next_port(taken: Counter[str], host: str) -> int:
    taken[host] += 1
    return RPC_PORTS[taken[host] - 1]


def shell_command(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """One line for a POSIX shell."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in (environment or {}).items()]
    words = [shlex.quote(word) for word in argv]
    return " ".join([*(["env", *assignments] if assignments else []), *words])


def shell_script(record: LaunchRecord, set_by_us: Mapping[str, str]) -> list[tuple[str, str]]:
    """Commands per host that repeat a launch by hand: (host, command), workers first.

    Without the links: every rpc-server listens on its host's own address, open to its network.
    """
    tcp_only = {n: v for n, v in record.environment.items() if n in NO_RDMA}
    set_by_us = {**set_by_us, **tcp_only}
    workers = [(w.device, shell_command(_by_hand(w), set_by_us)) for w in record.workers]
    direct = {w.endpoint: _direct_endpoint(w) for w in record.workers}
    argv = list(record.argv)
    if "--rpc" in argv:
        at = argv.index("--rpc") + 1
        argv[at] = ",".join(direct.get(each, each) for each in argv[at].split(","))
    return [*workers, (record.main_host, shell_command(argv, set_by_us))]


def _by_hand(worker: WorkerRecord) -> list[str]:
    argv = list(worker.argv)
    if worker.link:
        argv[argv.index("-H") + 1] = worker.address
    return argv


def _direct_endpoint(worker: WorkerRecord) -> str:
    if not worker.link:
        return worker.endpoint
    return f"{worker.address}:{worker.argv[worker.argv.index('-p') + 1]}"
