"""Checks of what runs here: Python, the agent, its data folder, the engine."""

import errno
import fcntl
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agents import __version__, engine
from agents.contract import EngineFacts, Finding
from agents.doctor import reading
from agents.doctor.findings import blocks, ok, warning
from agents.doctor.subject import Subject
from agents.errors import EngineMissing, EngineWithoutRpc
from agents.process import ChildLedger

OLDEST_PYTHON: Final = (3, 11)

_LIBRARY: Final = re.compile(
    r"error while loading shared libraries: (?P<linux>[^:\s]+)"
    r"|Library not loaded: (?P<macos>\S+)"
    r"|library \"(?P<android>[^\"]+)\" not found"
)
_WRONG_KIND: Final = (
    os.strerror(errno.ENOEXEC),
    "Bad CPU type in executable",
    "is for EM_",  # Android's linker: "... is for EM_X86_64 (62) instead of EM_AARCH64 (183)"
    "wrong ELF class",
)
_HOMEBREW: Final = ("/homebrew/", "/linuxbrew/", "/usr/local/Cellar/", "/usr/local/opt/")
_GET_ONE: Final = (
    "'supervisor engine install' on the main host gets one for all; a joined device then gets it "
    "by itself"
)


# -- Python ------------------------------------------------------------------------------------


def python(version: tuple[int, ...], *, has_psutil: bool, platform: str) -> Finding:
    """Whether the agent runs on this Python."""
    said = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        remedy = "'pkg upgrade'" if platform == "android" else "install a newer Python"
        return blocks("python", f"Python {said}, and the agent needs 3.11 or newer", remedy)
    if has_psutil or platform != "macos":
        return ok("python", f"Python {said}, {'with' if has_psutil else 'without'} psutil")
    return warning(
        "python",
        f"Python {said} without psutil, which is the only way to learn free memory on macOS",
        "python3 -m pip install psutil",
    )


async def check_python(subject: Subject) -> list[Finding]:
    has_psutil = importlib.util.find_spec("psutil") is not None
    return [python(sys.version_info[:3], has_psutil=has_psutil, platform=subject.platform)]


# -- the agent ---------------------------------------------------------------------------------


def agent(version: str, *, runs: bool, has_joined: bool, platform: str) -> Finding:
    """Whether there is an agent that could be asked for anything."""
    if runs:
        return ok("agent", f"agent {version} runs")
    if not has_joined:
        remedy = "run the line that 'supervisor invite' prints on the main host"
        return warning("agent", f"agent {version} has not joined any cluster", remedy)
    boot = "sh ~/.termux/boot/10-llama-rpc-agent"
    remedy = boot if platform == "android" else "start it: 'agent.pyz join CODE', or its service"
    return warning("agent", f"agent {version} has joined a cluster but does not run", remedy)


async def check_agent(subject: Subject) -> list[Finding]:
    has_joined = subject.identity.authority.is_file()
    runs = subject.facts is not None or is_held(subject.folder / "agent.lock")
    return [agent(__version__, runs=runs, has_joined=has_joined, platform=subject.platform)]


def is_held(lock: Path) -> bool:
    """Whether a running program of ours holds this lock. One that just starts is not refused."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as exc:
        return exc.errno in (errno.EWOULDBLOCK, errno.EACCES)
    return False


# -- its folder --------------------------------------------------------------------------------


def data_folder(folder: Path, problem: str, *, exists: bool) -> Finding:
    """Whether what has to be kept can be kept."""
    if problem:
        return blocks(
            "data_folder",
            f"{folder} cannot be written: {problem}",
            f"make it yours (chown -R $USER {folder}), or choose another with --data",
        )
    return ok("data_folder", f"{folder} can be written" if exists else f"{folder} can be made")


async def check_data_folder(subject: Subject) -> list[Finding]:
    exists = subject.folder.is_dir()
    problem = await reading.in_thread(lambda: _why_not_writable(subject.folder))
    return [data_folder(subject.folder, problem, exists=exists)]


def _why_not_writable(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"doctor")
            file.flush()
    except OSError as exc:
        return exc.strerror or str(exc)
    return ""


# -- the engine --------------------------------------------------------------------------------


def engine_problem(found: EngineFacts, quarantined: str = "") -> tuple[str, str]:
    """What is wrong with an engine, in words, and what to do."""
    problem = found.problem
    if quarantined:
        return (
            f"macOS keeps {quarantined} in quarantine, as a browser downloaded it ({problem})",
            f"xattr -dr com.apple.quarantine {found.folder}",
        )
    if match := _LIBRARY.search(problem):
        name = next(filter(None, match.groups()))
        return f"the library {name} is missing: {problem}", _GET_ONE
    what = ""
    if any(mark in problem for mark in _WRONG_KIND):
        what = f"{found.folder} was built for another kind of processor: "
    elif os.strerror(errno.ENOENT) in problem and "cannot be run" in problem:
        what = f"{found.folder} was built for another C library or system: "
    elif found.problem_code == EngineWithoutRpc.code and _is_homebrew(found.folder):
        what = "Homebrew's llama.cpp has no RPC: "
    return what + problem, _GET_ONE


def _is_homebrew(folder: str) -> bool:
    return any(part in f"{folder}/" for part in _HOMEBREW)


def engine_told(found: EngineFacts, how: str) -> str:
    """``b10516 in /opt/llama (setting), RPC 4.0.1, answered HELLO``."""
    release = found.release or found.build or "unknown build"
    rpc = f", RPC {found.rpc_protocol}" if found.rpc_protocol else ""
    return f"{release} in {found.folder} ({found.source}){rpc}, {how}"


async def check_engine(subject: Subject) -> list[Finding]:
    """Runs an engine only if nobody knows it yet, and never beside an rpc-server that is up."""
    if subject.engine_is_known:
        return [_known(subject.engine)]
    try:
        found = engine.discover(
            subject.environ,
            explicit=subject.engine_folder,
            own_engines=subject.folder / "engines",
        )
    except EngineMissing as exc:
        return [blocks("engine", str(exc), _GET_ONE)]
    if not found:
        return [_missing()]
    if serving := _serving(subject.folder):
        return [ok("engine", engine_told(found[0], f"not run now: {serving}"))]
    return [await _examined(found, subject)]


def _known(found: EngineFacts | None) -> Finding:
    """What the running program learned of its engine when it started."""
    if found is None:
        return _missing()
    if found.problem:
        what, remedy = engine_problem(found)
        return blocks("engine", what, remedy)
    if not Path(found.rpc_server or found.llama_server).is_file():
        return blocks("engine", f"{found.folder} was there and is gone", _GET_ONE)
    return ok("engine", engine_told(found, "answered HELLO when it was found"))


def _missing() -> Finding:
    return blocks("engine", "no llama.cpp programs are here", _GET_ONE)


def _serving(folder: Path) -> str:
    """Whether an agent in that folder has an rpc-server up, by its own notes."""
    ledger = ChildLedger(folder / "children.json")
    running = ledger.adopt(lambda record: record.name == "rpc-server")
    return f"its rpc-server (pid {running.pid}) is up" if running else ""


async def _examined(found: Sequence[EngineFacts], subject: Subject) -> Finding:
    """The first that can serve; else what is wrong with the first."""
    problems = []
    for each in found:
        inspected = await engine.inspect(each, subject.environ)
        if not inspected.problem:
            return ok("engine", engine_told(inspected, "answered HELLO"))
        problems.append(inspected)
    first = problems[0]
    what, remedy = engine_problem(first, await _quarantined(first, subject.platform))
    more = f" ({len(problems) - 1} more found, none usable)" if len(problems) > 1 else ""
    return blocks("engine", what + more, remedy)


async def _quarantined(found: EngineFacts, platform: str) -> str:
    """The program that macOS does not let run, if that is the reason."""
    if platform != "macos" or shutil.which("xattr") is None:
        return ""
    for program in filter(None, (found.rpc_server, found.llama_server)):
        said = await reading.command("xattr", "-p", "com.apple.quarantine", program)
        if said.status == 0:
            return program
    return ""
