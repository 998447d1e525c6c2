"""What an engine with the right backend could use on this device. No program is run to find out."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

_FOLDERS: Final = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/lib",
    "lib64",
    "lib",
    "usr/lib/wsl/lib",
    "run/opengl-driver/lib",
)


def found(
    platform: str,
    machine: str,
    environment: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
) -> list[str]:
    """``metal``, ``cuda``, ``vulkan``: those whose drivers are here.

    Args:
        platform: As in the device's facts.
        machine: Such as ``arm64``.
        environment: For ``PATH`` and ``LD_LIBRARY_PATH``.
        root: Where ``dev``, ``usr`` and ``etc`` are.
    """
    if platform == "macos":
        return ["metal"] if machine in ("arm64", "aarch64") else []
    has_cuda = (
        _is_there(root / "dev/nvidiactl")
        or shutil.which("nvidia-smi", path=environment.get("PATH", "")) is not None
        or _has_library("libcuda.so.1", environment, root)
    )
    has_vulkan = _has_library("libvulkan.so.1", environment, root) and _has_render_node(root)
    return [*(["cuda"] if has_cuda else []), *(["vulkan"] if has_vulkan else [])]


def _has_library(name: str, environment: Mapping[str, str], root: Path) -> bool:
    if any(_is_there(folder / name) for folder in _library_folders(environment, root)):
        return True
    try:
        return name.encode() in (root / "etc/ld.so.cache").read_bytes()
    except OSError:
        return False


def _library_folders(environment: Mapping[str, str], root: Path) -> Iterator[Path]:
    yield from (root / folder for folder in _FOLDERS)
    said = environment.get("LD_LIBRARY_PATH", "").split(":")
    yield from (Path(folder) for folder in said if folder)
    if prefix := environment.get("PREFIX"):
        yield Path(prefix) / "lib"


def _has_render_node(root: Path) -> bool:
    try:
        return any(path.name.startswith("renderD") for path in (root / "dev/dri").iterdir())
    except OSError:
        return False


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that we may not look into
        return False
