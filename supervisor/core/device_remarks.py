"""What people should know of devices that may take part: heat, and Wi-Fi that saves power."""

from collections.abc import Iterable
from typing import Final

from supervisor.core.entities import Device

SLOW_WIFI_MS: Final = 20.0
"""Of a round trip. A phone was seen with 67 ms with its screen on and 328 ms with it off
(termux-packages issue 1193); a good Wi-Fi has 3 to 10.
"""


def remarks(devices: Iterable[Device]) -> tuple[str, ...]:
    """A sentence or two for each device that something is to be said of."""
    return tuple(
        sentence
        for device in devices
        for sentence in (heat_sentence(device), wifi_sentence(device))
        if sentence
    )


def heat_sentence(device: Device) -> str:
    """That a device counts as slower than it was measured, or nothing."""
    facts = device.facts
    if facts is None or facts.derate >= 1:
        return ""
    why = facts.derate_reason or "not what it was"
    return f"{device.name} is {why}: counted at {facts.derate:g} of its speed."


def wifi_sentence(device: Device) -> str:
    """That a phone's Wi-Fi saves power, which every token waits for; or nothing."""
    facts, round_trip_ms = device.facts, _round_trip_ms(device)
    if facts is None or facts.platform != "android" or round_trip_ms is None:
        return ""
    if round_trip_ms <= SLOW_WIFI_MS:
        return ""
    return (
        f"{device.name} answers after {round_trip_ms:.0f} ms, and every token waits for that: with "
        "its screen off a phone's Wi-Fi saves power; keep the screen on (dimmed), or use USB or "
        "Ethernet."
    )


def _round_trip_ms(device: Device) -> float | None:
    """Of the last launch; else as it was measured."""
    if device.round_trip_ms is not None or device.speed is None:
        return device.round_trip_ms
    return device.speed.round_trip_ms
