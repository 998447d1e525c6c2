"""Whether an archive holds what devices need: programs, for the right machine, that can serve."""

import threading
from pathlib import Path
from typing import Final

from agents import engine as engines
from agents.contract import EngineFacts
from agents.engine_unpack import unpack
from agents.errors import EngineUnusable, EngineWithoutRpc
from supervisor.adapters import engine_archives
from supervisor.adapters.engine_packing import TOOLS, read_header
from supervisor.core.engine_builds import Asset
from supervisor.ports import Fetched

_RPC_LIBRARY: Final = "libggml-rpc*"
_RPC_INSIDE: Final = b"GGML_RPC_DEBUG"
"""A variable that the RPC backend reads: in programs and libraries that have it built in."""
_PIECE_BYTES: Final = 1 << 20


def unpacked(fetched: Fetched, runtime: Fetched | None, half: Path, stop: threading.Event) -> Path:
    """Unpack an archive, and beside its programs the libraries that they need.

    Raises:
        EngineNotFetched: One is no archive, or holds what none of an engine holds.
        DiskFull: There is no room.
    """
    unpack(fetched.path, half / "engine", stop)
    root = engine_archives.flattened(half / "engine")
    programs = engines.programs_folder(root)
    if runtime is not None and programs is not None:
        unpack(runtime.path, half / "runtime", stop)
        for path in engine_archives.flattened(half / "runtime").iterdir():
            if not (programs / path.name).exists():
                path.rename(programs / path.name)
    return root


def checked(asset: Asset, root: Path) -> EngineFacts:
    """The engine of an unpacked archive, which holds what devices need, for the right machine.

    Raises:
        EngineUnusable, EngineWithoutRpc: It does not.
    """
    programs = engines.programs_folder(root)
    engine = engines.at_folder(programs, "engines folder") if programs else None
    if programs is None or engine is None or not engine.llama_server:
        raise EngineUnusable(f"{asset.name} holds no llama-server; it was removed")
    if not engine.rpc_server:
        raise EngineWithoutRpc(
            f"{asset.name} holds no {engines.RPC_SERVER_NAMES[0]}, so no device could serve with"
            " it; it was removed, take another release"
        )
    for path in (Path(engine.llama_server), Path(engine.rpc_server)):
        _check_machine(asset, path)
        path.chmod(0o755)  # some zip files lose that
    for name in TOOLS:
        if (programs / name).is_file():
            (programs / name).chmod(0o755)
    _check_backend(asset, root)
    return engine


def _check_machine(asset: Asset, path: Path) -> None:
    header, variant = read_header(path), asset.variant
    expected = "macho" if variant.platform == "macos" else "elf"
    is_right = header is not None and (
        header.format == expected
        and variant.machine in header.machines
        and (not header.interpreter or _is_android(header.interpreter) == _wants_android(asset))
    )
    if not is_right:
        what = "no program"
        if header is not None:
            loader = f", loader {header.interpreter}" if header.interpreter else ""
            what = f"for {header.format} {'/'.join(header.machines)}{loader}"
        raise EngineUnusable(
            f"{asset.name} should hold programs for {variant.platform} {variant.machine}, and"
            f" {path.name} is {what}; it was removed"
        )


def _is_android(interpreter: str) -> bool:
    return interpreter.startswith("/system/")


def _wants_android(asset: Asset) -> bool:
    return asset.variant.platform == "android"


def _check_backend(asset: Asset, root: Path) -> None:
    if any(path.is_file() and _fits(asset, path) for path in root.rglob(_RPC_LIBRARY)):
        return
    candidates = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    if any(_contains(path, _RPC_INSIDE) for path in candidates):
        return
    raise EngineWithoutRpc(
        f"{asset.name} has no RPC backend, neither as a library nor built in; it was removed, take"
        " another release"
    )


def _fits(asset: Asset, path: Path) -> bool:
    header = read_header(path)
    return header is not None and asset.variant.machine in header.machines


def _contains(path: Path, text: bytes) -> bool:
    before = b""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            if text in before + piece:
                return True
            before = piece[-len(text) :]
    return False
