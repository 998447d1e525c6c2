"""One file over several connections, in order.

Where each connection is slow, or the hub is far away, several bring more. The file still grows at
its end alone, so that any tool can go on with it whatever becomes of us: what came before its turn
waits in memory, at most a hundredth of the file. Nothing here tries twice: what a connection did
not bring is left to whoever writes the file.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event
from typing import Final

from agents.errors import ProjectError
from supervisor.adapters.hub_http import RemotePart
from supervisor.fetching.line import Line, NoRanges

_SHARE: Final = 500
"""Windows of a file, at least: of four connections all together hold less than a hundredth."""

LEAST_BYTES: Final = 4 << 20
"""A smaller window is not worth its two requests, and a smaller file comes soon enough."""

_MOST_BYTES: Final = 16 << 20


@dataclass(slots=True)
class Window:
    """A piece of the file that one connection brings."""

    start: int
    end: int
    brought_bytes: int = 0
    taken_bytes: int = 0
    pieces: SimpleQueue[bytes] = field(default_factory=SimpleQueue)
    """An empty one is the last."""


@dataclass(slots=True)
class Ahead:
    """The windows of a file that are on their way."""

    line: Line
    part: RemotePart
    stop: Event
    connections: int
    coming: deque[Window] = field(default_factory=deque)
    has_ranges: bool = True

    @property
    def waiting_bytes(self) -> int:
        """That came before their turn."""
        return sum(window.brought_bytes - window.taken_bytes for window in list(self.coming))

    def windows(self, start: int) -> Generator[Window]:
        """From ``start`` on, in order; as one piece what is not worth several connections."""
        size_bytes = self.part.size_bytes
        window_bytes = min(size_bytes // _SHARE, _MOST_BYTES)
        if self.connections < 2 or window_bytes < LEAST_BYTES:
            window = Window(start, size_bytes)
            window.pieces.put(b"")
            yield window
            return
        pool = ThreadPoolExecutor(self.connections, "ahead")
        try:
            while start < size_bytes or self.coming:
                while start < size_bytes and len(self.coming) < self.connections:
                    window = Window(start, min(start + window_bytes, size_bytes))
                    self.coming.append(window)
                    pool.submit(self._bring, window)
                    start = window.end
                yield self.coming[0]
                self.coming.popleft()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self.coming.clear()

    def pieces(self, window: Window) -> Iterator[bytes]:
        """What came of a window, as it comes."""
        while piece := window.pieces.get():
            window.taken_bytes += len(piece)
            yield piece

    def end_of(self, window: Window) -> int:
        """How far to fetch after its pieces; a store without ranges would send all every time."""
        return window.end if self.has_ranges else self.part.size_bytes

    def _bring(self, window: Window) -> None:
        def keep(piece: bytes) -> None:
            if self.stop.is_set():
                raise _Enough
            window.pieces.put(piece)
            window.brought_bytes += len(piece)

        try:
            self.line.stream(self.part, window.start, window.end, keep, is_part=True)
        except NoRanges:
            self.has_ranges = False
        except (ProjectError, _Enough):
            pass
        finally:
            window.pieces.put(b"")


class _Enough(Exception):
    """Nobody wants it any more."""
