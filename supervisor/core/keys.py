"""API keys: what is known of one, and how often its owner may call."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import Field

from supervisor.core.callers import Caller, Scope
from supervisor.core.entities import FrozenModel, Seconds

WINDOW_S: Final = 60.0
"""Of the limit on requests per minute: any minute, not one of the clock's."""

_MOST_PER_MINUTE: Final = 100_000
"""The times of so many requests are kept, 3 MiB; more is no limit worth the name."""

USAGE_FIELDS: Final = frozenset(("requests", "prompt_tokens", "generated_tokens", "last_used_at"))
"""Of an :class:`ApiKey`: what changes after it was made."""

KeylessLoopback = Literal["all", "v1", "none"]
"""What whoever is on this host may do without a key: all, use the gateway, or nothing."""


class KeyWanted(FrozenModel):
    """What a new key is to be good for. ``None`` is no limit."""

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,62}$", examples=["alice"])
    scopes: tuple[Scope, ...] = Field(default=(Scope.INFERENCE,), min_length=1)
    requests_per_minute: int | None = Field(default=None, ge=1, le=_MOST_PER_MINUTE)
    concurrent: int | None = Field(
        default=None,
        ge=1,
        le=_MOST_PER_MINUTE,
        description="requests open at once, queued ones too",
    )
    wait_s: Seconds | None = Field(
        default=None, description="the longest that a request may wait for its deployment"
    )


class ApiKey(KeyWanted):
    """A key without its text, which nobody can know again, and what it was used for."""

    shown: str = Field(description="how its text begins, to recognise it by")
    created_at: str
    requests: int = Field(default=0, ge=0, description="that the gateway answered, or could not")
    prompt_tokens: int = Field(default=0, ge=0)
    generated_tokens: int = Field(default=0, ge=0)
    last_used_at: str = Field(default="", description="for anything; empty: never")

    def caller(self) -> Caller:
        """Whoever shows it."""
        return Caller(
            self.name,
            frozenset(self.scopes),
            self.requests_per_minute,
            self.concurrent,
            self.wait_s,
        )


@dataclass(slots=True)
class Limiter:
    """Counts the requests of one caller. Times are in seconds, of any clock that only goes on."""

    per_minute: int | None = None
    concurrent: int | None = None
    open: int = 0
    _entered_s: deque[float] = field(default_factory=deque)

    def recent(self, now_s: float) -> int:
        """Requests that came within the last minute."""
        while self._entered_s and self._entered_s[0] <= now_s - WINDOW_S:
            self._entered_s.popleft()
        return len(self._entered_s)

    def wait_s(self, now_s: float) -> float:
        """How long until one more may come; 0: now. That none is open is not waited for."""
        if self.per_minute is None or self.recent(now_s) < self.per_minute:
            return 0.0
        return self._entered_s[0] + WINDOW_S - now_s

    @property
    def is_full(self) -> bool:
        """Whether as many are open as may be."""
        return self.concurrent is not None and self.open >= self.concurrent

    def enter(self, now_s: float) -> None:
        """One more has come; the caller has asked whether it may."""
        self.open += 1
        if self.per_minute is not None:
            self._entered_s.append(now_s)

    def leave(self) -> None:
        """One of those that came has ended."""
        self.open -= 1
