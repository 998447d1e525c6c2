"""What the owner of a device may say about its battery, on the command line."""

import argparse
from typing import Final

from agents.power import FLOOR_PERCENT, HOT_C, TOO_HOT_C, Limits

FLOOR_HELP: Final = (
    "take no work below this while the battery does not charge (0: never mind the battery)"
)
HOT_HELP: Final = (
    "from here on a phone's battery counts as hot, and the phone as slower; "
    f"{TOO_HOT_C:g} degrees more, and it takes no work"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--battery-floor`` and ``--hot-c``."""
    default = " (default: %(default)g)"
    parser.add_argument(
        "--battery-floor",
        type=_percent,
        default=FLOOR_PERCENT,
        metavar="PERCENT",
        help=FLOOR_HELP + default,
    )
    parser.add_argument(
        "--hot-c", type=_celsius, default=HOT_C, metavar="DEGREES", help=HOT_HELP + default
    )


def limits(parsed: argparse.Namespace) -> Limits:
    """As a parsed command line says."""
    return Limits(parsed.battery_floor, parsed.hot_c)


def _percent(text: str) -> float:
    if not 0 <= float(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage from 0 to 100")
    return float(text)


def _celsius(text: str) -> float:
    if not 30 <= float(text) <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not a temperature from 30 to 60 °C")
    return float(text)
