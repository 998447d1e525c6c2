"""Find the llama.cpp programs on this host and learn what they are."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from agents import engine_rdma, environment, logfile, ports, privatefile, process
from agents.contract import EngineFacts, GgmlDevice
from agents.errors import AgentError, EngineMissing, EngineUnusable
from agents.rpc_protocol import Outcome, Triple, probe

RPC_SERVER_NAMES = ("ggml-rpc-server", "rpc-server")
"""Newest first; renamed in June 2026 (llama.cpp PR 25045)."""

FACTS_FILE = "engine.json"
"""Beside the programs that we unpacked: the names of their release and variant."""

IN_USE_FILE = "in-use"
"""In a folder of engines: which one this host was told to use."""

HALF_SUFFIX = ".new"
"""Of a folder that is still being unpacked, or that did not prove itself."""

SHORTEST_COMMIT = 7
"""git abbreviates a commit to that many characters or more, as the repository needs."""

_COMMAND_DEADLINE_S = 20.0
_VERSION = re.compile(
    r"version: (?P<version>\S+)(?: \((?:build (?P<build>\d+), commit )?(?P<commit>\w+)\))?"
)
_DEVICE = re.compile(
    r"^\s+(?P<name>\S+): (?P<text>.*) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)"
)
_RELEASE = re.compile(r"b\d+")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Names:
    """What the programs that we unpacked cannot say of themselves."""

    release: str = ""
    variant: str = ""
    build: str = ""
    """As the main host called it; rpc-server alone has no word for it."""


@dataclass(frozen=True, slots=True)
class InUse:
    """The engine that this host was told to use, and the one before, as folders of programs."""

    folder: str
    before: str = ""

    @classmethod
    def read(cls, file: Path) -> "InUse | None":
        """What was written last; None if nothing was, or nothing that can be read."""
        try:
            found = json.loads(file.read_text())
            return cls(str(found["folder"]), str(found.get("before", "")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, file: Path) -> None:
        """Remember it, all or nothing.

        Raises:
            OSError: No permission, or a full disk.
        """
        text = json.dumps({"folder": self.folder, "before": self.before})
        privatefile.write(file, text)


def candidates(
    environ: Mapping[str, str], *, explicit: Path | None = None, own_engines: Path | None = None
) -> Iterator[tuple[str, Path]]:
    """Folders that may hold the programs, with the reason to look there; the first hit wins."""
    if explicit is not None:
        yield "setting", explicit
        return
    if named := environ.get("LLAMA_CPP_BIN"):
        yield "LLAMA_CPP_BIN", Path(named)
    if own_engines is not None:
        if (told := InUse.read(own_engines / IN_USE_FILE)) is not None:
            yield "main host", Path(told.folder)
        for folder in installed(own_engines):
            yield "engines folder", folder
    yield "environment", Path(sysconfig.get_path("purelib")) / "bin"
    yield "environment", Path(sys.prefix) / "bin"
    for name in ("llama-server", *RPC_SERVER_NAMES):
        if found := shutil.which(name, path=environ.get("PATH")):
            yield "PATH", Path(found).resolve().parent
    home = Path(environ.get("HOME", "~")).expanduser()
    yield "home folder", home / "llama.cpp" / "build" / "bin"
    for prefix in ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew"):
        yield "Homebrew", Path(prefix) / "opt" / "llama.cpp" / "bin"


def installed(own_engines: Path) -> list[Path]:
    """Folders of programs below one that is ours, the newest build first; none half unpacked."""
    try:
        names = sorted((entry.name for entry in own_engines.iterdir()), key=_in_order, reverse=True)
    except OSError:
        return []
    whole = (name for name in names if not name.startswith(".") and not name.endswith(HALF_SUFFIX))
    found = (programs_folder(own_engines / name) for name in whole)
    return [folder for folder in found if folder is not None]


def _in_order(name: str) -> list[tuple[int, str]]:
    """So that b9999 comes before b10000."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def programs_folder(root: Path) -> Path | None:
    """The folder of the programs in an unpacked archive: itself, or at most two below."""
    for folders in ([root], sorted(root.glob("*")), sorted(root.glob("*/*"))):
        for folder in folders:
            if any((folder / name).is_file() for name in ("llama-server", *RPC_SERVER_NAMES)):
                return folder
    return None


def at_folder(folder: Path, source: str) -> EngineFacts | None:
    """The engine of a folder, without running anything; None if it holds no program."""
    server = folder / "llama-server"
    rpc_server = next((folder / n for n in RPC_SERVER_NAMES if (folder / n).is_file()), None)
    if not server.is_file() and rpc_server is None:
        return None
    names = _names(folder)
    return EngineFacts(
        folder=str(folder),
        source=source,
        llama_server=str(server) if server.is_file() else "",
        rpc_server=str(rpc_server or ""),
        build="" if server.is_file() else names.build,
        release=names.release,
        variant=names.variant,
    )


def write_names(folder: Path, names: Names) -> None:
    """Say beside the programs what they are.

    Raises:
        OSError: No permission, or a full disk.
    """
    privatefile.write(folder / FACTS_FILE, json.dumps(asdict(names)))


def _names(folder: Path) -> Names:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = json.loads((folder / FACTS_FILE).read_text())
        return Names(*(str(found.get(key, "")) for key in ("release", "variant", "build")))
    return Names()


def is_release(build: str) -> bool:
    """Whether that is the name of an upstream release, as ``b10516``; else it is a commit."""
    return _RELEASE.fullmatch(build) is not None


def is_called(engine: EngineFacts, build: str) -> bool:
    """Whether an inspected engine is of the build that operators call so."""
    if is_release(build):
        return engine.release == build
    short, long = sorted((engine.build, build), key=len)
    is_long = len(short) >= SHORTEST_COMMIT
    return bool(short) and (short == long or (is_long and long.startswith(short)))


def name_of(engine: EngineFacts) -> str:
    """What operators call its build."""
    return engine.release or engine.build


def discover(
    environ: Mapping[str, str], *, explicit: Path | None = None, own_engines: Path | None = None
) -> list[EngineFacts]:
    """All engines on this host, best first, without running anything.

    Raises:
        EngineMissing: ``explicit`` was given and holds no llama.cpp program.
    """
    found: dict[str, EngineFacts] = {}
    for source, folder in candidates(environ, explicit=explicit, own_engines=own_engines):
        if (engine := at_folder(folder, source)) is not None:
            found.setdefault(str(folder.resolve()), engine)
    if explicit is not None and not found:
        raise EngineMissing(
            f"{explicit} holds neither llama-server nor {RPC_SERVER_NAMES[0]}; "
            "give the folder of a llama.cpp build made with -DGGML_RPC=ON"
        )
    return list(found.values())


async def run(argv: list[str], environ: Mapping[str, str]) -> tuple[int, str]:
    """Run a short command to its end; returns exit status and all its output.

    Raises:
        EngineUnusable: It cannot be executed, or does not end within 20 seconds.
    """
    try:
        running = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment.for_engine(environ, {"GGML_NO_BACKTRACE": "1"}),
        )
    except OSError as exc:
        raise EngineUnusable(f"{argv[0]} cannot be run here: {exc.strerror or exc}") from exc
    try:
        async with asyncio.timeout(_COMMAND_DEADLINE_S):
            output, _ = await running.communicate()
    except TimeoutError as exc:
        raise EngineUnusable(f"{argv[0]} did not end within {_COMMAND_DEADLINE_S:g} s") from exc
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    return running.returncode or 0, output.decode(errors="replace")


async def inspect(engine: EngineFacts, environ: Mapping[str, str]) -> EngineFacts:
    """Run the programs to learn version, RPC support and protocol; never raises.

    The protocol triple comes from a HELLO with a short-lived rpc-server on loopback: no program
    prints it, and the number compiled in is the only one that counts.
    """
    try:
        engine = await _with_version(engine, environ)
        if engine.llama_server and not await _supports_rpc(engine.llama_server, environ):
            problem = f"{engine.llama_server} was built without RPC; rebuild with -DGGML_RPC=ON"
            return replace(engine, problem=problem, problem_code="engine_without_rpc")
        if not engine.rpc_server:
            problem = f"{engine.folder} holds no {RPC_SERVER_NAMES[0]}; rebuild with -DGGML_RPC=ON"
            return replace(engine, problem=problem, problem_code="engine_without_rpc")
        triple = await measure_protocol(engine, environ)
    except AgentError as exc:
        return replace(engine, problem=str(exc), problem_code=exc.code)
    with_rdma = await asyncio.to_thread(engine_rdma.has_rdma, engine.rpc_server)
    return replace(engine, rpc_protocol=str(triple), has_rpc=True, has_rdma=with_rdma)


async def _with_version(engine: EngineFacts, environ: Mapping[str, str]) -> EngineFacts:
    """Only llama-server has a version flag; without one the build stays unknown."""
    if not engine.llama_server:
        return engine
    status, output = await run([engine.llama_server, "--version"], environ)
    match = _VERSION.search(output)
    if match is None:
        last = (output.strip().splitlines() or ["no output"])[-1]
        raise EngineUnusable(f"{engine.llama_server} --version failed (status {status}): {last}")
    return replace(engine, version=match["version"], build=match["commit"] or match["version"])


async def release_told(engine: EngineFacts, environ: Mapping[str, str]) -> str:
    """The release that llama-server says it is of, as ``b10516``; empty if it does not say.

    The number counts the commits of the repository that it was built in; without one, or in a
    shallow one, that is 0 or 1.

    Raises:
        EngineUnusable: It cannot be executed.
    """
    if not engine.llama_server:
        return ""
    _, output = await run([engine.llama_server, "--version"], environ)
    match = _VERSION.search(output)
    number = (match["build"] or match["version"]) if match else ""
    return f"b{number}" if number.isdigit() and int(number) > 1 else ""


async def _supports_rpc(llama_server: str, environ: Mapping[str, str]) -> bool:
    # An empty endpoint cannot be connected to, so this ends at once on every build.
    _, output = await run([llama_server, "--rpc", "", "--list-devices"], environ)
    return "RPC not supported" not in output and "invalid argument: --rpc" not in output


async def measure_protocol(engine: EngineFacts, environ: Mapping[str, str]) -> Triple:
    """Start the engine's rpc-server on loopback for a moment and HELLO it.

    Raises:
        EngineUnusable: It did not answer.
    """
    reservation = ports.reserve("127.0.0.1")
    port = reservation.port
    argv = [engine.rpc_server, "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    with tempfile.TemporaryDirectory(prefix="rpc-hello-") as folder:
        log_path = Path(folder) / "rpc-server-0.log"
        env = environment.for_engine(environ, {"GGML_NO_BACKTRACE": "1"})
        child = await process.spawn("rpc-server", argv, log_path=log_path, environment=env)
        try:
            result = await _hello(child, port)
        finally:
            await child.stop(grace_s=2)
            reservation.release()
        if result is None:
            last = (logfile.tail(log_path, 1) or ["no output"])[0]
            raise EngineUnusable(f"{engine.rpc_server} does not answer HELLO: {last}")
        return result


async def _hello(child: process.Child, port: int) -> Triple | None:
    for _ in range(100):
        result = await probe("127.0.0.1", port, deadline_s=2)
        if result.outcome is Outcome.READY:
            return result.triple
        if child.exit_status is not None:
            return None
        await asyncio.sleep(0.02)
    return None


async def ggml_devices(engine: EngineFacts, environ: Mapping[str, str]) -> list[GgmlDevice]:
    """Devices that ``ggml-rpc-server`` would offer, with the names of this host.

    An unknown ``-d`` name makes it print the list and end. Without accelerators it serves the
    CPU, otherwise everything but the CPU, which is also what is returned here.
    """
    _, output = await run([engine.rpc_server, "-d", "?"], environ)
    found = [
        GgmlDevice(m["name"], m["text"], int(m["total"]) * _MIB, int(m["free"]) * _MIB)
        for m in map(_DEVICE.match, output.splitlines())
        if m is not None
    ]
    accelerators = [d for d in found if not d.is_cpu and d.name.upper() not in ("BLAS", "ACCEL")]
    return accelerators or [device for device in found if device.is_cpu]


def inherited() -> dict[str, str]:
    """A copy of our own environment, the one place where an agent reads it."""
    return dict(os.environ)
