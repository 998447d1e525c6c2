"""Speeds of devices and links that were never measured: careful round figures, marked as guesses.

They only have to put devices in a sensible order until ``supervisor measure`` or the idle
measurement has replaced them.

Source:
    planning.md 5: effective rates of llama.cpp on phones, Macs and PCs, as published, rounded down.
"""

from collections.abc import Mapping
from typing import Final

from supervisor.core.speed import DeviceSpeed, LinkSpeed

CPU_CORE_DECODE_BYTES_PER_S: Final = 4e9
CPU_MOST_DECODE_BYTES_PER_S: Final = 24e9
CPU_CORE_PREFILL_FLOPS: Final = 30e9
CPU_LAYER_OVERHEAD_S: Final = 40e-6

PHONE: Final = DeviceSpeed(
    decode_bytes_per_s=10e9, prefill_flops=80e9, layer_overhead_s=100e-6, is_guess=True
)
GPUS: Final[Mapping[str, DeviceSpeed]] = {
    "CUDA": DeviceSpeed(
        decode_bytes_per_s=200e9, prefill_flops=10e12, layer_overhead_s=100e-6, is_guess=True
    ),
    "MTL": DeviceSpeed(
        decode_bytes_per_s=70e9, prefill_flops=3e12, layer_overhead_s=100e-6, is_guess=True
    ),
}
OTHER_GPU: Final = DeviceSpeed(
    decode_bytes_per_s=40e9, prefill_flops=1e12, layer_overhead_s=200e-6, is_guess=True
)

TOKEN_OVERHEAD_S: Final = 0.3e-3
"""Messages and waking up, per worker and token, beyond the round trip; measured on loopback."""

LOOPBACK_RTT_S: Final = 0.1e-3
CABLE_RTT_S: Final = 0.6e-3
WIFI_RTT_S: Final = 6e-3
TAIL: Final = 2.5
"""Ninth decile of the round trip, divided by its median."""


def device_speed(ggml_device: str, platform: str, cores: int) -> DeviceSpeed:
    """A guess from the kind of device.

    Args:
        ggml_device: Name as ggml gives it: ``CPU``, ``CUDA0``, ``MTL0``, ``Vulkan0``.
        platform: ``linux``, ``macos`` or ``android``.
        cores: Usable ones.
    """
    kind = ggml_device.upper()
    if kind.startswith("CPU"):
        if platform == "android":
            return PHONE
        decode = min(CPU_CORE_DECODE_BYTES_PER_S * cores, CPU_MOST_DECODE_BYTES_PER_S)
        return DeviceSpeed(
            decode_bytes_per_s=decode,
            prefill_flops=CPU_CORE_PREFILL_FLOPS * cores,
            layer_overhead_s=CPU_LAYER_OVERHEAD_S,
            is_guess=True,
        )
    return next((speed for name, speed in GPUS.items() if kind.startswith(name)), OTHER_GPU)


def link_speed(address: str, platform: str, round_trip_s: float | None) -> LinkSpeed:
    """A guess from where a device is; a round trip that is known is used."""
    if address.startswith("127."):
        usual_s, bytes_per_s = LOOPBACK_RTT_S, 1e9
    elif platform == "android":
        usual_s, bytes_per_s = WIFI_RTT_S, 20e6
    else:
        usual_s, bytes_per_s = CABLE_RTT_S, 60e6
    rtt_s = usual_s if round_trip_s is None else round_trip_s
    return LinkSpeed(
        rtt_p50_s=rtt_s,
        rtt_p90_s=rtt_s * TAIL,
        up_bytes_per_s=bytes_per_s,
        down_bytes_per_s=bytes_per_s,
        overhead_s=TOKEN_OVERHEAD_S,
        is_guess=True,
    )
