"""Who calls, and what a caller may do."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

CALLER: Final = "supervisor.caller"
"""Key of the ASGI scope under which the edge puts the :class:`Caller` of a request."""


class Scope(StrEnum):
    """What a key is good for. ``admin`` includes the others."""

    INFERENCE = "inference"
    """Routes of the gateway."""
    READ = "read"
    """Looking at everything else."""
    ADMIN = "admin"
    """Changing it, and requests that reach beyond the model."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever sent a request. ``None`` is no limit."""

    name: str
    """Of the key; "local" without one, on this host."""
    scopes: frozenset[Scope] = field(default=frozenset(Scope))
    requests_per_minute: int | None = None
    concurrent: int | None = None
    wait_s: float | None = None
    """The longest that a request may wait for its deployment."""

    def may(self, scope: Scope) -> bool:
        """Whether this is allowed to it."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


LOCAL: Final = Caller("local")
"""Somebody on this host, without a key."""
