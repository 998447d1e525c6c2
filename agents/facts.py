"""Facts about this device. Every reading may fail, and then is unknown instead of wrong."""

import contextlib
import logging
import os
import platform
import secrets
import time
import uuid
from pathlib import Path

from agents import (
    __version__,
    accelerators,
    cgroups,
    cores,
    host_names,
    mac_figures,
    power,
    process,
    short_commands,
)
from agents.contract import DeviceFacts, EngineFacts, GgmlDevice

try:
    import psutil
except ImportError:  # a phone without the package
    psutil = None

log = logging.getLogger(__name__)

_KIB = 1024

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


platform_name = host_names.platform_name
is_phone = host_names.is_phone
device_name = host_names.device_name


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
    return cores.read().usable


def default_threads() -> int:
    """Threads of the rpc-server: all usable cores on a computer, the fast ones on a phone."""
    return cores.threads_for(cores.read(), is_phone=is_phone())


def memory() -> tuple[int, int]:
    """Total and truly available bytes, both capped by the cgroup this process is in."""
    total, available = _meminfo() or _psutil_memory() or _mac_memory() or (0, 0)
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


def _mac_memory() -> tuple[int, int] | None:
    return mac_figures.memory() if platform_name() == "macos" else None


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
    v1, v2 = ("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")
    found = ((folder, v2 if is_v2 else v1) for folder, is_v2 in cgroups.folders("memory"))
    return [(folder / names[0], folder / names[1]) for folder, names in found]


def resident_bytes(pid: int) -> int | None:
    """Resident memory of a process of ours."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    if psutil is None:
        figures = process.mac_figures_of(pid)
        return figures.resident_bytes if figures else None
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
        figures = process.mac_figures_of(pid)
        return figures.cpu_s if figures else None
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
    if platform_name() != "macos":
        return ""
    return short_commands.output(["sysctl", "-n", "kern.bootsessionuuid"]).strip()


class FactsReader:
    """Reads the facts; what is slow to learn (battery, devices) is remembered for a while."""

    def __init__(
        self,
        agent_id: str,
        name: str,
        engine: EngineFacts | None,
        threads: int = 0,
        battery: power.BatteryReader | None = None,
        limits: power.Limits | None = None,
    ) -> None:
        """``battery`` is shared with whoever else asks for it; ``limits`` are its owner's."""
        self._agent_id = agent_id
        self._threads = threads
        self.name = name
        self.engine = engine
        self._boot_id = boot_id()
        self._agent_start = secrets.token_hex(8)
        self._battery = battery or battery_reader()
        self._limits = limits or power.Limits()
        self._condition = power.Condition()
        self._has_asked = False
        self._accelerators = accelerators.found(platform_name(), platform.machine())

    async def read(self, ggml_devices: list[GgmlDevice]) -> DeviceFacts:
        """Facts as of now, with the ggml devices that the engine reported."""
        battery = await self._look_at_battery()
        condition = self._judged(battery)
        total, available = memory()
        usable = cores.read()
        return DeviceFacts(
            agent_id=self._agent_id,
            name=self.name,
            platform=platform_name(),
            machine=platform.machine(),
            boot_id=self._boot_id,
            cores=usable.usable,
            threads=self._threads,
            memory_total_bytes=total,
            memory_available_bytes=available,
            ggml_devices=ggml_devices,
            engine=self.engine,
            battery_percent=battery.percent,
            battery_charging=battery.is_charging,
            temperature_c=battery.temperature_c,
            load_average=load_average(),
            agent_version=__version__,
            agent_start=self._agent_start,
            fast_cores=None if usable.fast is None else len(usable.fast),
            parked=condition.parked,
            derate=condition.derate,
            derate_reason=condition.derate_reason,
            accelerators=list(self._accelerators),
        )

    async def _look_at_battery(self) -> power.Battery:
        """Ask now and then. Only the first reader waits: it takes a phone seconds, and what
        happened to its rpc-server has to be told at once.
        """
        if self._has_asked:
            self._battery.refresh()
            return self._battery.last()
        self._has_asked = True
        return await self._battery.read()

    def _judged(self, battery: power.Battery) -> power.Condition:
        found = power.judge(self._condition, battery, self._limits, is_phone=is_phone())
        if bool(found.parked) != bool(self._condition.parked):
            change = "device.parked" if found.parked else "device.unparked"
            level = logging.WARNING if found.parked else logging.INFO
            log.log(level, change, extra={"reason": found.parked} if found.parked else {})
        self._condition = found
        return found


def battery_reader() -> power.BatteryReader:
    """For this platform."""
    return power.BatteryReader(platform_name(), time.monotonic)
