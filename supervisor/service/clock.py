"""The time of day, as it is written into records."""

from datetime import UTC, datetime


def timestamp() -> str:
    """Now, in ISO 8601 with milliseconds and time zone."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
