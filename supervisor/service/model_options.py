"""The model options of one plan: checked, spelled for the engine in use, and weighed."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from supervisor.core.engine_options import (
    EngineWords,
    OptionFile,
    engine_words,
    scales_positions,
    stretched,
)
from supervisor.core.entities import DeploymentSpec
from supervisor.core.explain_words import listed
from supervisor.core.option_memory import IMAGE_WORKSPACE_BYTES, FileFacts, OptionMemory
from supervisor.core.units import gib
from supervisor.errors import EngineOptionRefused, OptionFileUnusable
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

CUT: Final = (
    "The model was trained for {:,} tokens, and newer builds of llama-server give a request no"
    " more; scale its positions (rope), or take a shorter context."
)


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What a plan takes over of a spec's model options."""

    words: tuple[str, ...] = ()
    memory: OptionMemory = field(default_factory=OptionMemory)
    remarks: tuple[str, ...] = ()


def launch_options(
    spec: DeploymentSpec, architecture: str, tools: Tools, trained_tokens: int | None = None
) -> LaunchOptions:
    """Check a spec's model options against engine and files. Blocks.

    Args:
        spec: What was asked for.
        architecture: Of the model; empty: unknown yet.
        tools: With the main host, whose engine it is.
        trained_tokens: Context that the model was trained for; None: unknown.

    Raises:
        EngineOptionRefused, OptionFileUnusable: What to change.
    """
    projector = _projector(spec, tools)
    made = engine_words(spec, tools.main_host.help, projector)
    cut: tuple[str, ...] = ()
    if trained_tokens and spec.ctx_tokens // spec.slots > trained_tokens:
        made = stretched(made, architecture, spec.ctx_tokens)
        cut = () if scales_positions(made) else (CUT.format(trained_tokens),)
    if not made.words:
        return LaunchOptions(remarks=cut)
    facts = _read(made, architecture, tools)
    return LaunchOptions(made.words, facts.memory, (*_remarks(spec, made, facts), *cut))


def _read(made: EngineWords, architecture: str, tools: Tools) -> FileFacts:
    return (
        tools.read_option_files(made.files, architecture)
        if tools.read_option_files
        else FileFacts()
    )


def _projector(spec: DeploymentSpec, tools: Tools) -> str:
    """The one that was given, or the one beside the model if this engine can use it.

    Nobody asked for the latter: it is no reason to refuse a launch.
    """
    if spec.mmproj is not None:
        return spec.mmproj
    known = tools.main_host.help
    if tools.projector_of is None or known.find("--mmproj") is None:
        return ""
    found = tools.projector_of(spec.model)
    if not found:
        return ""
    try:
        _read(engine_words(DeploymentSpec(model=spec.model), known, found), "", tools)
    except (EngineOptionRefused, OptionFileUnusable) as exc:
        log.warning("projector.left_out", extra={"reason": str(exc)})
        return ""
    return found


def _remarks(spec: DeploymentSpec, made: EngineWords, facts: FileFacts) -> tuple[str, ...]:
    said = [_of_file(file, size_bytes, spec) for file, size_bytes in facts.sizes]
    named = {file.option for file in made.files} | {"--no-mmproj-offload"}
    others = [word for word in _flags(made) if word not in named]
    if others:
        said.append(f"llama-server is also given {listed(others)}, as you asked.")
    return tuple(said)


def _of_file(file: OptionFile, size_bytes: int, spec: DeploymentSpec) -> str:
    name = Path(file.path).name
    if file.kind == "projector":
        found = "" if spec.mmproj else ", which lies beside the model,"
        return (
            f"The projector {name}{found} stays on the main host (--no-mmproj-offload): its"
            f" {gib(size_bytes)} and {gib(IMAGE_WORKSPACE_BYTES)} to read images are kept free"
            " there."
        )
    if file.kind == "LoRA adapter":
        return (
            f"The adapter {name} ({gib(size_bytes)}) is counted on the devices whose layers it"
            " changes."
        )
    if file.kind == "template":
        return f"The chat template is {name} in place of the model's own."
    return f"The {file.kind} of {file.option} is {name}."


def _flags(made: EngineWords) -> list[str]:
    return [w for w in made.words if w.startswith("-") and not w[1:2].isdigit()]
