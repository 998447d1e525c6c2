"""Archives of engines as we make them: the same files always give the same bytes."""

import errno
import gzip
import io
import os
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agents.errors import DiskFull


def flattened(folder: Path) -> Path:
    """Where the content begins: archives of releases have one folder around all they hold."""
    while True:
        inside = list(folder.iterdir())
        is_wrapped = len(inside) == 1 and inside[0].is_dir() and not inside[0].is_symlink()
        if not is_wrapped or inside[0].name in ("bin", "lib"):
            return folder
        folder = inside[0]


@dataclass(frozen=True, slots=True)
class Packed:
    """One member of an archive that we make: a file as it is or with other bytes, or a link."""

    name: str
    source: Path | None = None
    content: bytes | None = None
    link: str = ""
    is_program: bool = False


def pack(members: Iterable[Packed], target: Path) -> None:
    """Write a ``.tar.gz``; the same members give the same bytes, wherever and whenever.

    Raises:
        DiskFull: There is no room.
        OSError: ``target`` cannot be written, or a source not read.
    """
    try:
        with (
            target.open("wb") as file,
            gzip.GzipFile("", "wb", 6, file, mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as tar,
        ):
            for member in sorted(members, key=lambda m: m.name):
                _add(tar, member)
            tar.close()
            compressed.close()
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        target.unlink(missing_ok=True)
        if exc.errno == errno.ENOSPC:
            raise DiskFull(f"{target} has no room; free some space") from exc
        raise


def _add(tar: tarfile.TarFile, member: Packed) -> None:
    info = tarfile.TarInfo(member.name)
    info.mode = 0o755 if member.is_program else 0o644
    if member.link:
        info.type, info.linkname = tarfile.SYMTYPE, member.link
        tar.addfile(info)
    elif member.content is not None:
        info.size = len(member.content)
        tar.addfile(info, io.BytesIO(member.content))
    elif member.source is not None:
        with member.source.open("rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            tar.addfile(info, file)


def members_of(folder: Path) -> list[Packed]:
    """All below ``folder``, to be packed again."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found.append(Packed(name, link=str(path.readlink())))
        elif path.is_file():
            is_program = bool(path.stat().st_mode & 0o100)
            found.append(Packed(name, source=path, is_program=is_program))
    return found


def clear(folder: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
