"""Facts about this device. Every reading may fail, and then is unknown instead of wrong."""

import asyncio
import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path

from agents import __version__, process
from agents.contract import DeviceFacts, EngineFacts, GgmlDevice

try:
    import psutil
except ImportError:  # a phone without the package
    psutil = None

_KIB = 1024
_SHORT_COMMAND_S = 5.0

STOPPED_STATES = ("T", "t")
"""Of a process that was stopped (SIGSTOP, a debugger): it does nothing until it is continued."""

_STATE_LETTERS = {
    "running": "R",
    "sleeping": "S",
    "disk-sleep": "D",
    "stopped": "T",
    "tracing-stop": "t",
    "zombie": "Z",
}


def platform_name() -> str:
    """``android`` (Termux), ``macos`` or ``linux``. Python before 3.13 says linux on Android."""
    if hasattr(sys, "getandroidapilevel") or "com.termux" in os.environ.get("PREFIX", ""):
        return "android"
    return {"darwin": "macos", "android": "android"}.get(sys.platform, "linux")


def device_name() -> str:
    """Host name; on phones, where that is ``localhost``, the model."""
    if platform_name() == "android" and (model := _output(["getprop", "ro.product.model"])):
        return re.sub(r"\W+", "-", model.strip()).strip("-").lower()
    return socket.gethostname().removesuffix(".local")


def agent_id(folder: Path) -> str:
    """UUID of this device, kept in its data folder: names and addresses change."""
    path = folder / "agent-id"
    with contextlib.suppress(OSError):
        if text := path.read_text().strip():
            return text
    new = str(uuid.uuid4())
    path.write_text(new)
    return new


def usable_cores() -> int:
    """Cores this process may use: fewer than there are, on phones and in containers."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_threads() -> int:
    """Threads of the rpc-server: all usable cores on a computer, the fast half on a phone."""
    return usable_cores() if platform_name() != "android" else max(usable_cores() // 2, 1)


def memory() -> tuple[int, int]:
    """Total and truly available bytes, both capped by the cgroup this process is in."""
    total, available = _meminfo() or _psutil_memory() or (0, 0)
    if (limit := _cgroup_room()) is not None:
        total, available = min(total, limit[0]), min(available, limit[1])
    return total, available


def _meminfo() -> tuple[int, int] | None:
    try:
        text = Path("/proc/meminfo").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines())
        total, available = (int(fields[k].split()[0]) for k in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    return total * _KIB, available * _KIB


def _psutil_memory() -> tuple[int, int] | None:
    if psutil is None:
        return None
    try:
        figures = psutil.virtual_memory()
    except Exception:  # noqa: BLE001 - psutil raises its own types, differing per platform
        return None
    return int(figures.total), int(figures.available)


def _cgroup_room() -> tuple[int, int] | None:
    """Limit and remaining bytes of the tightest memory cgroup; ``None`` without a limit."""
    rooms = []
    for limit_path, used_path in _cgroup_files():
        with contextlib.suppress(OSError, ValueError):
            limit = int(limit_path.read_text())
            if limit < 1 << 60:  # v1 writes "no limit" as a huge number, v2 as "max"
                rooms.append((limit, max(limit - int(used_path.read_text()), 0)))
    return min(rooms, key=lambda room: room[1]) if rooms else None


def _cgroup_files() -> list[tuple[Path, Path]]:
    root = Path("/sys/fs/cgroup")
    files = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        is_v2 = controllers == ""
        if not is_v2 and "memory" not in controllers.split(","):
            continue
        base = root if is_v2 else root / "memory"
        names = (
            ("memory.max", "memory.current")
            if is_v2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        folder = base / path.lstrip("/")
        for level in (folder, *folder.parents):
            if level == base.parent:
                break
            files.append((level / names[0], level / names[1]))
    return files


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process of ours."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    if psutil is None:
        return None
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except Exception:  # noqa: BLE001 - see above
        return None


def peak_resident_bytes(pid: int) -> int | None:
    """The most that a process of ours has ever had resident; macOS does not tell."""
    return _status_bytes(pid, "VmHWM:")


def file_bytes(pid: int) -> int | None:
    """The part of its resident memory that is pages of files: a mapped model, the program."""
    return _status_bytes(pid, "RssFile:")


def _status_bytes(pid: int, field: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{pid}/status").read_text().partition(field)[2].split()
        return int(words[0]) * _KIB
    return None


def cpu_seconds(pid: int) -> float | None:
    """Processor time that a process of ours has used."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    if psutil is None:
        return None
    try:
        times = psutil.Process(pid).cpu_times()
    except Exception:  # noqa: BLE001 - see above
        return None
    return float(times.user + times.system)


def process_state(pid: int) -> str:
    """What a process of ours does, as a letter of ``/proc/PID/stat``; empty if unknown."""
    if (letter := process.state_letter(pid)) or psutil is None:
        return letter
    try:
        return _STATE_LETTERS.get(str(psutil.Process(pid).status()), "")
    except Exception:  # noqa: BLE001 - see above
        return ""


def load_average() -> float | None:
    """Programs that wanted to run in the last minute; Android forbids to ask."""
    with contextlib.suppress(OSError, AttributeError):
        return round(os.getloadavg()[0], 2)
    return None


def boot_id() -> str:
    """Changes with every boot; empty where the platform does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return _output(["sysctl", "-n", "kern.bootsessionuuid"]).strip()


async def battery() -> tuple[float | None, bool | None, float | None]:
    """Percent, charging, and temperature in degrees Celsius."""
    if platform_name() == "android":
        return await _termux_battery()
    percent = charging = None
    if psutil is not None:
        with contextlib.suppress(Exception):
            if (state := psutil.sensors_battery()) is not None:
                percent, charging = float(state.percent), bool(state.power_plugged)
    return percent, charging, _temperature()


async def _termux_battery() -> tuple[float | None, bool | None, float | None]:
    """Ask Termux:API. It hangs when that app is missing or frozen, hence the time limit."""
    program = shutil.which("termux-battery-status")
    if program is None:
        return None, None, None
    output = await asyncio.to_thread(_output, [program])
    try:
        state = json.loads(output)
        charging = state.get("plugged", "UNPLUGGED") != "UNPLUGGED"
        return float(state["percentage"]), charging, float(state["temperature"])
    except (ValueError, KeyError, TypeError):
        return None, None, None


def _temperature() -> float | None:
    if psutil is None:
        return None
    try:
        groups = psutil.sensors_temperatures()
    except Exception:  # noqa: BLE001 - absent on macOS, forbidden on some phones
        return None
    return max((float(s.current) for group in groups.values() for s in group), default=None)


def _output(argv: list[str]) -> str:
    """Output of a short command, or nothing: missing, failing and hanging ones are all unknown."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_SHORT_COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


class FactsReader:
    """Reads the facts; what is slow to learn (battery, devices) is remembered for a while."""

    BATTERY_EVERY_S = 60.0

    def __init__(
        self, agent_id: str, name: str, engine: EngineFacts | None, threads: int = 0
    ) -> None:
        self._agent_id = agent_id
        self._threads = threads
        self.name = name
        self.engine = engine
        self._boot_id = boot_id()
        self._agent_start = secrets.token_hex(8)
        self._battery: tuple[float | None, bool | None, float | None] = (None, None, None)
        self._battery_read_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def read(self, ggml_devices: list[GgmlDevice]) -> DeviceFacts:
        """Facts as of now, with the ggml devices that the engine reported."""
        await self._look_at_battery()
        total, available = memory()
        percent, charging, temperature = self._battery
        return DeviceFacts(
            agent_id=self._agent_id,
            name=self.name,
            platform=platform_name(),
            machine=platform.machine(),
            boot_id=self._boot_id,
            cores=usable_cores(),
            threads=self._threads,
            memory_total_bytes=total,
            memory_available_bytes=available,
            ggml_devices=ggml_devices,
            engine=self.engine,
            battery_percent=percent,
            battery_charging=charging,
            temperature_c=temperature,
            load_average=load_average(),
            agent_version=__version__,
            agent_start=self._agent_start,
        )

    async def _look_at_battery(self) -> None:
        """Ask now and then. Only the first reader waits: it takes a phone seconds, and what
        happened to its rpc-server has to be told at once.
        """
        now = asyncio.get_running_loop().time()
        if now - self._battery_read_at < self.BATTERY_EVERY_S:
            return
        is_first = self._asking is None
        self._battery_read_at = now
        self._asking = asyncio.create_task(self._ask_battery())
        if is_first:
            await asyncio.wait({self._asking})

    async def _ask_battery(self) -> None:
        self._battery = await battery()
