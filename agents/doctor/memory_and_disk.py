"""Checks of the room that weights and archives need."""

import itertools
import shutil
from pathlib import Path
from typing import Final

from agents import facts
from agents.contract import Finding
from agents.doctor import reading
from agents.doctor.findings import blocks, gib, ok, unknown, warning
from agents.doctor.subject import Subject

MIB: Final = 1 << 20
GIB: Final = 1 << 30
LEAST_MEMORY_BYTES: Final = 256 * MIB
LITTLE_MEMORY_BYTES: Final = 1 * GIB
LEAST_DISK_BYTES: Final = 100 * MIB
LITTLE_DISK_BYTES: Final = 1 * GIB
"""An engine's archive takes some hundred MiB, packed and unpacked."""
ANDROID_KEEPS: Final = 0.28
"""Of what is available, for the system and its programs: it kills who takes more."""


def memory(total_bytes: int, available_bytes: int, whole_bytes: int, platform: str) -> Finding:
    """Whether there is memory for layers.

    Args:
        total_bytes: Of this device, or of the limit that its programs are under.
        available_bytes: What may really be taken now.
        whole_bytes: Of this device without any limit; 0: unknown.
        platform: Phones keep a part for themselves.
    """
    if not total_bytes:
        remedy = "python3 -m pip install psutil" if platform == "macos" else ""
        return unknown("memory", "this platform does not tell its memory", remedy)
    said = f"{gib(available_bytes)} of {gib(total_bytes)} available"
    if 0 < total_bytes < whole_bytes:
        said += f", by a limit of its control group (the device has {gib(whole_bytes)})"
    if platform == "android":
        said += f", of which {gib(available_bytes * ANDROID_KEEPS)} are left to Android"
    remedy = "close programs, or raise the limit that this one is under"
    if available_bytes < LEAST_MEMORY_BYTES:
        return blocks("memory", f"{said}: too little for a single layer of most models", remedy)
    if available_bytes < LITTLE_MEMORY_BYTES:
        return warning("memory", f"{said}: few layers fit", remedy)
    return ok("memory", said)


async def check_memory(subject: Subject) -> list[Finding]:
    total, available = facts.memory()
    whole = meminfo_bytes(reading.text_of(Path("/proc/meminfo")) or "", "MemTotal")
    available = min(available + subject.serving_bytes, total or available)
    return [memory(total, available, whole or 0, subject.platform)]


def meminfo_bytes(text: str, field: str) -> int | None:
    """A figure of ``/proc/meminfo``."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field and value.split():
            return int(value.split()[0]) * 1024
    return None


# -- swap --------------------------------------------------------------------------------------


def swap(total_bytes: int | None, used_bytes: int, *, is_compressed: bool) -> Finding:
    """Whether memory that runs out is moved to a disk, where it is too slow for weights."""
    if total_bytes is None:
        return unknown("swap", "this platform does not tell its swap")
    if not total_bytes:
        return ok("swap", "there is none")
    kind = "compressed memory (zram)" if is_compressed else "on a disk"
    said = f"{gib(used_bytes)} of {gib(total_bytes)} used, {kind}"
    if not is_compressed and used_bytes > max(total_bytes // 2, GIB):
        return warning("swap", f"{said}: memory is short already", "close programs")
    return ok("swap", said)


def macos_swap(text: str) -> tuple[int, int] | None:
    """Total and used of ``total = 2048.00M  used = 1012.50M  free = ...``."""
    found = {}
    words = text.replace("=", " ").split()
    for name, value in itertools.pairwise(words):
        if name in ("total", "used") and value.endswith("M"):
            found[name] = int(float(value[:-1]) * MIB)
    return (found["total"], found["used"]) if len(found) == 2 else None


async def check_swap(subject: Subject) -> list[Finding]:
    if subject.platform == "macos":
        said = await reading.command("sysctl", "-n", "vm.swapusage")
        figures = macos_swap(said.text)
        if figures is None:
            return [unknown("swap", said.problem or "sysctl did not tell it")]
        return [swap(*figures, is_compressed=False)]
    text = reading.text_of(Path("/proc/meminfo")) or ""
    total, free = meminfo_bytes(text, "SwapTotal"), meminfo_bytes(text, "SwapFree")
    used = (total or 0) - (free or 0)
    # Android forbids the list; there it has been compressed memory for ten years.
    devices = reading.text_of(Path("/proc/swaps"))
    is_compressed = "zram" in devices if devices is not None else subject.platform == "android"
    return [swap(total, used, is_compressed=is_compressed)]


# -- disk --------------------------------------------------------------------------------------


def disk(free_bytes: int, folder: Path) -> Finding:
    """Whether there is room for an engine, logs and weights of earlier launches."""
    said = f"{gib(free_bytes)} free for {folder}"
    if free_bytes < LEAST_DISK_BYTES:
        return blocks("disk", said, "delete files; nothing can be kept")
    if free_bytes < LITTLE_DISK_BYTES:
        return warning("disk", f"{said}: too little for engines and weights", "delete files")
    return ok("disk", said)


async def check_disk(subject: Subject) -> list[Finding]:
    def free() -> int:
        folder = subject.folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free

    return [disk(await reading.in_thread(free), subject.folder)]
