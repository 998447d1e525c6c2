"""Numbers as people read them. Bytes are binary units in text and plain ``int`` in code."""

_STEP = 1024


def gib(count_bytes: int) -> str:
    """``1.5 GiB``, ``12.0 MiB``; the largest unit that keeps the number at one or more."""
    value = float(count_bytes)
    for unit in ("bytes", "KiB", "MiB"):
        if value < _STEP:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= _STEP
    return f"{value:.1f} GiB"
