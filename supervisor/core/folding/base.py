"""What the folding of all APIs has in common: events come, and one answer is made of them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Final

from supervisor.core.continuing.events import data_start

Told = dict[str, Any]
"""The data of an event."""

_UNEXPECTED: Final = (LookupError, TypeError, AttributeError, ValueError, RecursionError)
"""What an event raises that has another shape than any engine's."""

_ONLY_OF_STREAMS: Final = "Invalid diff"
"""How an error begins that a whole answer cannot have: the engine compares what it has read of an
answer with what it had read at the token before."""


class Fold(ABC):
    """One streamed answer on its way to become a whole one."""

    def __init__(self) -> None:
        self.is_complete = False
        """The last event was taken."""
        self.is_exact = True
        """As far as is known by now, the answer will be what the engine would have answered. Once
        false it stays false, and the engine should be asked again without a stream."""
        self._error: Told | None = None

    def take(self, event: bytes) -> None:
        """Take one event, complete with its blank line. Comments are ignored.

        Raises:
            ValueError: It is no event of this API.
        """
        start = data_start(event)
        if start < 0:
            return
        try:
            told = json.loads(event[start:].decode())
            if "error" in told or event.startswith(b"event: error\n"):
                self._take_error(told)
            else:
                self._take(told)
        except _UNEXPECTED as exc:
            raise ValueError(f"an unexpected event: {event[:200]!r}") from exc

    def answer(self) -> tuple[int, bytes]:
        """The status of HTTP, and the JSON body.

        Raises:
            ValueError: It is not complete, or its events did not tell what they have to.
        """
        if not self.is_complete:
            raise ValueError("the stream has not ended")
        if self._error is not None:
            return _status(self._error), dumped(self._error)
        try:
            return 200, dumped(self._whole())
        except _UNEXPECTED as exc:
            raise ValueError("the stream left out a part of the answer") from exc

    @abstractmethod
    def _take(self, told: Told) -> None:
        """Take what an event says."""

    @abstractmethod
    def _whole(self) -> Told:
        """The answer, in the engine's order of keys."""

    def _take_error(self, told: Told) -> None:
        self._error = _as_error(told)
        self.is_complete = True
        if str(_inner(self._error).get("message", "")).startswith(_ONLY_OF_STREAMS):
            self.is_exact = False


def dumped(whole: Mapping[str, Any]) -> bytes:
    """As the engine writes it."""
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()


def _as_error(told: Told) -> Told:
    """The body of an error, of what an event says of it."""
    if isinstance(told.get("error"), Mapping):
        return told
    if "kind" in told:  # the gateway's own, whose type is that of the event
        error = {**told, "type": told["kind"]}
        del error["kind"]
        return {"error": error}
    return {"error": told}


def _inner(error: Told) -> Mapping[str, Any]:
    inner = error["error"]
    return inner if isinstance(inner, Mapping) else {}


def _status(error: Told) -> int:
    code = _inner(error).get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500
