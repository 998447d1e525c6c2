"""Find the llama.cpp programs on this host and learn what they are."""

import asyncio
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from agents import environment, logfile, ports, process
from agents.contract import EngineFacts, GgmlDevice
from agents.errors import AgentError, EngineMissing, EngineUnusable
from agents.rpc_protocol import Outcome, Triple, probe

RPC_SERVER_NAMES = ("ggml-rpc-server", "rpc-server")
"""Newest first; renamed in June 2026 (llama.cpp PR 25045)."""

_COMMAND_DEADLINE_S = 20.0
_VERSION = re.compile(
    r"version: (?P<version>\S+)(?: \((?:build (?P<build>\d+), commit )?(?P<commit>\w+)\))?"
)
_DEVICE = re.compile(
    r"^\s+(?P<name>\S+): (?P<text>.*) \((?P<total>\d+) MiB, (?P<free>\d+) MiB free\)"
)
_MIB = 1024 * 1024


def candidates(
    environ: Mapping[str, str], *, explicit: Path | None = None, own_engines: Path | None = None
) -> Iterator[tuple[str, Path]]:
    """Folders that may hold the programs, with the reason to look there; the first hit wins."""
    if explicit is not None:
        yield "setting", explicit
        return
    if named := environ.get("LLAMA_CPP_BIN"):
        yield "LLAMA_CPP_BIN", Path(named)
    if own_engines is not None and own_engines.is_dir():
        for folder in sorted(own_engines.iterdir(), reverse=True):
            yield "engines folder", folder
            yield "engines folder", folder / "bin"
    yield "environment", Path(sysconfig.get_path("purelib")) / "bin"
    yield "environment", Path(sys.prefix) / "bin"
    for name in ("llama-server", *RPC_SERVER_NAMES):
        if found := shutil.which(name, path=environ.get("PATH")):
            yield "PATH", Path(found).resolve().parent
    home = Path(environ.get("HOME", "~")).expanduser()
    yield "home folder", home / "llama.cpp" / "build" / "bin"
    for prefix in ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew"):
        yield "Homebrew", Path(prefix) / "opt" / "llama.cpp" / "bin"


def discover(
    environ: Mapping[str, str], *, explicit: Path | None = None, own_engines: Path | None = None
) -> list[EngineFacts]:
    """All engines on this host, best first, without running anything.

    Raises:
        EngineMissing: ``explicit`` was given and holds no llama.cpp program.
    """
    found: dict[str, EngineFacts] = {}
    for source, folder in candidates(environ, explicit=explicit, own_engines=own_engines):
        server = folder / "llama-server"
        rpc_server = next((folder / n for n in RPC_SERVER_NAMES if (folder / n).is_file()), None)
        if not server.is_file() and rpc_server is None:
            continue
        found.setdefault(
            str(folder.resolve()),
            EngineFacts(
                folder=str(folder),
                source=source,
                llama_server=str(server) if server.is_file() else "",
                rpc_server=str(rpc_server or ""),
            ),
        )
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
            env={**environ, "GGML_NO_BACKTRACE": "1"},
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
    return replace(engine, rpc_protocol=str(triple), has_rpc=True)


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
