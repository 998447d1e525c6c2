"""``agent.pyz``: the agent with everything it needs, in one file for any Python 3.11 or newer.

Built from the packages that this supervisor itself runs on, so nothing is fetched. They are all
pure Python; a compiled file would be refused here rather than fail on a phone.
"""

import hashlib
import importlib.metadata
import re
import zipfile
from pathlib import Path

import agents
from agents.errors import FolderNotWritable
from supervisor.errors import BadSettings

ROOTS = ("httpx", "platformdirs", "starlette", "tenacity", "uvicorn")
"""What ``agents`` imports; their own requirements are followed, extras are not."""

# Needed below Python 3.13 or 3.11 only, and so named by a marker that may not hold for us.
_ALWAYS = ("typing-extensions",)
_NAME = re.compile(r"^[A-Za-z0-9._-]+")
_COMPILED = (".so", ".pyd", ".dylib")
_MAIN = "import sys\nfrom agents.cli import main\nsys.exit(main())\n"
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every file in the archive, so that the same packages give the same bytes."""


def build(folder: Path) -> Path:
    """Write ``agent.pyz`` into ``folder`` and return its path.

    Raises:
        BadSettings: A needed package has compiled parts.
        FolderNotWritable: It cannot be stored.
    """
    path = folder / "agent.pyz"
    temporary = folder / "agent.pyz.new"
    try:
        with temporary.open("wb") as file:
            file.write(b"#!/usr/bin/env python3\n")
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                _add(archive, "__main__.py", _MAIN.encode())
                for source, name in sorted(_files(), key=lambda pair: pair[1]):
                    _add(archive, name, source.read_bytes())
        temporary.chmod(0o755)
        temporary.replace(path)
    except OSError as exc:
        raise FolderNotWritable(f"cannot write {path}: {exc.strerror}") from exc
    return path


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)


def digest(path: Path) -> str:
    """SHA-256 of the archive, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _files() -> list[tuple[Path, str]]:
    """Source path and name in the archive of every file."""
    own = Path(agents.__file__).parent
    files = [(path, f"agents/{path.relative_to(own)}") for path in own.rglob("*.py")]
    for name in _distributions():
        distribution = importlib.metadata.distribution(name)
        for item in distribution.files or []:
            if item.is_absolute() or ".." in item.parts or item.suffix == ".pyc":
                continue
            if item.suffix in _COMPILED:
                raise BadSettings(
                    f"{name} has compiled parts ({item}); agent.pyz needs pure Python"
                )
            files.append((Path(str(distribution.locate_file(item))), str(item)))
    return files


def _distributions() -> list[str]:
    found: list[str] = []
    waiting = [*ROOTS, *_ALWAYS]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
        for requirement in requirements:
            if "extra ==" in requirement or "platform_system" in requirement:
                continue
            if match := _NAME.match(requirement):
                waiting.append(match[0].lower().replace("_", "-"))
    return found
