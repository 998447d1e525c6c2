"""What lines of llama-server and rpc-server mean: one table for each, and how lines are read.

The same table serves every generation of the engine (b7527 with RPC 3.6 to RPC 7.0): text is
matched, never a line's time, level, source file or number, which move with every build.

Source:
    llama.cpp ``common/arg.cpp``, ``ggml/src/ggml-rpc``, ``ggml/src/gguf.cpp``,
    ``ggml/src/ggml-metal``, ``src/llama-model-loader.cpp``, ``tools/server``.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agents.errors import (
    DiskFull,
    EngineWithoutRpc,
    LocalNetworkDenied,
    PortInUse,
    ProjectError,
)
from supervisor.errors import (
    AllocationRefused,
    ArchitectureUnsupported,
    BadSplit,
    CacheDoesNotFit,
    ChatTemplateBroken,
    EngineRefusedFlag,
    EngineRefusedModel,
    GpuOutOfMemory,
    GpuTimeout,
    ModelBroken,
    ModelMissing,
    WorkerIncompatible,
    WorkerUnreachable,
)

QUOTED_CHARACTERS: Final = 300
_READ_CHARACTERS: Final = 2000
"""Of a line; no engine says what matters later than that."""

HUNG_UP: Final = "Remote RPC server crashed or returned malformed response"
"""A worker died, closed the connection, or answered with something else; never which one."""


@dataclass(frozen=True, slots=True)
class LogCause:
    """A line and what it means.

    ``what`` continues "llama-server ended with status 1 during loading: ". In it ``{who}`` is the
    worker or the main host, ``{size}`` a number of bytes, ``{line}`` the matched text. Groups of
    the pattern say whom the line is about: ``who`` (an endpoint), or ``buffer`` (where it is).
    """

    pattern: re.Pattern[str]
    error: type[ProjectError]
    what: str
    remedy: str | None = None
    """If it is not the usual one of that error."""


def _row(pattern: str, error: type[ProjectError], what: str, remedy: str | None = None) -> LogCause:
    return LogCause(re.compile(pattern), error, what, remedy)


GPU_CAUSES: Final = (
    _row(
        r"kIO(?:GPU|Accel)CommandBufferCallbackError(?:Timeout|ImpactingInteractivity)"
        r"|the launch timed out and was terminated",
        GpuTimeout,
        "work on the GPU of {who} took so long that the system ended it",
    ),
    _row(
        r"kIO(?:GPU|Accel)CommandBufferCallbackErrorOutOfMemory"
        r"|CUDA error: out of memory|vk::\S+: ErrorOutOfDeviceMemory",
        GpuOutOfMemory,
        "the GPU of {who} ran out of memory while it computed",
    ),
)
"""From whichever program has that GPU."""

_UNREACHED: Final = _row(
    r"Failed to connect to (?P<who>[^\s,]+)",
    WorkerUnreachable,
    "it could not connect to {who}",
)

ON_MACS: Final = (
    _row(
        r"(?:Failed to connect to (?P<who>[^\s,]+?):?[\s,].*)?No route to host",
        LocalNetworkDenied,
        "macOS keeps it from {who}, which is in its own network ({line})",
    ),
)
"""From a llama-server on a Mac, before all others: elsewhere such a route is really missing."""

LEFT_TO_THE_HOST: Final = (_UNREACHED,)
"""Builds of early 2026 go on without a worker, and need the memory for its layers themselves."""

# The first pattern that is found anywhere in the tail wins, so causes come before consequences.
ENGINE_CAUSES: Final = (
    _row(
        r"RPC not supported in this build|error: (?:invalid|unknown) argument: --rpc",
        EngineWithoutRpc,
        "this llama-server was built without RPC",
    ),
    _row(
        r"RPC handshake failed for (?P<who>[^\s,]+)",
        WorkerIncompatible,
        "{who} speaks another RPC version",
    ),
    _row(
        r"(?<!WARNING: )RPC server version mismatch.*",
        WorkerIncompatible,
        "{who} speaks another RPC version ({line})",
    ),
    _UNREACHED,
    _row(
        r"error: the supplied chat template is not supported.*|chat template parsing error.*",
        ChatTemplateBroken,
        "it cannot read the chat template of the model ({line})",
    ),
    _row(
        r"failed to load multimodal model.*",
        EngineRefusedFlag,
        "it cannot use the projector ({line})",
        "give the projector that was made for this model (--mmproj FILE), or none (--mmproj '')",
    ),
    _row(
        r"failed to load lora adapter.*",
        EngineRefusedFlag,
        "it cannot use the adapter ({line})",
        "give an adapter that was made for this model, or launch without it",
    ),
    _row(
        r"error while handling argument .*|failed to parse grammar.*",
        EngineRefusedFlag,
        "it cannot read the value of an option ({line})",
        "correct that option of the launch, or of the model's settings; if it is none of yours,"
        " update llama.cpp to one recent build on every device",
    ),
    _row(
        r"error: (?:invalid|unknown) argument: \S+|Failed to parse endpoint.*",
        EngineRefusedFlag,
        "this build does not take an option ({line})",
    ),
    *GPU_CAUSES,
    _row(
        r"couldn't bind HTTP server socket.*",
        PortInUse,
        "another program took its port ({line})",
    ),
    _row(
        r"failed to allocate buffer for (?:kv|rs) cache.*",
        CacheDoesNotFit,
        "{who} refused {size} for the cache of the whole context",
    ),
    _row(
        r"failed to allocate compute (?:\w+ )?buffers.*",
        AllocationRefused,
        "{who} refused {size} for computation",
    ),
    _row(
        r"unable to allocate (?P<buffer>\S+) buffer.*",
        AllocationRefused,
        "{who} refused {size} for weights",
    ),
    _row(
        r"mmap failed: Cannot allocate memory|std::bad_alloc",
        AllocationRefused,
        "{who} refused it memory ({line})",
    ),
    _row(r"No space left on device.*", DiskFull, "the disk of the main host is full"),
    _row(
        r"failed to open GGUF file.*|failed to open \S+: (?:No such file|Permission denied).*",
        ModelMissing,
        "it cannot read the model file ({line})",
    ),
    _row(
        r"this GGUF file is version.*|has invalid ggml type.*",
        EngineRefusedModel,
        "this build does not know what the model file has in it ({line})",
    ),
    _row(
        r"invalid magic characters.*|failed to read magic|failed to read header",
        ModelBroken,
        "the model file is no GGUF file ({line})",
    ),
    _row(
        r"(?:tensor '[^']*' data )?is not within the file bounds.*"
        r"|failed to read (?:key-value pairs|tensor info)|unexpectedly reached end of file"
        r"|failed to load GGUF split from.*",
        ModelBroken,
        "the model file ends too early ({line})",
    ),
    _row(
        r"missing tensor .*|tensor '[^']*' not found|wrong number of tensors.*|corrupted model:.*"
        r"|tensor '[^']*' has invalid data|found tensors with invalid data|tensor '[^']*' has wrong"
        r" shape.*|invalid model: tensor.*|gguf_init_from_\w+: (?:\w+:)? ?(?:duplicate|key ).*",
        ModelBroken,
        "the model file is damaged, or its conversion is not complete ({line})",
        "download it again, or use another conversion",
    ),
    _row(
        r"unknown model architecture: \S+",
        ArchitectureUnsupported,
        "this build does not know such models ({line})",
    ),
    _row(
        r"GGML_SCHED_MAX_BACKENDS",
        BadSplit,
        "that is more devices than llama.cpp can use at once",
    ),
    _row(r"error loading model.*", EngineRefusedModel, "it cannot use the model ({line})"),
)
"""From a llama-server that ended by itself."""

WORKER_CAUSES: Final = (
    *GPU_CAUSES,
    _row(r"No space left on device.*", DiskFull, "the disk of {who} is full"),
    _row(r"Failed to create server socket", PortInUse, "another program took its port on {who}"),
    _row(
        r"error: unknown argument:.*|error: (?:invalid|unknown) device:.*|Invalid parameters"
        r"|No devices found",
        EngineRefusedFlag,
        "the build on {who} does not take an option ({line})",
        "that device is left out until it has another build",
    ),
    _row(
        r"insufficient memory \(attempted.*|failed to allocate (?:input )?buffer.*|std::bad_alloc",
        AllocationRefused,
        "{who} refused it memory ({line})",
    ),
)
"""From an rpc-server that ended by itself."""

WORKER_REFUSALS: Final = (
    _row(
        r"HELLO request size mismatch.*|Expected HELLO command.*|Unknown command: \d+"
        r"|invalid tensor type received.*",
        WorkerIncompatible,
        "{who} does not understand what llama-server asked it ({line})",
    ),
    _row(
        r"[Ff]ailed to allocate (?:input )?buffer.*",
        AllocationRefused,
        "{who} refused memory ({line})",
    ),
)
"""From an rpc-server that lives, but has hung up on llama-server."""

_REFUSALS = (AllocationRefused, CacheDoesNotFit)
_LOAD_BEGINS = re.compile(r"loading model|llama_model_load|load_tensors")
_BUFFER = re.compile(r"failed to allocate (?P<buffer>\S+) buffer of size (?P<size>\d+)")
_WHO = re.compile(r"RPC\d*\[(?P<who>[^\]]+)\]")
_STAMP = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} (?P<level>[A-Z]) ")
_SOURCE = re.compile(r"^(?:\S*/)?(?P<name>[\w.-]+\.(?:cpp|cuh?|c|h|m|mm)):\d+: ")
_NOISE = re.compile(
    r"client connection|^\s*$|cleaning up before exit|exiting due to|failed to load model"
    r"|failed to create.context with|memory_breakdown",
    re.IGNORECASE,
)
_TELLING = re.compile(
    r"error|fail|assert|abort|terminat|exception|insufficient|unable|invalid|mismatch|refus|denied"
    r"|crash|lost|unknown|No space|Killed",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A row whose pattern was found: the line, and whom it is about (an endpoint, or empty)."""

    row: LogCause
    line: str
    text: str
    endpoint: str = ""
    buffer: str = ""
    size_bytes: int | None = None

    @property
    def is_refusal(self) -> bool:
        """It is about memory that was asked for and not given."""
        return issubclass(self.row.error, _REFUSALS)


def first_hit(rows: Iterable[LogCause], lines: Sequence[str]) -> Hit | None:
    """The first row that any line fits; of several lines the first one."""
    return next((hit for row in rows if (hit := _hit(row, lines)) is not None), None)


def bare(line: str) -> str:
    """A line without its time, level and the path of the source file that printed it."""
    text = _SOURCE.sub(r"\g<name>: ", _STAMP.sub("", line[:_READ_CHARACTERS].strip()))
    return _short(" ".join(text.split()))


def telling(lines: Sequence[str], count: int = 4) -> list[str]:
    """The last few lines that sound like trouble, in their order."""
    return [bare(line) for line in lines if _is_loud(line)][-count:]


def last_words(lines: Sequence[str]) -> str:
    """The last line that says anything."""
    said = [line for line in lines if not _NOISE.search(line)]
    return bare(said[-1]) if said else ""


def has_begun_to_load(lines: Sequence[str]) -> bool:
    """llama-server has connected to its workers, and reads the model."""
    return any(_LOAD_BEGINS.search(line) for line in lines)


def _hit(row: LogCause, lines: Sequence[str]) -> Hit | None:
    for line in lines:
        if match := row.pattern.search(line, 0, _READ_CHARACTERS):
            groups = match.groupdict()
            buffer, size_bytes = groups.get("buffer") or "", None
            if issubclass(row.error, _REFUSALS):
                buffer, size_bytes = _refused(lines, buffer)
            return Hit(
                row,
                bare(line),
                _short(match[0].strip()),
                groups.get("who") or _endpoint(buffer),
                buffer,
                size_bytes,
            )
    return None


def _refused(lines: Sequence[str], buffer: str) -> tuple[str, int | None]:
    """The last buffer that was refused, which the line of the failure itself may not name."""
    for line in reversed(lines):
        match = _BUFFER.search(line)
        if match and buffer in ("", match["buffer"]):
            return match["buffer"], int(match["size"])
    return buffer, None


def _endpoint(buffer: str) -> str:
    """``10.0.0.2:8110`` of ``RPC0[10.0.0.2:8110]``; the number counts per worker, and tells
    nothing."""
    match = _WHO.search(buffer)
    return match["who"] if match else ""


def _is_loud(line: str) -> bool:
    stamp = _STAMP.match(line)
    if stamp and stamp["level"] not in "EW":
        return False
    return bool(_TELLING.search(line)) and not _NOISE.search(line)


def _short(text: str) -> str:
    return text if len(text) <= QUOTED_CHARACTERS else f"{text[: QUOTED_CHARACTERS - 1]}…"
