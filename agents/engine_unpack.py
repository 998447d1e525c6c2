"""Unpacks the archive of an engine: nothing lands outside its folder, whatever it holds."""

import gzip
import os
import shutil
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from agents.errors import DiskFull, EngineNotFetched

LARGEST_BYTES: Final = 16 << 30
"""Of everything in an archive; the largest of upstream unpack to a tenth of it."""
_BLOCK_BYTES: Final = 256 * 1024
_BROKEN: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size_bytes: int
    open: Callable[[], IO[bytes] | None]
    is_folder: bool = False
    is_program: bool = False
    link: str = ""
    same_as: str = ""
    """A hard link to that member."""


def unpack(archive: Path, folder: Path, stop: threading.Event) -> None:
    """Make ``folder`` from ``archive``. Blocks; ``stop`` ends it.

    Not ``extractall``: Python before 3.11.4 has no filter, and hard links, which Android forbids,
    have to become copies.

    Raises:
        EngineNotFetched: It is no archive, or has members that it should not have.
        DiskFull: There is no room for it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        root = folder.resolve()
        is_zip = zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive)
        left_bytes = LARGEST_BYTES
        for member in _of_zip(archive) if is_zip else _of_tar(archive):
            left_bytes -= member.size_bytes
            if left_bytes < 0:
                raise EngineNotFetched(f"{archive.name} unpacks to more than 16 GiB; refused")
            _take(member, root, stop)
    except _BROKEN as exc:
        raise EngineNotFetched(f"{archive.name} cannot be unpacked: {exc}") from exc
    except OSError as exc:
        if isinstance(exc, FileExistsError | IsADirectoryError | NotADirectoryError):
            raise EngineNotFetched(f"{archive.name} holds a name twice: {exc.filename}") from exc
        raise DiskFull(
            f"{archive.name} could not be unpacked into {folder} ({exc.strerror or exc}); free "
            "space on this device"
        ) from exc


def _of_tar(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive) as tar:
        for member in tar:
            if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                raise EngineNotFetched(
                    f"{member.name!r} in {archive.name} is neither file, folder nor link; refused"
                )
            yield _Member(
                member.name,
                member.size if member.isreg() else 0,
                lambda member=member: tar.extractfile(member),  # type: ignore[misc]
                is_folder=member.isdir(),
                is_program=bool(member.mode & 0o100),
                link=member.linkname if member.issym() else "",
                same_as=member.linkname if member.islnk() else "",
            )


def _of_zip(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as unzipped:
        for info in unzipped.infolist():
            mode = info.external_attr >> 16
            is_link = stat.S_ISLNK(mode)
            yield _Member(
                info.filename,
                info.file_size,
                lambda info=info: unzipped.open(info),  # type: ignore[misc]
                is_folder=info.is_dir(),
                is_program=bool(mode & 0o100),
                link=unzipped.read(info).decode() if is_link else "",
            )


def _take(member: _Member, root: Path, stop: threading.Event) -> None:
    target = _inside(root, root, member.name)
    if target == root:
        return
    if member.is_folder:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.link:
        _inside(root, target.parent, member.link)
        target.symlink_to(member.link)
    elif member.same_as:
        shutil.copy(_inside(root, root, member.same_as), target)
    else:
        _copy(member, target, stop)


def _inside(root: Path, base: Path, name: str) -> Path:
    """Where ``name`` leads, links that are there already followed, if that is below ``root``."""
    path = Path(os.path.realpath(base / name))
    if Path(name).is_absolute() or not path.is_relative_to(root):
        raise EngineNotFetched(f"{name!r} in the archive leads out of its folder; refused")
    return path


def _copy(member: _Member, target: Path, stop: threading.Event) -> None:
    source = member.open()
    assert source is not None  # of a file there is always one
    with source, target.open("xb") as file:
        while block := source.read(_BLOCK_BYTES):
            if stop.is_set():
                raise EngineNotFetched("unpacking was ended with the agent")
            file.write(block)
    target.chmod(0o755 if member.is_program else 0o644)
