"""What is special about the GPUs of Macs: the part of the memory they get, and their patience.

Source:
    ggml reports ``recommendedMaxWorkingSetSize`` as all there is, about two thirds to three
    quarters of the memory (10.7 of 16, 107.5 of 128 GiB); ``iogpu.wired_limit_mb`` changes it.
    Time-outs of Metal: llama.cpp #8886, #20141, #22214.
"""

from typing import Final

from agents.contract import DeviceFacts, GgmlDevice
from supervisor.core.explain_words import called
from supervisor.core.memory import GIB, MIB
from supervisor.core.planning import DeviceOffer, GpuLimit, Overrides
from supervisor.core.units import gib

SMALL_MAC_BYTES: Final = 16 * GIB
GENTLE_UBATCH: Final = 256
"""Tokens at once on a small Mac: with 512, macOS has ended work of its GPU that took too long."""

KEPT_BYTES: Final = 4 * GIB
KEPT_PART: Final = 8
"""For macOS itself: the former, or one part of so many of all memory, whichever is more."""

WORTH_BYTES: Final = 512 * MIB
"""Less than this is not worth a restart of anything."""


def ubatch_cap(facts: DeviceFacts, ggml: GgmlDevice) -> int | None:
    """The most tokens at once from the first plan on, or ``None`` where nothing speaks for it."""
    is_small = 0 < facts.memory_total_bytes <= SMALL_MAC_BYTES
    return GENTLE_UBATCH if _is_mac_gpu(facts, ggml) and is_small else None


def why_gentle(offer: DeviceOffer, overrides: Overrides) -> str:
    """Why a Mac reads prompts in smaller steps from the first plan on, or nothing."""
    if not offer.is_small_mac or overrides.ubatch is not None:
        return ""
    return (
        f"as a Mac with {gib(SMALL_MAC_BYTES)} or less it computes at most {GENTLE_UBATCH} tokens "
        "at once (ubatch), since macOS ends work of a GPU that takes too long"
    )


def gpu_limit(facts: DeviceFacts, ggml: GgmlDevice) -> GpuLimit | None:
    """The limit of a Mac's GPU, if that is what keeps it from memory which the Mac has free."""
    total_bytes = facts.memory_total_bytes
    raised_mib = (total_bytes - max(KEPT_BYTES, total_bytes // KEPT_PART)) // MIB
    more_bytes = min(
        raised_mib * MIB - ggml.total_bytes, facts.memory_available_bytes - ggml.free_bytes
    )
    if not _is_mac_gpu(facts, ggml) or not ggml.total_bytes or more_bytes < WORTH_BYTES:
        return None
    return GpuLimit(
        limit_bytes=ggml.total_bytes,
        memory_bytes=total_bytes,
        free_bytes=facts.memory_available_bytes,
        raised_mib=raised_mib,
    )


def how_to_raise(name: str, limit: GpuLimit) -> str:
    """What a person may do about it; we never do."""
    return (
        f"The GPU of {called(name)} may use {gib(limit.limit_bytes)} of {gib(limit.memory_bytes)},"
        f" a limit of macOS, while {gib(limit.free_bytes)} are free: sudo sysctl"
        f" iogpu.wired_limit_mb={limit.raised_mib}, typed on that Mac, makes it"
        f" {gib(limit.raised_mib * MIB)} until the Mac restarts; start its agent anew after that."
        " We never change it ourselves."
    )


def _is_mac_gpu(facts: DeviceFacts, ggml: GgmlDevice) -> bool:
    return facts.platform == "macos" and not ggml.is_cpu
