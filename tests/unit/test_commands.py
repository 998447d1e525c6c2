"""The exact command lines, for one and several devices per worker and for engines of any age."""

import shlex
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.contract import DeviceFacts, EngineFacts
from supervisor.core.commands import (
    FLAGS,
    chosen_flags,
    device_arguments,
    known_flags,
    llama_server_argv,
    planned_commands,
    shell_command,
    shell_script,
)
from supervisor.core.entities import (
    AgentId,
    DeploymentId,
    EngineRecord,
    HostShare,
    LaunchId,
    LaunchRecord,
    ModelFacts,
    Plan,
    Shard,
    WorkerRecord,
)

# Shortened --help of 0.5.0-dev (2026-10).
MODERN_HELP = """\
-c,    --ctx-size N                     size of the prompt context (default: 0, 0 = from model)
-lm,   --load-mode MODE                 model loading mode (default: auto)
-fit,  --fit [on|off]                   whether to adjust unset arguments to fit in device memory
-fitc, --fit-ctx N                      minimum ctx size that can be set by --fit option
-lv,   --verbosity, --log-verbosity N   set the verbosity threshold
-ctxcp, --ctx-checkpoints, --swa-checkpoints N
                                        max number of context checkpoints per slot (default: 32)
-cram, --cache-ram N                    set the maximum cache size in MiB (default: 8192)
--api-key-file FNAME                    path to file containing API keys (default: none)
--sse-ping-interval N                   server SSE ping interval in seconds (default: 30)
--warmup, --no-warmup                   whether to perform warmup with an empty run
--ui,  --webui, --no-ui, --no-webui     whether to enable the Web UI (default: enabled)
--metrics                               enable prometheus compatible metrics endpoint
--slots, --no-slots                     expose slots monitoring endpoint (default: enabled)
"""

# And of a build from before --fit and --cache-ram (mid 2025).
OLD_HELP = """\
-c,    --ctx-size N                     size of the prompt context (default: 4096)
--mlock                                 force system to keep model in RAM
--no-mmap                               do not memory-map model (slower load)
-lv,   --verbosity, --log-verbosity N   Set the verbosity threshold
--no-warmup                             skip warming up the model with an empty run
--metrics                               enable prometheus compatible metrics endpoint
--slots                                 enable slots monitoring endpoint (default: disabled)
--no-webui                              Disable the Web UI (default: enabled)
"""

MODERN_FLAGS = (
    "-fit off --no-warmup --cache-ram 0 --sse-ping-interval 10 -lv 4 --load-mode mmap --metrics"
    " --slots --no-webui"
)
OLD_FLAGS = "--no-warmup -lv 4 --metrics --slots --no-webui"

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
MODEL = ModelFacts(path="/m 1.gguf", name="m", architecture="llama", block_count=8, size_bytes=1)


def plan(*shards: tuple[str, str, int]) -> Plan:
    """A plan of (agent, ggml device, layers)."""
    made = tuple(
        Shard(agent_id=AgentId(a), device=a, ggml_device=g, host=f"10.0.0.{i}", layers=n)
        for i, (a, g, n) in enumerate(shards)
    )
    return Plan(model=MODEL, ctx_tokens=4096, slots=2, shards=made)


def endpoints(*agents: str) -> dict[AgentId, str]:
    return {AgentId(a): f"10.0.0.{i}:8110" for i, a in enumerate(agents)}


@pytest.mark.parametrize(
    ("shards", "rpc", "device", "split"),
    [
        ([("a", "CPU", 9)], "10.0.0.0:8110", "RPC0", "9"),
        (
            [("a", "CPU", 5), ("b", "CPU", 4)],
            "10.0.0.0:8110,10.0.0.1:8110",
            "RPC0,RPC1",
            "5,4",
        ),
        (
            [("a", "CUDA0", 3), ("a", "CUDA1", 3), ("b", "MTL0", 3)],
            "10.0.0.0:8110,10.0.0.1:8110",
            "RPC0,RPC1,RPC2",
            "3,3,3",
        ),
        # Shards of one worker need not be neighbours: numbers follow --rpc, the order the plan.
        (
            [("a", "CUDA0", 1), ("b", "CPU", 2), ("a", "CUDA1", 6)],
            "10.0.0.0:8110,10.0.0.1:8110",
            "RPC0,RPC2,RPC1",
            "1,2,6",
        ),
        (
            [("b", "CPU", 1), ("a", "CUDA0", 2), ("c", "CPU", 3), ("a", "CUDA1", 2), ("b", "X", 1)],
            "10.0.0.1:8110,10.0.0.0:8110,10.0.0.2:8110",
            "RPC0,RPC2,RPC4,RPC3,RPC1",
            "1,2,3,2,1",
        ),
        # Equal shards must still be told apart.
        ([("a", "X", 4), ("a", "X", 5)], "10.0.0.0:8110", "RPC0,RPC1", "4,5"),
    ],
)
def test_rpc_device_and_split_agree(
    shards: list[tuple[str, str, int]], rpc: str, device: str, split: str
) -> None:
    assert device_arguments(plan(*shards), endpoints("a", "b", "c")) == [
        *("--rpc", rpc),
        *("--device", device),
        *("-ngl", "9"),
        *("--tensor-split", split),
    ]


def test_the_whole_command_is_what_it_should_be() -> None:
    argv = llama_server_argv(
        "/opt/llama-server",
        plan(("a", "CPU", 9)),
        endpoints("a"),
        port=9000,
        known=known_flags(MODERN_HELP),
        alias="m",
    )
    assert shlex.join(argv) == (
        "/opt/llama-server --model '/m 1.gguf' --alias m --host 127.0.0.1 --port 9000 "
        "--rpc 10.0.0.0:8110 --device RPC0 -ngl 9 --tensor-split 9 "
        "-c 4096 -np 2 -ub 512 -b 2048 -ctk f16 -ctv f16 " + MODERN_FLAGS
    )


def test_what_the_plan_decided_is_in_the_command() -> None:
    decided = {
        "kv_type": "q8_0",
        "ubatch": 4096,
        "host": HostShare(layers=3),
        "tensor_overrides": (r"^output\.weight=CPU",),
        "samples_on_device": True,
    }
    made = plan(("a", "CPU", 2), ("b", "CPU", 4)).model_copy(update=decided)
    argv = llama_server_argv("s", made, endpoints("a", "b"), port=1, known=frozenset(), alias="m")
    assert " -ngl 6 --tensor-split 2,4 -ot " in shlex.join(argv)
    assert argv[argv.index("-ot") + 1] == r"^output\.weight=CPU"
    assert argv[argv.index("-ub") + 1] == argv[argv.index("-b") + 1] == "4096"
    assert argv[argv.index("-ctk") + 1] == argv[argv.index("-ctv") + 1] == "q8_0"
    assert "--backend-sampling" in argv


def test_what_is_kept_of_conversations_follows_the_plan_and_the_key_is_in_its_file() -> None:
    made = plan().model_copy(update={"cache_ram_mib": 4096, "ctx_checkpoints": 0})
    known = known_flags(MODERN_HELP)
    argv = llama_server_argv("s", made, {}, port=1, known=known, alias="m", key_file="/d/e key")
    said = shlex.join(argv)
    assert " --api-key-file '/d/e key' --cache-ram 4096 --ctx-checkpoints 0 --sse-ping" in said
    older = frozenset({"--swa-checkpoints"})
    argv = llama_server_argv("s", made, {}, port=1, known=older, alias="m", key_file="/d/key")
    assert argv[-2:] == ["--swa-checkpoints", "0"], "the rest it does not know"
    unknown = known_flags(OLD_HELP)
    argv = llama_server_argv("s", made, {}, port=1, known=unknown, alias="m", key_file="/d/key")
    assert "/d/key" not in argv
    assert "0" not in argv[argv.index("-ctv") :]


def test_the_main_host_alone_takes_no_device() -> None:
    assert device_arguments(plan(), {}) == ["--device", "none", "-ngl", "0"]


def test_a_planned_launch_shows_the_commands_of_all_hosts() -> None:
    made = plan(("a", "CPU", 4), ("b", "CUDA0", 3), ("b", "CUDA1", 2))
    engine = EngineFacts("/opt", "PATH", rpc_server="/opt/ggml-rpc-server")
    facts = {
        AgentId(name): DeviceFacts(name, name, "linux", cores=8, threads=6, engine=engine)
        for name in ("a", "b")
    }
    commands = planned_commands(
        made,
        facts,
        "llama-server",
        known=frozenset({"--api-key-file"}),
        alias="m",
        key_file="/d/engine.key",
        direct=True,
    )
    assert [where for where, _ in commands] == ["a", "b", ""]
    assert shlex.join(commands[0][1]) == "/opt/ggml-rpc-server -H 10.0.0.0 -p 8110 -t 6 -d CPU"
    assert commands[1][1][-1] == "CUDA0,CUDA1"
    own = commands[2][1]
    assert own[own.index("--rpc") + 1] == "10.0.0.0:8110,10.0.0.1:8110"
    assert own[-2:] == ["--api-key-file", "/d/engine.key"]


def test_with_links_every_rpc_server_listens_on_loopback_only() -> None:
    made = plan(("a", "CPU", 4), ("b", "CPU", 5))
    facts = {AgentId(name): DeviceFacts(name, name, "linux", threads=2) for name in ("a", "b")}
    commands = planned_commands(made, facts, "llama-server", known=frozenset(), alias="m")
    assert [argv[argv.index("-H") + 1] for _, argv in commands[:2]] == ["127.0.0.1"] * 2
    own = commands[2][1]
    assert own[own.index("--rpc") + 1] == "127.0.0.1:8199,127.0.0.1:8198"
    assert own[own.index("--port") + 1] == "8110"


def test_planned_rpc_servers_on_one_host_have_different_ports() -> None:
    made = plan(("a", "CPU", 4), ("b", "CPU", 5))
    together = tuple(shard.model_copy(update={"host": "127.0.0.1"}) for shard in made.shards)
    facts = {AgentId(name): DeviceFacts(name, name, "linux") for name in ("a", "b")}
    made = made.model_copy(update={"shards": together})
    commands = planned_commands(made, facts, "llama-server", known=frozenset(), alias="m")
    ports = [
        argv[argv.index(flag) + 1]
        for flag, (_, argv) in zip(("-p", "-p", "--port"), commands, strict=True)
    ]
    assert ports == ["8110", "8111", "8112"], "near ends have those at the other end"


@pytest.mark.parametrize(
    ("help_text", "expected"),
    [
        (MODERN_HELP, MODERN_FLAGS),
        (OLD_HELP, OLD_FLAGS),
        (
            "--fit [on|off]  adjust\n--no-ui  no page\n--verbosity N",
            "--fit off --verbosity 4 --no-ui",
        ),
        ("", ""),
        ("usage: llama-server [options]", ""),
    ],
)
def test_each_generation_gets_the_flags_it_knows(help_text: str, expected: str) -> None:
    assert chosen_flags(known_flags(help_text)) == expected.split()


def test_no_flag_is_wanted_twice_and_each_has_a_reason() -> None:
    first_words = [words[0] for flag in FLAGS for words in flag.spellings]
    assert len(first_words) == len(set(first_words))
    assert all(flag.reason for flag in FLAGS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-c,    --ctx-size N", {"-c", "--ctx-size"}),
        ("--ui, --webui, --no-ui", {"--ui", "--webui", "--no-ui"}),
        ("(see `--mmap`) [--slots|--no-slots]", {"--mmap", "--slots", "--no-slots"}),
        ("a well-known and time-out 3-1 -1 --", set()),
        ("--fit-ctx N", {"--fit-ctx"}),
    ],
)
def test_options_are_read_from_a_help_text(text: str, expected: set[str]) -> None:
    assert known_flags(text) == expected


@given(argv=st.lists(TEXTS, min_size=1), values=st.lists(TEXTS, max_size=3))
def test_a_shell_reads_back_what_we_quoted(argv: list[str], values: list[str]) -> None:
    environment = {f"NAME_{i}": value for i, value in enumerate(values)}
    words = shlex.split(shell_command(argv, environment))
    assignments = [f"{name}={value}" for name, value in environment.items()]
    assert words == [*(["env", *assignments] if assignments else []), *argv]


def recorded(*workers: WorkerRecord, argv: tuple[str, ...]) -> LaunchRecord:
    return LaunchRecord(
        id=LaunchId(1),
        deployment=DeploymentId("m"),
        started_at="",
        plan=plan(("a", "CPU", 4), ("b", "CPU", 5)),
        main_host="desk",
        engine=EngineRecord(path="x", version="", build="", rpc_protocol=""),
        workers=workers,
        argv=argv,
    )


def reached(
    name: str, host: str, port: int, argv: str, *, link: str = "", address: str = ""
) -> WorkerRecord:
    return WorkerRecord(
        agent_id=AgentId(name),
        device=name,
        host=host,
        port=port,
        link=link,
        address=address,
        rpc_protocol="7.0.0",
        engine_build="x",
        round_trip_ms=1.0,
        argv=tuple(argv.split()),
        environment={},
    )


def test_a_script_has_one_command_per_host_workers_first() -> None:
    workers = [reached(name, "10.0.0.1", 8110, "rpc-server -H 10.0.0.1") for name in ("a", "b")]
    record = recorded(*workers, argv=("llama-server", "--model", "/m 1.gguf"))
    script = shell_script(record, {"A": "1 2"})
    assert [host for host, _ in script] == ["a", "b", "desk"]
    assert script[0][1] == "env A='1 2' rpc-server -H 10.0.0.1"
    assert script[-1][1] == "env A='1 2' llama-server --model '/m 1.gguf'"
    assert all(before[1] != "" != after[1] for before, after in pairwise(script))


def test_a_launch_over_links_is_repeated_by_hand_without_them() -> None:
    """Nobody has links by hand, so llama-server must find the rpc-servers themselves."""
    rpc = "rpc-server -H 127.0.0.1 -p 8110 -t 4"
    record = recorded(
        reached("a", "127.0.0.1", 8120, rpc, link="10.0.0.1:8103", address="10.0.0.1"),
        # Its link goes through a tunnel; its rpc-server is where the device itself is.
        reached("b", "127.0.0.1", 8121, rpc, link="127.0.0.1:9000", address="10.0.0.2"),
        argv=("llama-server", "--rpc", "127.0.0.1:8120,127.0.0.1:8121", "--port", "8122"),
    )
    assert shell_script(record, {}) == [
        ("a", "rpc-server -H 10.0.0.1 -p 8110 -t 4"),
        ("b", "rpc-server -H 10.0.0.2 -p 8110 -t 4"),
        ("desk", "llama-server --rpc 10.0.0.1:8110,10.0.0.2:8110 --port 8122"),
    ]
    assert record.argv[2].startswith("127.0.0.1:8120"), "the record stays what it was"


def test_a_direct_launch_is_repeated_as_it_was() -> None:
    record = recorded(
        reached("a", "10.0.0.1", 8110, "rpc-server -H 10.0.0.1 -p 8110"),
        argv=("llama-server", "--rpc", "10.0.0.1:8110"),
    )
    assert [command for _, command in shell_script(record, {})] == [
        "rpc-server -H 10.0.0.1 -p 8110",
        "llama-server --rpc 10.0.0.1:8110",
    ]


def test_a_launch_without_workers_is_one_command() -> None:
    record = recorded(argv=("llama-server", "--device", "none"))
    assert shell_script(record, {}) == [("desk", "llama-server --device none")]
