"""The main host's own engine: which one is used at a start, and what has to know when it changes.

``engine-in-use.json`` keeps the choice: a build that is only installed changes nothing.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from agents import engine as engines
from agents import privatefile
from agents.contract import EngineFacts
from agents.errors import DiskFull, EngineUnusable
from supervisor.errors import ReleaseUnknown
from supervisor.ports import Shelf

log = logging.getLogger(__name__)

IN_USE_FILE: Final = "engine-in-use.json"
CHANGE_FILE: Final = "engine-change.json"
"""There while a change is under way: who finds it at a start knows that it was cut off."""


async def found_engines(
    inherited: Mapping[str, str], *, explicit: Path | None, folder: Path
) -> list[EngineFacts]:
    """All engines of this host, inspected; first the one that was in use when we ended.

    Raises:
        EngineMissing: ``explicit`` was given and holds no llama.cpp program.
    """
    found = engines.discover(inherited, explicit=explicit, own_engines=folder / "engines")
    if not (found and found[0].is_fixed):
        found = _with_remembered(found, folder)
    return [await engines.inspect(each, inherited) for each in found]


def _with_remembered(found: list[EngineFacts], folder: Path) -> list[EngineFacts]:
    told = engines.InUse.read(folder / IN_USE_FILE)
    remembered = engines.at_folder(Path(told.folder), "in use") if told else None
    if remembered is None:
        return found
    same = Path(remembered.folder).resolve()
    found = [each for each in found if Path(each.folder).resolve() != same]
    return [remembered, *found]


def remember(engine: EngineFacts | None, folder: Path, before: str = "") -> None:
    """Use that engine at the next start, too, unless the settings say another one.

    Raises:
        DiskFull: It cannot be written.
    """
    if engine is None or engine.problem or engine.is_fixed:
        return
    told = engines.InUse.read(folder / IN_USE_FILE)
    if told is not None and told.folder == engine.folder:
        return
    try:
        engines.InUse(engine.folder, before).write(folder / IN_USE_FILE)
    except OSError as exc:
        raise DiskFull(f"cannot note in {folder} which engine is used: {exc.strerror}") from exc


def remember_first(engine: EngineFacts | None, folder: Path) -> None:
    """At a start. A full disk is no reason not to start."""
    try:
        remember(engine, folder)
    except DiskFull as exc:
        log.warning("engine.not_remembered", extra={"reason": str(exc)})


def begin_change(folder: Path, before: str, build: str) -> None:
    """Note that a change is under way.

    Raises:
        DiskFull: It cannot be written.
    """
    try:
        text = json.dumps({"build_before": before, "build": build})
        privatefile.write(folder / CHANGE_FILE, text)
    except OSError as exc:
        raise DiskFull(f"cannot note the change in {folder}: {exc.strerror}") from exc


def end_change(folder: Path) -> None:
    """It is over, one way or the other."""
    (folder / CHANGE_FILE).unlink(missing_ok=True)


def cut_off(folder: Path) -> tuple[str, str] | None:
    """The builds before and after of a change that our end cut off."""
    try:
        found = json.loads((folder / CHANGE_FILE).read_text())
        return str(found["build_before"]), str(found["build"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def help_of(engine: EngineFacts | None, inherited: Mapping[str, str]) -> str:
    """What its llama-server says of its options; nothing if it cannot serve.

    Raises:
        EngineUnusable: It cannot be executed.
    """
    if engine is None or not engine.llama_server or engine.problem:
        return ""
    _, help_text = await engines.run([engine.llama_server, "--help"], inherited)
    return help_text


async def proven(folder: Path, build: str, inherited: Mapping[str, str]) -> EngineFacts:
    """The engine of a folder, all of its programs tried once.

    Raises:
        EngineUnusable: It cannot serve on this host.
    """
    engine = await asyncio.to_thread(engines.at_folder, folder, "in use")
    if engine is None:
        raise EngineUnusable(f"{folder} holds no llama.cpp program any more")
    if engines.is_release(build) and not engine.release:
        engine = replace(engine, release=build)
    engine = await engines.inspect(engine, inherited)
    if not engine.problem and not engine.llama_server:
        raise EngineUnusable(f"{folder} holds no llama-server, which the main host needs")
    if engine.problem:
        raise EngineUnusable(f"llama.cpp {build} does not work on the main host: {engine.problem}")
    return engine


async def wanted(
    build: str,
    now: EngineFacts | None,
    shelf: Shelf,
    inherited: Mapping[str, str],
    folder: Path,
) -> EngineFacts:
    """The engine of this host that operators call so: the one in use, of the shelf, or found.

    Raises:
        ReleaseUnknown: There is none.
        EngineUnusable: It does not work here.
    """
    if now is not None and not now.problem and engines.is_called(now, build):
        return now
    programs = await asyncio.to_thread(shelf.folder, build)
    if programs is not None:
        return await proven(programs, build, inherited)
    found = await found_engines(inherited, explicit=None, folder=folder)
    told = engines.InUse.read(folder / IN_USE_FILE)
    if told is not None and (before := engines.at_folder(Path(told.before), "in use")):
        found.append(await engines.inspect(before, inherited))
    usable = [engine for engine in found if engine.llama_server and not engine.problem]
    for engine in usable:
        if engines.is_called(engine, build):
            return engine
    names = dict.fromkeys([*shelf.builds(), *(engines.name_of(engine) for engine in usable)])
    known = ", ".join(name for name in names if name) or "none"
    raise ReleaseUnknown(
        f"no llama.cpp {build[:60]} that works is on this main host, which has {known}; "
        "'supervisor engine install' fetches a release"
    )
