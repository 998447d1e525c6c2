"""Numbers and lists as an explanation says them: no more digits than a prediction is worth."""

from collections.abc import Sequence

from supervisor.core.planning import HOST

MOST_NAMES = 8
"""Longer lists of devices are cut."""


def rate(tokens_per_s: float) -> str:
    """``0.92``, ``9.0``, ``143``: two that differ by three hundredths never look the same."""
    digits = 2 if tokens_per_s < 1 else 1 if tokens_per_s < 40 else 0
    return f"{tokens_per_s:.{digits}f}"


def duration(seconds: float) -> str:
    """``0.26 ms``, ``79 ms``, ``1.1 seconds``, ``3 minutes``, ``2.5 hours``."""
    if seconds < 1:
        count_ms = seconds * 1000
        return f"{count_ms:.0f} ms" if count_ms >= 9.95 else f"{count_ms:.2g} ms"
    if seconds < 120:
        return f"{seconds:.{0 if seconds >= 9.95 else 1}f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def called(name: str) -> str:
    """A device's name, or ``the main host``."""
    return f"the {name}" if name == HOST else name


def listed(names: Sequence[str], last: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    found = [called(name) for name in names]
    if len(found) > MOST_NAMES:
        found = [*found[: MOST_NAMES - 1], f"{len(found) - MOST_NAMES + 1} more"]
    return f" {last} ".join(part for part in (", ".join(found[:-1]), found[-1]) if part)


def capital(sentence: str) -> str:
    """The same with a capital, unless it begins with the name of a device."""
    return f"T{sentence[1:]}" if sentence.startswith(f"the {HOST}") else sentence
