"""Whether a device needs to be measured, and whether it may be done now without being asked."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from agents.contract import DeviceFacts
from supervisor.core.entities import Device
from supervisor.core.measurements import DeviceMeasured, LinkMeasured, why_stale
from supervisor.core.wires import chosen_far

LEAST_BATTERY_PERCENT: Final = 30.0
MOST_TEMPERATURE_C: Final = 60.0
"""A hotter device is slower than usual, and a measurement would make it hotter."""


@dataclass(frozen=True, slots=True)
class Known:
    """Everything that was measured so far."""

    devices: tuple[DeviceMeasured, ...] = ()
    links: tuple[LinkMeasured, ...] = ()


def why_needed(device: Device, known: Known, now: datetime, keeps: timedelta) -> str:
    """Why a device has to be measured, or nothing: all that it offers was, and the link to it."""
    facts = device.facts
    if facts is None or facts.engine is None:
        return ""
    names = {ggml.name for ggml in facts.ggml_devices}
    measured = [m for m in known.devices if m.agent_id == device.id and m.ggml_device in names]
    links = [link for link in known.links if link.agent_id == device.id]
    if missing := sorted(names - {m.ggml_device for m in measured}):
        return f"{', '.join(missing)} was never measured"
    if names and not links:
        return "the link to it was never measured"
    engine = facts.engine
    stale = [
        why_stale(
            found.taken_at,
            now,
            keeps=keeps,
            build=(found.engine_build, engine.build),
            protocol=(found.rpc_protocol, engine.rpc_protocol),
        )
        for found in measured
    ]
    far = chosen_far(device)
    stale += [why_stale(each.taken_at, now, keeps=keeps, far=(each.far, far)) for each in links]
    return next((reason for reason in stale if reason), "")


def why_not_now(device: Device, *, most_load: float) -> str:
    """Why a device is better left alone at this moment, or nothing. Unknown figures are fine.

    Args:
        device: With its last facts.
        most_load: Programs that may want to run, per core: a busy device is measured too slow.
    """
    facts = device.facts
    if facts is None:
        return "nothing is known of it"
    if why := _power(facts):
        return why
    if facts.load_average is not None and facts.load_average > most_load * facts.cores:
        return f"it is busy: {facts.load_average:.1f} programs want to run on {facts.cores} cores"
    return ""


def _power(facts: DeviceFacts) -> str:
    if facts.battery_charging is False:
        return "it runs on battery"
    if facts.battery_percent is not None and facts.battery_percent < LEAST_BATTERY_PERCENT:
        return f"its battery is at {facts.battery_percent:.0f} %"
    if facts.temperature_c is not None and facts.temperature_c > MOST_TEMPERATURE_C:
        return f"it is {facts.temperature_c:.0f} degrees hot"
    return f"it is {facts.derate_reason or 'slower than usual'}" if facts.derate < 1 else ""
