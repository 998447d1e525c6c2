"""A bad link on loopback: a relay whose delay, rate and moods can be changed at run time.

    python tests/lab/relay.py HOST PORT

Listens on a free port of loopback, prints it, and relays every connection to ``PORT`` of ``HOST``,
an IPv4 address; up is towards it. It is a program so that what it emulates does not wait for
whatever its starter computes, and it ends when its stdin does, so it cannot outlive its starter.
Each line on stdin is answered by one line, after it has taken effect (``lab.links`` speaks this):

    set UP_S DOWN_S UP_RATE DOWN_RATE UP_JITTER_S DOWN_JITTER_S
                 one-way delays, bytes per second of all connections together (0: no limit), and
                 how much later than its delay a piece may be, uniformly; order is kept
    hole         nothing passes; connections stay, new ones are left to the kernel
    heal         what was under way goes on as if no time had passed, all else follows
    cut          reset every connection, those not yet accepted too
    traffic      bytes that arrived up and down, connections accepted and open

What this cannot emulate: the kernels at both ends talk to the relay's, so connecting costs no round
trip, nothing is sent twice, and in a hole TCP's own keepalives are still answered.

One thread and one ``select``, since the time-outs of poll and epoll are whole milliseconds: what is
due is sent, then what has come is queued.
"""

import contextlib
import ctypes
import enum
import errno
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

STDIN = 0
READ_BYTES = 128 << 10
SHAPED_READ_BYTES = 32 << 10
LEAST_READ_BYTES = 1460
READ_S = 0.01
"""A slow link is fed in pieces that take it about so long, since a piece arrives all at once."""

MOST_QUEUED_BYTES = 4 << 20
"""Of one way of one connection: as much as a socket buffers that has tuned itself; beyond that the
sender has to wait."""

MOST_AHEAD_S = 0.05
"""What waits for a limited rate takes at most about so long; the rest stays with its sender.
So connections take turns, and one that says little does not queue behind all of another's."""

TIMER_SLACK = 29
"""``PR_SET_TIMERSLACK``: without it, every wait takes up to 50 us longer."""

Clock = Callable[[], float]


class Mark(enum.Enum):
    """What a source says last."""

    END = "end"
    RESET = "reset"


@dataclass
class Direction:
    """What all connections share that go one way."""

    delay_s: float = 0.0
    rate: float = 0.0
    jitter_s: float = 0.0
    free_s: float = 0.0
    arrived_bytes: int = 0

    @property
    def read_bytes(self) -> int:
        if self.rate:
            return min(SHAPED_READ_BYTES, max(LEAST_READ_BYTES, int(self.rate * READ_S)))
        return SHAPED_READ_BYTES if self.delay_s or self.jitter_s else READ_BYTES

    @property
    def opens_at_s(self) -> float:
        """When there is room again for what waits to be sent."""
        return self.free_s - MOST_AHEAD_S

    def due_s(self, size_bytes: int, now_s: float) -> float:
        """When the last byte of what has just come arrives at the other end."""
        sending_s = size_bytes / self.rate if self.rate else 0.0
        self.free_s = max(self.free_s, now_s) + sending_s
        late_s = random.uniform(0, self.jitter_s) if self.jitter_s else 0.0
        return self.free_s + self.delay_s + late_s


@dataclass
class Pipe:
    """One way of one connection."""

    source: socket.socket
    sink: socket.socket
    way: Direction
    queue: deque[tuple[float, memoryview | Mark]] = field(default_factory=deque)
    queued_bytes: int = 0
    has_ended: bool = False
    is_blocked: bool = False
    is_broken: bool = False
    is_reset: bool = False

    @property
    def is_done(self) -> bool:
        return self.has_ended and not self.queue

    def wait_for(
        self,
        sources: list[int | socket.socket],
        sinks: list[socket.socket],
        wakes: list[float],
        now_s: float,
    ) -> None:
        """Add what there is something to do after."""
        if self.is_blocked:
            sinks.append(self.sink)
        elif self.queue:
            wakes.append(self.queue[0][0])
        if not self.has_ended and self.queued_bytes < MOST_QUEUED_BYTES:
            if self.way.opens_at_s > now_s:
                wakes.append(self.way.opens_at_s)
            else:
                sources.append(self.source)

    def read(self, now_s: float) -> None:
        try:
            data = self.source.recv(self.way.read_bytes)
        except BlockingIOError:
            return
        except OSError:
            self._end(Mark.RESET, now_s)
            return
        if not data:
            self._end(Mark.RESET if self.is_broken else Mark.END, now_s)
            return
        self.queue.append((self.way.due_s(len(data), now_s), memoryview(data)))
        self.queued_bytes += len(data)

    def flush(self, now_s: float) -> None:
        """Pass on what is due, the end too; an ``OSError`` says that the sink is gone."""
        self.is_blocked = False
        while self.queue and self.queue[0][0] <= now_s and not self.is_blocked:
            due_s, item = self.queue.popleft()
            if item is Mark.RESET:
                self.is_reset = True
            elif item is Mark.END:
                self.sink.shutdown(socket.SHUT_WR)
            else:
                self._send(due_s, item)

    def _send(self, due_s: float, data: memoryview) -> None:
        try:
            sent = self.sink.send(data)
        except BlockingIOError:
            sent = 0
        self.way.arrived_bytes += sent
        self.queued_bytes -= sent
        if sent < len(data):
            self.queue.appendleft((due_s, data[sent:]))
            self.is_blocked = sent == 0

    def drop(self) -> None:
        """Its sink is gone: nothing more can be passed on."""
        self.has_ended = True
        self.queue.clear()

    def break_off(self, now_s: float) -> None:
        """Its source is gone: what that had still sent is read, and then comes a reset."""
        self.is_broken = True
        if self.has_ended:
            self._end(Mark.RESET, now_s)

    def _end(self, mark: Mark, now_s: float) -> None:
        self.has_ended = True
        self.queue.append((self.way.due_s(0, now_s), mark))


@dataclass
class Connection:
    """Both ways between a client and the server."""

    up: Pipe
    down: Pipe
    is_connecting: bool

    @property
    def pipes(self) -> tuple[Pipe, Pipe]:
        return self.up, self.down

    def serve(self, readable: set[object], writable: set[object], clock: Clock) -> bool:
        """Take and pass on what there is, and say whether the connection goes on."""
        if self.is_connecting and self.up.sink not in writable:
            return True
        self.is_connecting = False
        for pipe, back in ((self.up, self.down), (self.down, self.up)):
            if pipe.source in readable:
                pipe.read(clock())
            try:
                pipe.flush(clock())
            except OSError:
                pipe.drop()
                back.break_off(clock())
        is_reset = self.up.is_reset or self.down.is_reset
        if is_reset:
            self.reset()
        elif self.up.is_done and self.down.is_done:
            self.close()
        else:
            return True
        return False

    def close(self) -> None:
        self.up.source.close()
        self.up.sink.close()

    def reset(self) -> None:
        abort(self.up.source)
        abort(self.up.sink)


class Relay:
    """Accepts, shapes and forwards until stdin ends."""

    def __init__(self, host: str, port: int) -> None:
        self.target = host, port
        self.up, self.down = Direction(), Direction()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.listener.setblocking(False)
        self.connections: list[Connection] = []
        self.accepted = 0
        self.hole_began_s: float | None = None
        self.in_holes_s = 0.0
        self.unread = b""

    def clock(self) -> float:
        """Time of the link, which stands still in a hole."""
        return time.perf_counter() - self.in_holes_s

    def run(self) -> None:
        say(self.listener.getsockname()[1])
        while True:
            readable, writable = self._wait()
            if STDIN in readable:
                if not self._listen():
                    return
                continue  # what was ready may not be allowed any more
            if self.listener in readable:
                self._accept()
            self.connections = [
                c for c in self.connections if c.serve(readable, writable, self.clock)
            ]

    def _wait(self) -> tuple[set[object], set[object]]:
        if self.hole_began_s is not None:
            return set(select.select([STDIN], [], [])[0]), set()
        sources: list[int | socket.socket] = [STDIN, self.listener]
        sinks: list[socket.socket] = []
        wakes: list[float] = []
        now_s = self.clock()
        for connection in self.connections:
            if connection.is_connecting:
                sinks.append(connection.up.sink)
                continue
            for pipe in connection.pipes:
                pipe.wait_for(sources, sinks, wakes, now_s)
        timeout_s = max(0.0, min(wakes) - self.clock()) if wakes else None
        readable, writable, _ = select.select(sources, sinks, [], timeout_s)
        return set(readable), set(writable)

    def _accept(self) -> None:
        if (client := self._taken()) is None:
            return
        server = socket.socket()
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        failure = server.connect_ex(self.target)
        up, down = Pipe(client, server, self.up), Pipe(server, client, self.down)
        connection = Connection(up, down, is_connecting=failure != 0)
        if failure in (0, errno.EINPROGRESS):
            self.connections.append(connection)
        else:
            connection.reset()

    def _taken(self) -> socket.socket | None:
        try:
            client, _ = self.listener.accept()
        except (BlockingIOError, ConnectionError):
            return None
        self.accepted += 1
        return client

    def _listen(self) -> bool:
        """Obey all lines that are complete, and say whether there may be more."""
        data = os.read(STDIN, 4096)
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            say(*self._obey(*line.decode().split()))
        return bool(data)

    def _obey(self, command: str, *values: str) -> tuple[object, ...]:
        match command:
            case "set":
                self._shape(*map(float, values))
            case "hole":
                if self.hole_began_s is None:
                    self.hole_began_s = time.perf_counter()
            case "heal":
                if self.hole_began_s is not None:
                    self.in_holes_s += time.perf_counter() - self.hole_began_s
                    self.hole_began_s = None
            case "cut":
                self._cut()
            case "traffic":
                arrived = self.up.arrived_bytes, self.down.arrived_bytes
                return *arrived, self.accepted, len(self.connections)
            case _:
                raise ValueError(command)
        return ("ok",)

    def _shape(
        self,
        up_s: float,
        down_s: float,
        up_rate: float,
        down_rate: float,
        up_jitter_s: float,
        down_jitter_s: float,
    ) -> None:
        self.up.delay_s, self.up.rate, self.up.jitter_s = up_s, up_rate, up_jitter_s
        self.down.delay_s, self.down.rate, self.down.jitter_s = down_s, down_rate, down_jitter_s

    def _cut(self) -> None:
        for connection in self.connections:
            connection.reset()
        self.connections = []
        while client := self._taken():
            abort(client)


def abort(end: socket.socket) -> None:
    """Close it with a reset."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def say(*values: object) -> None:
    print(*values, flush=True)


def be_prompt() -> None:
    """Networks do not wait for a processor: real-time priority and exact timers, where allowed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(TIMER_SLACK, 1000, 0, 0, 0)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))


def main() -> None:
    be_prompt()
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        Relay(sys.argv[1], int(sys.argv[2])).run()


if __name__ == "__main__":
    main()
