"""What both directions of an RPC connection share: reading parts from pieces of any size.

``rpc_framing`` says what the parts are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from agents.errors import RpcFraming
from agents.rpc_commands import DEFAULT_LIMITS, Limits
from agents.rpc_events import End, Piece, Raw

_NOTHING: Final = memoryview(b"")


class Intake:
    """What was fed and not yet used: views of the last call, and a few bytes of those before."""

    __slots__ = ("_at", "_fresh", "_kept")

    def __init__(self) -> None:
        self._kept = bytearray()
        self._fresh = _NOTHING
        self._at = 0

    def add(self, data: bytes | memoryview) -> None:
        self._fresh, self._at = memoryview(data), 0

    def forget(self) -> None:
        """Let go of the caller's memory once a call is over."""
        self._fresh, self._at = _NOTHING, 0

    @property
    def kept_bytes(self) -> int:
        return len(self._kept)

    @property
    def first(self) -> int | None:
        """The next byte, which stays."""
        if self._kept:
            return self._kept[0]
        return self._fresh[self._at] if self._at < len(self._fresh) else None

    def take(self, count: int) -> bytes | memoryview | None:
        """Exactly ``count`` bytes; ``None`` keeps what there is until the same is asked again."""
        start, end = self._at, self._at + count - len(self._kept)
        self._at = min(end, len(self._fresh))
        if not self._kept and end <= len(self._fresh):
            return self._fresh[start:end]
        self._kept += self._fresh[start:end]
        if len(self._kept) < count:
            return None
        whole = bytes(self._kept)
        self._kept.clear()
        return whole

    def take_kept(self) -> bytes:
        """What an unfinished ``take`` kept."""
        whole = bytes(self._kept)
        self._kept.clear()
        return whole

    def view(self, most_bytes: int | None = None) -> memoryview:
        """What there is of the last call, uncopied. Only between two ``take``."""
        start = self._at
        end = len(self._fresh) if most_bytes is None else start + most_bytes
        found = self._fresh[start:end]
        self._at += len(found)
        return found


E = TypeVar("E")


class Parser(ABC, Generic[E]):
    """What both directions share: stages that each read one part, until a part is incomplete."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self.passthrough: str | None = None
        self._intake = Intake()
        self._events: list[E | Piece | End | Raw] = []
        self._stage = self._read_start
        self._failure: RpcFraming | None = None
        self._command = 0
        self._body_bytes = 0
        self._left_bytes = 0
        self._after_data: Callable[[], bool] = self._end

    @property
    def kept_bytes(self) -> int:
        """Bytes that wait for the rest of their part."""
        return self._intake.kept_bytes

    @property
    def is_between_messages(self) -> bool:
        """The connection could end here without cutting a message in two."""
        return not self.kept_bytes and self._stage in (self._read_start, self._pass_raw)

    def feed(self, data: bytes | memoryview) -> list[E | Piece | End | Raw]:
        """Everything that is complete with these bytes.

        Raises:
            RpcFraming: See the module; every further call raises it again.
        """
        if self._failure is not None:
            raise self._failure
        self._intake.add(data)
        try:
            while self._stage():
                pass
        except RpcFraming as exc:
            self._failure = exc
            raise
        finally:
            events, self._events = self._events, []
            self._intake.forget()
        return events

    @abstractmethod
    def _read_start(self) -> bool:
        """Read how a message begins; like every stage, false if there are too few bytes."""

    def _stream(self, count_bytes: int, then: Callable[[], bool]) -> bool:
        self._left_bytes, self._after_data = count_bytes, then
        self._stage = self._pass_data
        return True

    def _pass_data(self) -> bool:
        data = self._intake.view(self._left_bytes)
        if data:
            self._events.append(Piece(data))
            self._left_bytes -= len(data)
        if self._left_bytes:
            return False
        self._stage = self._after_data
        return True

    def _end(self) -> bool:
        self._events.append(End(self._command))
        self._stage = self._read_start
        return True

    def _give_up(self, reason: str, consumed: bytes | memoryview | None) -> bool:
        """Pass on what was consumed and all that follows."""
        self.passthrough = self.passthrough or reason
        if consumed:
            self._events.append(Raw(memoryview(consumed)))
        self._stage = self._pass_raw
        return True

    def _pass_raw(self) -> bool:
        data = self._intake.view()
        if data:
            self._events.append(Raw(data))
        return False
