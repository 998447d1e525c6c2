"""Exact memory of a placement, computed by the engine itself: ``llama-fit-params -fitp on``.

It runs llama.cpp's real loader and scheduler without allocating anything, in well under a second,
against stand-in workers, so no real one is touched and each reports what its agent measured.

The figures are those of CPU workers: a GPU may pad some operations, and its runtime takes memory of
its own. They are rounded down to whole MiB. Caches are separate per slot: the tool has no ``-kvu``.

The tool reserves logits for every token of an ubatch, llama-server only one row per slot: 126 MiB
instead of 13 on the last worker, measured with 64 000 tokens of vocabulary. So the output layer is
put on one more stand-in, and only its weights are counted where they belong.

Source:
    llama.cpp ``tools/fit-params/fit-params.cpp``, ``common/fit.cpp`` (``common_fit_print``).
"""

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from agents import environment, process
from agents.contract import EngineFacts
from agents.rpc_protocol import DeviceMemory, Triple
from supervisor.adapters.stand_in_worker import stand_in_worker
from supervisor.core.engine_memory import MIB, EngineMemory, EngineUse
from supervisor.errors import (
    EngineRefusedFlag,
    EngineRefusedModel,
    EngineToolMissing,
    EstimateFailed,
)

TOOL: Final = "llama-fit-params"
HOST: Final = "Host"
NO_OVERRIDE: Final = "zzz=CPU"
"""Matches no tensor; any override turns the scheduler's pipeline copies off."""

_OUTPUT_RULES: Final = (r"^output\.weight", r"^token_embd\.weight")
"""Overrides that move the output matrix; tied embeddings keep their own name."""

_ROOM: Final = DeviceMemory(1 << 50, 1 << 50)
_ROW: Final = re.compile(r"^(\S+) (\d+) (\d+) (\d+) *$", re.MULTILINE)
_REFUSED_FLAG: Final = re.compile(
    r"error: (?:invalid argument|unknown argument).*|error: .*argument.*"
)
_REFUSED_MODEL: Final = (  # the reason goes through a queue that an abort may lose
    re.compile(r"error loading model: [^\n]*"),
    re.compile(r"failed to load model"),
)
_QUOTED_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What of a llama-server command line decides about memory.

    ``tensor_split`` counts the layers of every device, in the order of the workers; the last one's
    includes the output. ``overrides`` are those of ``-ot``; ``extra`` is appended as it is.
    ``all_logits``: one row of logits per token of an ubatch, as llama-bench and llama-cli have it.
    """

    ctx_tokens: int
    gpu_layers: int
    tensor_split: tuple[int, ...]
    ubatch: int = 512
    kv_type_k: str = "f16"
    kv_type_v: str = "f16"
    slots: int = 1
    overrides: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    all_logits: bool = False

    @property
    def sets_output_apart(self) -> bool:
        """Whether the output layer goes to a stand-in of its own; not if it is alone anyway."""
        return not self.all_logits and len(self.tensor_split) > 0 and self.tensor_split[-1] > 1

    @property
    def has_output_on_host(self) -> bool:
        return any(rule.startswith(_OUTPUT_RULES) for rule in self.overrides)

    def with_output_apart(self) -> "EngineOptions":
        """The same placement with one more device, for the output layer alone.

        Pipeline copies stay as they are: one device has none, an override turns them off.
        """
        kept = tuple(rule for rule in self.overrides if not rule.startswith(_OUTPUT_RULES))
        has_copies = len(self.tensor_split) > 1 and not self.overrides
        return replace(
            self,
            tensor_split=(*self.tensor_split[:-1], self.tensor_split[-1] - 1, 1),
            overrides=kept or (() if has_copies else (NO_OVERRIDE,)),
        )


async def engine_memory(
    engine: EngineFacts,
    model_path: Path,
    workers: Sequence[Sequence[DeviceMemory]],
    options: EngineOptions,
    *,
    inherited: Mapping[str, str],
    deadline_s: float = 20.0,
) -> EngineMemory:
    """Ask the engine what a placement needs.

    Args:
        engine: The build that will run; its ``rpc_protocol`` is that of the workers.
        model_path: A GGUF file, whole or sparse.
        workers: Per worker, the memory of each of its devices; in the order of the plan.
        options: The options of the launch.
        inherited: Environment, of which ``LLAMA_ARG_*`` is dropped.
        deadline_s: For the run of the tool.

    Raises:
        EngineToolMissing: This build has no ``llama-fit-params``.
        EngineRefusedModel: The engine cannot use the model.
        EngineRefusedFlag: It does not know an option.
        EstimateFailed: It ended otherwise, took too long, or printed something else.
    """
    program = Path(engine.folder) / TOOL
    if not program.is_file():
        raise EngineToolMissing(
            f"{engine.folder} has no {TOOL}; the planner uses its own formulas and a margin"
        )
    if not options.sets_output_apart:
        return await _ask(engine, program, model_path, workers, options, inherited, deadline_s)
    apart = options.with_output_apart()
    found = await _ask(
        engine, program, model_path, [*workers, [_ROOM]], apart, inherited, deadline_s
    )
    return _joined(found, on_host=options.has_output_on_host)


def _joined(found: EngineMemory, *, on_host: bool) -> EngineMemory:
    """Move the weights of the output layer from its stand-in to where they will be."""
    *devices, last, apart = found.devices
    if on_host:
        host = replace(found.host, model_bytes=found.host.model_bytes + apart.model_bytes)
        return EngineMemory((*devices, last), host)
    last = replace(last, model_bytes=last.model_bytes + apart.model_bytes)
    return EngineMemory((*devices, last), found.host)


async def _ask(
    engine: EngineFacts,
    program: Path,
    model_path: Path,
    workers: Sequence[Sequence[DeviceMemory]],
    options: EngineOptions,
    inherited: Mapping[str, str],
    deadline_s: float,
) -> EngineMemory:
    triple = Triple.parse(engine.rpc_protocol)
    async with contextlib.AsyncExitStack() as stack:
        stand_ins = [
            await stack.enter_async_context(stand_in_worker(devices, triple)) for devices in workers
        ]
        names = [f"RPC{i}" for i in range(sum(len(devices) for devices in workers))]
        endpoints = [stand_in.endpoint for stand_in in stand_ins]
        argv = [str(program), *arguments(model_path, endpoints, names, options)]
        env = environment.for_engine(inherited, {"GGML_NO_BACKTRACE": "1"})
        status, output, errors = await _run(argv, env, deadline_s)
    if status != 0:
        raise _refusal(status, errors)
    return parse(output, names)


def arguments(
    model_path: Path, endpoints: Sequence[str], names: Sequence[str], options: EngineOptions
) -> list[str]:
    """The command line after the program; ``--rpc`` first, since ``--device`` needs it."""
    words = ["--rpc", ",".join(endpoints), "--device", ",".join(names)] if endpoints else []
    words += ["--model", str(model_path), "-fitp", "on", "-fit", "off"]
    words += ["-c", str(options.ctx_tokens), "-np", str(options.slots)]
    words += ["-ub", str(options.ubatch), "-b", str(max(options.ubatch, 2048))]
    words += ["-ctk", options.kv_type_k, "-ctv", options.kv_type_v]
    words += ["-ngl", str(options.gpu_layers)]
    if options.tensor_split:
        words += ["-ts", ",".join(map(str, options.tensor_split))]
    if options.overrides:
        words += ["-ot", ",".join(options.overrides)]
    return [*words, *options.extra]


def parse(output: str, names: Sequence[str]) -> EngineMemory:
    """Read the table: per device its name and MiB of model, context and compute; the host last.

    Raises:
        EstimateFailed: Another table than that of these devices.
    """
    rows = [
        EngineUse(name, *(int(figure) * MIB for figure in figures))
        for name, *figures in _ROW.findall(output)
    ]
    if [row.name for row in rows] != [*names, HOST]:
        said = output.strip()[:_QUOTED_CHARACTERS]
        raise EstimateFailed(
            f"{TOOL} printed no table of {', '.join([*names, HOST])} but {said!r}; "
            "update llama.cpp, or report this"
        )
    return EngineMemory(tuple(rows[:-1]), rows[-1])


async def _run(
    argv: Sequence[str], env: Mapping[str, str], deadline_s: float
) -> tuple[int, str, str]:
    try:
        child = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
        )
    except OSError as exc:
        raise EstimateFailed(f"{argv[0]} cannot be run here: {exc.strerror or exc}") from exc
    try:
        async with asyncio.timeout(deadline_s):
            output, errors = await child.communicate()
    except TimeoutError as exc:
        raise EstimateFailed(
            f"{TOOL} did not end within {deadline_s:g} s; try again when this host is less busy"
        ) from exc
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return child.returncode or 0, output.decode(errors="replace"), errors.decode(errors="replace")


def _refusal(status: int, errors: str) -> EngineRefusedFlag | EngineRefusedModel | EstimateFailed:
    """The error behind a failed run, with the engine's own words."""
    if flag := _REFUSED_FLAG.search(errors):
        return EngineRefusedFlag(f"{TOOL}: {flag[0]}; update llama.cpp")
    if model := _REFUSED_MODEL[0].search(errors) or _REFUSED_MODEL[1].search(errors):
        return EngineRefusedModel(f"{TOOL}: {model[0]}; choose another model, or update llama.cpp")
    last = (errors.strip().splitlines() or ["no output"])[-1]
    ending = process.describe_exit(status)
    return EstimateFailed(f"{TOOL} {ending}: {last[:_QUOTED_CHARACTERS]}; see its message")
