"""What Termux:API tells of a phone's battery. It hangs when its app is missing or frozen."""

import json
from collections.abc import Mapping
from typing import Final

from agents.doctor import reading

BATTERY_PROGRAM: Final = "termux-battery-status"
LIMIT_S: Final = 5.0


def battery_from(text: str) -> tuple[float, bool] | None:
    """Percent, and whether it is plugged in."""
    try:
        state = json.loads(text)
        return float(state["percentage"]), state.get("plugged", "UNPLUGGED") != "UNPLUGGED"
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


async def battery_of(
    environ: Mapping[str, str],
) -> tuple[float | None, bool | None, str]:
    """Percent, charging, and why both are unknown."""
    said = await reading.command(BATTERY_PROGRAM, limit_s=LIMIT_S, environment=environ)
    if said.problem:
        return None, None, said.problem
    if (found := battery_from(said.text)) is None:
        return None, None, f"{BATTERY_PROGRAM} said: {said.text.strip()[:80] or 'nothing'}"
    return *found, ""
