"""From the real last lines of llama-server to the error that names cause and remedy."""

import pytest

from agents.errors import EngineWithoutRpc, PortInUse, ProjectError
from supervisor.core.diagnosis import _CAUSES, explain_exit
from supervisor.errors import (
    EngineExited,
    EngineOutOfMemory,
    EngineRefusedFlag,
    EngineRefusedModel,
    ModelBroken,
    ModelMissing,
    WorkerIncompatible,
    WorkerLost,
    WorkerUnreachable,
)

RPC_CPP = "/build/llama.cpp/ggml/src/ggml-rpc/ggml-rpc.cpp"

# One row per cause at least; [run] lines were printed by commit 0c1e570, the others are from its
# source. The last part is what the message must quote.
LINES: list[tuple[str, type[ProjectError], str]] = [
    (
        'error while handling argument "--rpc": RPC not supported in this build',
        EngineWithoutRpc,
        "-DGGML_RPC=ON",
    ),
    ("error: invalid argument: --bogus", EngineRefusedFlag, "--bogus"),
    (
        'error while handling argument "--device": invalid device: RPC9',
        EngineRefusedFlag,
        "invalid device: RPC9",
    ),
    (
        f"{RPC_CPP}:550: RPC handshake failed for 10.0.0.2:8110",
        WorkerIncompatible,
        "10.0.0.2:8110",
    ),
    (
        "RPC server version mismatch: client 3.6.0 server 3.5.0",
        WorkerIncompatible,
        "server 3.5.0",
    ),
    (f"{RPC_CPP}:547: Failed to connect to 127.0.0.1:9", WorkerUnreachable, "127.0.0.1:9"),
    (
        "0.00.002.407 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, "
        "port: 18999",
        PortInUse,
        "port: 18999",
    ),
    (
        "ggml_gallocr_reserve_n_impl: failed to allocate RPC0[10.0.0.2:8110] buffer of size 999",
        EngineOutOfMemory,
        "RPC0[10.0.0.2:8110]",
    ),
    (
        "llama_model_load: error loading model: unable to allocate RPC0[10.0.0.2:8110] buffer",
        EngineOutOfMemory,
        "RPC0[10.0.0.2:8110]",
    ),
    (
        "llama_model_load: error loading model: unable to allocate CPU buffer",
        EngineOutOfMemory,
        "CPU",
    ),
    (
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv "
        "cache",
        EngineOutOfMemory,
        "--ctx",
    ),
    ("graph_reserve: failed to allocate compute pp buffers", EngineOutOfMemory, "--ctx"),
    (
        "E gguf_init_from_file: failed to open GGUF file 'missing.gguf' (No such file)",
        ModelMissing,
        "missing.gguf",
    ),
    (
        "E gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'",
        ModelBroken,
        "'hell'",
    ),
    (
        "E llama_model_load: error loading model: tensor 'blk.3.ffn_down.weight' data is not "
        "within the file bounds, model is corrupted or incomplete",
        ModelBroken,
        "truncated",
    ),
    (
        "E llama_model_load: error loading model: unknown model architecture: 'gemma9'",
        EngineRefusedModel,
        "'gemma9'",
    ),
    (
        "E llama_model_load: error loading model: missing tensor 'output_norm.weight'",
        ModelBroken,
        "'output_norm.weight'",
    ),
    (
        "E llama_model_load: error loading model: done_getting_tensors: wrong number of tensors; "
        "expected 10, got 9",
        ModelBroken,
        "expected 10, got 9",
    ),
    ("E srv  init: chat template parsing error: expected }", EngineRefusedModel, "expected }"),
    (
        f"{RPC_CPP}:566: Remote RPC server crashed or returned malformed response",
        WorkerLost,
        "worker's log",
    ),
    (
        "E llama_model_load: error loading model: error loading model hyperparameters: key not "
        "found",
        EngineRefusedModel,
        "key not found",
    ),
]

AFTERWARDS = [
    "E llama_model_load: error loading model: llama_model_loader: failed to load model from m.gguf",
    "E llama_model_load_from_file_impl: failed to load model",
    "E srv  llama_server: exiting due to model loading error",
    "",
]


@pytest.mark.parametrize(("line", "error", "quoted"), LINES)
def test_a_cause_is_named_with_its_remedy(
    line: str, error: type[ProjectError], quoted: str
) -> None:
    found = explain_exit("ended with status 1", ["0.00 I something", line], "loading")
    assert type(found) is error
    text = str(found)
    assert text.startswith("llama-server ended with status 1 during loading: ")
    assert quoted in text
    assert text.rpartition("; ")[2], "it says what to do"


@pytest.mark.parametrize(("line", "error", "quoted"), LINES)
def test_a_cause_comes_before_its_consequences(
    line: str, error: type[ProjectError], quoted: str
) -> None:
    found = explain_exit("ended with status 1", [line, *AFTERWARDS], "loading")
    assert type(found) is error
    assert quoted in str(found)


def test_every_known_cause_was_tried_with_a_real_line() -> None:
    tried = {
        pattern
        for line, _, _ in LINES
        for pattern, _, remedy in _CAUSES
        if str(explain_exit("x", [line], "x")).endswith(f"; {remedy}")
    }
    assert tried == {pattern for pattern, _, _ in _CAUSES}


def test_the_usage_that_follows_a_refused_value_does_not_hide_it() -> None:
    tail = [
        'error while handling argument "-c": stoi',
        "",
        "usage:",
        "-c,    --ctx-size N                     size of the prompt context",
        "",
        "to show complete usage, run with -h",
    ]
    found = explain_exit("ended with status 1", tail, "loading")
    assert isinstance(found, EngineRefusedFlag)
    assert '"-c": stoi' in str(found)


@pytest.mark.parametrize(
    ("tail", "quoted"),
    [
        (["first", "GGML_ASSERT(n > 0) failed", "", "  "], "GGML_ASSERT(n > 0) failed"),
        (["  spaces around  "], "spaces around"),
        ([], "nothing"),
        (["", ""], "nothing"),
    ],
)
def test_an_unknown_end_quotes_the_last_line(tail: list[str], quoted: str) -> None:
    found = explain_exit("was killed by SIGABRT", tail, "serving")
    assert type(found) is EngineExited
    assert str(found) == (
        f"llama-server was killed by SIGABRT during serving; its last line was: {quoted}; "
        "see its log"
    )


def test_a_worker_that_failed_to_connect_explains_the_memory_that_ran_out_without_it() -> None:
    # Builds of early 2026 go on without a worker they cannot reach, and then run out of memory.
    tail = [
        "Failed to connect to 10.0.0.2:8110",
        "llama_model_load: error loading model: unable to allocate CPU buffer",
    ]
    assert isinstance(explain_exit("ended with status 1", tail, "loading"), WorkerUnreachable)
