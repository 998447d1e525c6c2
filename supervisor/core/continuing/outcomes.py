"""What to do about an answer whose engine ended."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Continue:
    """Ask another engine this, for the rest of the answer."""

    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Restart:
    """Nothing of the answer could be seen yet: ask another engine the same."""

    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hopeless:
    """It cannot be continued exactly."""

    reason: str
    """For people; the end of a sentence, without a full stop."""


Outcome = Continue | Restart | Hopeless


class Phase(StrEnum):
    """Whose events come."""

    FIRST = "first"
    """Those of the first engine: they go through as they are."""
    RESTARTED = "restarted"
    """The whole answer again, of which nothing could be seen yet."""
    CONTINUED = "continued"
    """The rest of the answer."""
    CLOSING = "closing"
    """An answer of one token, of which only the end is used, since no text is missing."""
