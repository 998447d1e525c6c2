"""Which files an engine of this host consists of, so that they can be packed for other devices."""

import hashlib
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from agents import engine as engines
from agents.contract import EngineFacts
from agents.errors import EngineUnusable
from supervisor.adapters.engine_archives import Packed
from supervisor.core.program_files import ProgramFile, read_program

TOOLS: Final = ("llama-fit-params",)
"""Beside llama-server and the rpc-server: what planning asks."""

_OURS: Final = re.compile(r"lib(ggml|llama|mtmd)\b[-.\w]*")
"""Libraries of llama.cpp, wherever they are installed."""
_SYSTEM: Final = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/System")
_ORIGINS: Final = ("$ORIGIN", "${ORIGIN}", "@loader_path", "@executable_path")
_RELATIVE: Final = "$ORIGIN:$ORIGIN/../lib"
_PROGRAMS, _LIBRARIES = "bin", "lib"


@dataclass(frozen=True, slots=True)
class _File:
    """One program or library: where it is, and its place in the archive."""

    path: Path
    place: str
    header: ProgramFile


@dataclass(slots=True)
class _Collection:
    """What was found so far, by place in the archive."""

    folder: Path
    files: dict[str, _File] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    def add(self, path: Path, place: str) -> None:
        waiting = [(path, place)]
        while waiting:
            path, place = waiting.pop()
            header = read_header(path)
            if place in self.files or header is None:
                continue
            self.files[place] = _File(path, place, header)
            waiting += self._libraries_of(path, header)

    def _libraries_of(self, path: Path, header: ProgramFile) -> Iterator[tuple[Path, str]]:
        for needed in header.needed:
            name = Path(needed).name
            found = next(self._places(path, header, needed), None)
            if found is not None:
                beside = found.parent.resolve() == self.folder.resolve()
                yield found, f"{_PROGRAMS if beside else _LIBRARIES}/{name}"
            elif _OURS.fullmatch(name):
                self.missing.add(name)

    def _places(self, path: Path, header: ProgramFile, needed: str) -> Iterator[Path]:
        """Where the loader would find a library of the engine; nothing for one of the system."""
        name = Path(needed).name
        folders = [Path(needed).parent] if needed.startswith("/") else []
        for run_path in header.run_paths:
            folders += _expanded(run_path.text, path)
        folders += [path.parent, self.folder, self.folder.parent / _LIBRARIES]
        for folder in folders:
            library = folder / name
            if library.is_file() and (_OURS.fullmatch(name) or not _is_of_system(folder)):
                yield library


def _expanded(run_path: str, path: Path) -> list[Path]:
    folders = []
    for part in run_path.split(":"):
        text = part
        for origin in _ORIGINS:
            text = text.replace(origin, str(path.parent))
        if text.startswith("/"):
            folders.append(Path(text))
    return folders


def _is_of_system(folder: Path) -> bool:
    text = str(folder.resolve())
    return any(text == system or text.startswith(f"{system}/") for system in _SYSTEM)


def read_header(path: Path) -> ProgramFile | None:
    """None if it is no program or library.

    Raises:
        EngineUnusable: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return None
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return read_program(content)
    except OSError as exc:
        raise EngineUnusable(f"{path} cannot be read: {exc.strerror or exc}") from exc


@dataclass(frozen=True, slots=True)
class EngineFiles:
    """An engine as it will be packed: programs in ``bin``, libraries in ``lib`` or beside them."""

    files: tuple[_File, ...]

    @property
    def fingerprint(self) -> str:
        """Changes when one of the files is built anew."""
        stats = [(f.place, f.path.stat().st_size, f.path.stat().st_mtime_ns) for f in self.files]
        return hashlib.sha256(repr(sorted(stats)).encode()).hexdigest()

    def members(self) -> list[Packed]:
        """Each content once in a folder: other names of one library become links."""
        members = []
        by_content: dict[tuple[str, str], str] = {}
        for file in sorted(self.files, key=lambda f: f.place):
            content = _relocated(file)
            folder, _, name = file.place.partition("/")
            digest = hashlib.sha256(content or file.path.read_bytes()).hexdigest()
            first = by_content.setdefault((folder, digest), name)
            if first != name:
                members.append(Packed(file.place, link=first))
            else:
                source = file.path if content is None else None
                members.append(Packed(file.place, source, content, is_program=True))
        return members


def files_of(engine: EngineFacts) -> EngineFiles:
    """The programs of an engine that devices need, and the libraries of the same build.

    Raises:
        EngineUnusable: It cannot be moved: a library is missing, or is looked for at a place that
            other devices do not have.
    """
    folder = Path(engine.folder)
    collected = _Collection(folder)
    for name in ("llama-server", *engines.RPC_SERVER_NAMES, *TOOLS):
        if (folder / name).is_file():
            collected.add(folder / name, f"{_PROGRAMS}/{name}")
    # Backends that are loaded when a program starts are named by nobody; they are beside it.
    for pattern in ("libggml-*.so", "libggml-*.dylib"):
        for path in sorted(folder.glob(pattern)):
            collected.add(path, f"{_PROGRAMS}/{path.name}")
    if collected.missing:
        names = ", ".join(sorted(collected.missing))
        raise EngineUnusable(
            f"the programs in {folder} cannot be packed for other devices: {names} was not found"
            " beside them, nor in ../lib; 'supervisor engine install' fetches a release instead"
        )
    files = EngineFiles(tuple(collected.files.values()))
    for file in files.files:
        _check_movable(file, files.files)
    return files


def _check_movable(file: _File, others: Iterable[_File]) -> None:
    places = {other.place for other in others}
    needs_others = any(
        f"{folder}/{Path(needed).name}" in places
        for needed in file.header.needed
        for folder in (_PROGRAMS, _LIBRARIES)
    )
    if not needs_others or _is_relative(file) or _can_be_made_relative(file):
        return
    raise EngineUnusable(
        f"{file.path} cannot be packed for other devices: it looks for its libraries at a place of"
        " this host alone; build llama.cpp with -DCMAKE_INSTALL_RPATH='$ORIGIN/../lib'"
        " ('@loader_path/../lib' on a Mac), or fetch a release with 'supervisor engine install'"
    )


def _is_relative(file: _File) -> bool:
    """Whether its libraries are found wherever it is."""
    here = [text for run_path in file.header.run_paths for text in run_path.text.split(":")]
    named = [needed for needed in file.header.needed if needed.startswith(_ORIGINS)]
    return any(text.startswith(_ORIGINS) for text in here) or bool(named)


def _can_be_made_relative(file: _File) -> bool:
    """Whether the new search path fits where the old one is written; Macs sign their programs."""
    longest = max((len(run_path.text) for run_path in file.header.run_paths), default=0)
    return file.header.format == "elf" and longest >= len(_RELATIVE)


def _relocated(file: _File) -> bytes | None:
    """The file with a search path that holds everywhere; None if it is good as it is."""
    if _is_relative(file) or not _can_be_made_relative(file):
        return None
    run_path = max(file.header.run_paths, key=lambda r: len(r.text))
    content = bytearray(file.path.read_bytes())
    end = run_path.offset + len(run_path.text.encode())
    content[run_path.offset : end] = _RELATIVE.encode().ljust(end - run_path.offset, b"\0")
    return bytes(content)
