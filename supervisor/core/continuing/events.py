"""The events of a stream as llama-server writes them: perhaps a name, a line of data, a blank one.

Source:
    llama.cpp: ``tools/server/server-common.cpp`` (``format_oai_sse`` and its neighbours).
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

MOST_PARTIAL_BYTES: Final = 16 * 1024 * 1024

_END: Final = b"\n\n"
_DATA: Final = b"data: "
_NAMED_DATA: Final = b"\ndata: "
_TIMINGS: Final = b',"timings":{'
_COUNT: Final = re.compile(rb'"predicted_n":(\d+)')


class EventSplitter:
    """Cuts what comes from an engine into whole events, comments among them; changes no byte."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came.

        Returns:
            The events that are complete now, each with its closing blank line.

        Raises:
            ValueError: An event has no end within ``MOST_PARTIAL_BYTES``.
        """
        kept = self._kept
        # The end may have come in two halves.
        search = max(0, len(kept) - 1)
        whole: bytes | bytearray = data
        if kept:
            kept += data
            whole = kept
        events, start = [], 0
        while (end := whole.find(_END, search)) >= 0:
            search = end + len(_END)
            events.append(bytes(whole[start:search]))
            start = search
        if whole is kept:
            del kept[:start]
        else:
            kept += data[start:]
        if len(kept) > MOST_PARTIAL_BYTES:
            raise ValueError(f"an event has no end after {len(kept)} bytes")
        return events

    @property
    def rest(self) -> bytes:
        """What came of an event that is not complete."""
        return bytes(self._kept)


def data_start(event: bytes) -> int:
    """Where the JSON object of an event begins; -1: it holds none."""
    start = len(_DATA)
    if not event.startswith(_DATA):
        at = event.find(_NAMED_DATA)
        if at < 0:
            return -1
        start = at + len(_NAMED_DATA)
    return start if event.startswith(b"{", start) else -1


def split_timings(event: bytes) -> tuple[bytes, bytes]:
    """An event without its timings, and these as a JSON object; empty: it has none.

    A JSON string cannot hold the mark, since its quotes would be escaped, and the last one is that
    of the event itself. Timings hold no objects.
    """
    at = event.rfind(_TIMINGS)
    if at < 0:
        return event, b""
    end = event.find(b"}", at) + 1
    return event[:at] + event[end:], event[at + len(_TIMINGS) - 1 : end]


def tokens_in(timings: bytes) -> int | None:
    """Tokens generated so far, as told by timings."""
    found = _COUNT.search(timings)
    return int(found[1]) if found else None


def made_event(told: Mapping[str, Any], name: object = None) -> bytes:
    """An event of our own making."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(told, separators=(',', ':'))}\n\n".encode()
