"""One end of a link: frames over TLS, heartbeats, and the decision that the other end is gone.

Both ends send BEAT on a timer of their own, never as an answer, so that bulk data that fills one
direction cannot delay the sign of life in the other. A BEAT carries back the last one's time,
which gives the round trip.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from agents.errors import LinkFraming, LinkLost, ProjectError
from agents.link_frames import (
    HEADER_BYTES,
    MOST_FRAME_BYTES,
    Frame,
    Kind,
    header,
    pack_beat,
    read_beat,
    read_frame,
)

log = logging.getLogger(__name__)

BEATS_PER_SILENCE: Final = 5
_LONGEST_BEAT_S: Final = 1.0
ROUND_TRIPS: Final = 3
"""The other end is not called silent before so many round trips."""

_BUFFER_BYTES: Final = MOST_FRAME_BYTES + (256 << 10)
_WRITE_HIGH_BYTES: Final = 1 << 20
"""More than this unsent stops whoever writes; less than a second on a slow Wi-Fi."""


class LinkStream(asyncio.BufferedProtocol):
    """Frames in, frames out. The owner gets each frame, and is told once why the link ended."""

    def __init__(
        self,
        on_frame: Callable[[Frame], None],
        on_end: Callable[[ProjectError], None],
        on_room: Callable[[], None] = lambda: None,
        on_made: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_room`` is called when a full link takes data again."""
        self._on_frame = on_frame
        self._on_end = on_end
        self._on_room = on_room
        self._on_made = on_made
        self._loop = asyncio.get_running_loop()
        self._buffer = memoryview(b"")
        self._start = self._end = 0
        self._transport: asyncio.Transport | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._heard_at_s = self._beat_at_s = self._loop.time()
        self._peer_beat = (0, 0)
        self._silence_s = 0.0
        self._is_paused = False
        self.is_full = False
        self.is_over = False
        self.round_trip_s: float | None = None
        self.shortest_round_trip_s: float | None = None
        self.sent_bytes = 0
        self.received_bytes = 0

    def belong_to(
        self,
        on_frame: Callable[[Frame], None],
        on_end: Callable[[ProjectError], None],
        on_room: Callable[[], None],
    ) -> None:
        """From now on somebody else is told."""
        self._on_frame, self._on_end, self._on_room = on_frame, on_end, on_room

    # -- sending ---------------------------------------------------------------------------

    def send(
        self, kind: Kind, body: bytes | bytearray | memoryview = b"", *, head: bytes = b""
    ) -> None:
        """One frame of ``head`` and ``body``; what is said after the end is lost."""
        if self._transport is None or self.is_over:
            return
        size_bytes = len(head) + len(body)
        start = header(kind, size_bytes) + head
        self.sent_bytes += HEADER_BYTES + size_bytes
        if len(body) < 1 << 14:
            self._transport.write(start + body)
        else:
            self._transport.write(start)
            # Copied, since asyncio may keep what it cannot send yet, and views are reused.
            self._transport.write(bytes(body))

    def start_beating(self, silence_s: float) -> None:
        """From now on, end the link when the other end says nothing for ``silence_s`` seconds."""
        self._silence_s = silence_s
        self._heard_at_s = self._loop.time()
        self._beat()

    @property
    def limit_s(self) -> float:
        """How long the other end may be silent now."""
        return max(self._silence_s, ROUND_TRIPS * (self.shortest_round_trip_s or 0.0))

    @property
    def silent_s(self) -> float:
        return self._loop.time() - self._heard_at_s

    def _beat(self) -> None:
        now_s, pause_s = (
            self._loop.time(),
            min(self._silence_s / BEATS_PER_SILENCE, _LONGEST_BEAT_S),
        )
        # While we did not run ourselves, nobody was silent: what came is still in the socket.
        late_s = max(now_s - self._beat_at_s - pause_s, 0.0)
        self._heard_at_s = min(self._heard_at_s + late_s, now_s)
        self._beat_at_s = now_s
        if self._is_paused:
            self._heard_at_s = now_s  # it is we who do not listen
        if now_s - self._heard_at_s >= self.limit_s:
            self.end(LinkLost(f"silent for {now_s - self._heard_at_s:.1f} s"))
            return
        now_ns = time.monotonic_ns()
        peer_ns, came_ns = self._peer_beat
        self.send(Kind.BEAT, pack_beat(now_ns, peer_ns, now_ns - came_ns if peer_ns else 0))
        self._beating = self._loop.call_later(pause_s, self._beat)

    def _hear_beat(self, body: memoryview) -> None:
        now_ns = time.monotonic_ns()
        peer_ns, own_ns, held_ns = read_beat(body)
        self._peer_beat = (peer_ns, now_ns)
        if own_ns:
            self.round_trip_s = max(now_ns - own_ns - held_ns, 0) / 1e9
            # That of the link: a beat behind megabytes of weights takes seconds, and says nothing
            # about how long the other end, which beats by itself, may be silent.
            before_s = self.shortest_round_trip_s
            self.shortest_round_trip_s = min(self.round_trip_s, before_s or self.round_trip_s)

    # -- the end ---------------------------------------------------------------------------

    def end(self, error: ProjectError) -> None:
        """Cut the link and tell the owner why, once."""
        if self.is_over:
            return
        self.is_over = True
        if self._beating is not None:
            self._beating.cancel()
        self._buffer, self._start, self._end = memoryview(b""), 0, 0
        if self._transport is not None:
            # Not close(): a peer that is gone would never answer TLS's goodbye.
            self._transport.abort()
        self._on_end(error)

    def finish(self, error: ProjectError) -> None:
        """End after what was sent has left, within moments."""
        transport = self._transport
        if transport is None or self.is_over:
            return
        transport.close()
        self._loop.call_later(1.0, self.end, error)

    # -- asyncio's side --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.is_over:
            transport.abort()
            return
        transport.set_write_buffer_limits(_WRITE_HIGH_BYTES)
        self._heard_at_s = self._loop.time()
        self._on_made()

    def get_buffer(self, sizehint: int) -> memoryview:
        if not self._buffer:
            # Not before: a far end makes a stream for every caller, and hardly any of a flood gets
            # so far.
            self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        return self._buffer[self._end :]

    def buffer_updated(self, count: int) -> None:
        self._end += count
        self.received_bytes += count
        self._heard_at_s = self._loop.time()
        try:
            self._read_frames()
        except ProjectError as exc:
            # Its frames would keep this stream in memory until they are collected.
            self.end(exc.with_traceback(None))
        except Exception as exc:
            log.exception("link.bug")
            self.end(LinkFraming(f"internal error: {exc!r}; please report it"))

    def _read_frames(self) -> None:
        while not self.is_over:
            frame = read_frame(self._buffer[self._start : self._end])
            if frame is None:
                break
            self._start += HEADER_BYTES + len(frame.body)
            if frame.kind is Kind.BEAT:
                self._hear_beat(frame.body)
            else:
                self._on_frame(frame)
        if self.is_over:
            return
        left_bytes = self._end - self._start
        if self._start and (left_bytes == 0 or self._end > MOST_FRAME_BYTES // 2):
            self._buffer[:left_bytes] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, left_bytes

    def pause_reading(self) -> None:
        if self._transport is not None and not self.is_over and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self.is_over and self._is_paused:
            self._is_paused = False
            self._heard_at_s = self._loop.time()
            self._transport.resume_reading()

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._on_room()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(
            LinkLost(f"the connection was closed ({exc})" if exc else "the connection was closed")
        )
