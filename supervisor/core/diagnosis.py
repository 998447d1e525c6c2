"""From an exit and the end of a log to one error that names the cause and the remedy."""

import re
from collections.abc import Sequence

from agents.errors import EngineWithoutRpc, PortInUse, ProjectError
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

# Match on the text, never on the source line number or path: both move with every build.
# The first pattern that is found anywhere in the tail wins, so causes come before consequences.
_CAUSES: tuple[tuple[str, type[ProjectError], str], ...] = (
    (r"RPC not supported in this build", EngineWithoutRpc, "rebuild llama.cpp with -DGGML_RPC=ON"),
    (r"error: invalid argument: \S+", EngineRefusedFlag, "this build lacks the option; update it"),
    (r"error while handling argument .*", EngineRefusedFlag, "this build wants another value"),
    (r"RPC handshake failed for (?P<who>\S+)", WorkerIncompatible, "install one build everywhere"),
    (r"RPC server version mismatch.*", WorkerIncompatible, "install one build everywhere"),
    (r"Failed to connect to (?P<who>\S+)", WorkerUnreachable, "check that device and its network"),
    (r"couldn't bind HTTP server socket.*", PortInUse, "stop the other program on that port"),
    (
        r"failed to allocate \S*\[(?P<who>[^\]]+)\] buffer.*|unable to allocate \S+ buffer.*",
        EngineOutOfMemory,
        "give that device fewer layers, or lower the context",
    ),
    (
        r"failed to allocate buffer for kv cache.*|failed to allocate compute \w+ buffers.*",
        EngineOutOfMemory,
        "lower the context (--ctx)",
    ),
    (r"failed to open GGUF file.*", ModelMissing, "check the path"),
    (r"invalid magic characters.*", ModelBroken, "it is not a GGUF file; download it again"),
    (r"is not within the file bounds.*", ModelBroken, "it is truncated; download it again"),
    (r"unknown model architecture: \S+", EngineRefusedModel, "update llama.cpp"),
    (r"missing tensor '[^']+'|wrong number of tensors.*", ModelBroken, "download it again"),
    (r"chat template parsing error.*", EngineRefusedModel, "the model's chat template is broken"),
    (
        r"Remote RPC server crashed or returned malformed response",
        WorkerLost,
        "a worker died or its connection broke; see the worker's log",
    ),
    (r"error loading model.*", EngineRefusedModel, "see the log"),
)


def explain_exit(how: str, log_tail: Sequence[str], phase: str) -> ProjectError:
    """The error for a llama-server that ended by itself.

    Args:
        how: ``ended with status 1`` or ``was killed by SIGABRT``.
        log_tail: Its last lines.
        phase: What it was doing.
    """
    text = "\n".join(log_tail)
    for pattern, error, remedy in _CAUSES:
        if match := re.search(pattern, text):
            return error(f"llama-server {how} during {phase}: {match[0].strip()}; {remedy}")
    last = next((line.strip() for line in reversed(log_tail) if line.strip()), "nothing")
    return EngineExited(
        f"llama-server {how} during {phase}; its last line was: {last}; see its log"
    )
