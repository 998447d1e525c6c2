"""A slow link on loopback: a relay whose delay and rate can be changed at run time.

    python bench/planning/relay.py PORT

Listens on a free port of loopback, prints it, and relays every connection to ``PORT``. Each line on
stdin, ``UP_S DOWN_S UP_RATE DOWN_RATE`` (seconds and bytes per second, rate 0: no limit), is
answered by ``ok``; up is towards ``PORT``. It ends when stdin does, so it cannot outlive whoever
started it. One thread and one ``select``: what is due is sent, then what has come is queued.
"""

import contextlib
import ctypes
import os
import select
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field

READ_BYTES = 256 << 10
SHAPED_READ_BYTES = 32 << 10
MOST_QUEUED_BYTES = 4 << 20
"""As much as a socket buffers that has tuned itself; beyond that the sender has to wait."""

TIMER_SLACK = 29
"""``PR_SET_TIMERSLACK``: without it, every wait takes up to 50 us longer."""


@dataclass
class Direction:
    """What all connections share that go one way."""

    delay_s: float = 0.0
    rate: float = 0.0
    free_s: float = 0.0

    @property
    def is_shaped(self) -> bool:
        return self.delay_s > 0 or self.rate > 0

    def due_s(self, size_bytes: int, now_s: float) -> float:
        """When the last byte of what has just come arrives at the other end."""
        sending_s = size_bytes / self.rate if self.rate else 0.0
        self.free_s = max(self.free_s, now_s) + sending_s
        return self.free_s + self.delay_s


@dataclass
class Pipe:
    """One way of one connection."""

    source: socket.socket
    sink: socket.socket
    way: Direction
    queue: deque[tuple[float, memoryview]] = field(default_factory=deque)
    queued_bytes: int = 0
    has_ended: bool = False
    is_blocked: bool = False
    is_done: bool = False

    @property
    def wants_more(self) -> bool:
        return not self.has_ended and self.queued_bytes < MOST_QUEUED_BYTES

    @property
    def wakes_at_s(self) -> float | None:
        return self.queue[0][0] if self.queue and not self.is_blocked else None

    def read(self, now_s: float) -> None:
        size = SHAPED_READ_BYTES if self.way.is_shaped else READ_BYTES
        try:
            data = self.source.recv(size)
        except BlockingIOError:
            return
        if data:
            self.queue.append((self.way.due_s(len(data), now_s), memoryview(data)))
            self.queued_bytes += len(data)
        else:
            self.has_ended = True

    def flush(self, now_s: float) -> None:
        """Send what is due; pass the end on after the last byte."""
        self.is_blocked = False
        while self.queue and self.queue[0][0] <= now_s:
            due_s, data = self.queue[0]
            try:
                sent = self.sink.send(data)
            except BlockingIOError:
                self.is_blocked = True
                return
            self.queued_bytes -= sent
            if sent == len(data):
                self.queue.popleft()
            else:
                self.queue[0] = (due_s, data[sent:])
        if self.has_ended and not self.queue and not self.is_done:
            self.is_done = True
            self.sink.shutdown(socket.SHUT_WR)


@dataclass
class Connection:
    """Both ways between a client and the server."""

    up: Pipe
    down: Pipe

    @property
    def pipes(self) -> tuple[Pipe, Pipe]:
        return self.up, self.down

    @property
    def is_over(self) -> bool:
        return self.up.is_done and self.down.is_done

    def close(self) -> None:
        self.up.source.close()
        self.up.sink.close()


class Relay:
    """Accepts, shapes and forwards until stdin ends."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.up, self.down = Direction(), Direction()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.connections: list[Connection] = []

    def run(self) -> None:
        say(str(self.listener.getsockname()[1]))
        while True:
            readable = self._wait()
            if sys.stdin in readable and not self._obey(sys.stdin.readline()):
                return
            if self.listener in readable:
                self._accept()
            self.connections = [c for c in self.connections if self._serve(c, readable)]

    def _wait(self) -> set[object]:
        pipes = [pipe for c in self.connections for pipe in c.pipes]
        sources = [pipe.source for pipe in pipes if pipe.wants_more]
        sinks = [pipe.sink for pipe in pipes if pipe.is_blocked]
        wakes = [pipe.wakes_at_s for pipe in pipes]
        next_s = min((wake for wake in wakes if wake is not None), default=None)
        timeout_s = None if next_s is None else max(0.0, next_s - time.perf_counter())
        readable, _, _ = select.select([sys.stdin, self.listener, *sources], sinks, [], timeout_s)
        return set(readable)

    def _serve(self, connection: Connection, readable: set[object]) -> bool:
        try:
            for pipe in connection.pipes:
                if pipe.source in readable:
                    pipe.read(time.perf_counter())
                pipe.flush(time.perf_counter())
        except OSError:
            connection.close()
            return False
        if connection.is_over:
            connection.close()
        return not connection.is_over

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setblocking(False)
        self.connections.append(
            Connection(Pipe(client, server, self.up), Pipe(server, client, self.down))
        )

    def _obey(self, line: str) -> bool:
        if not line:
            return False
        up_s, down_s, up_rate, down_rate = map(float, line.split())
        self.up.delay_s, self.up.rate = up_s, up_rate
        self.down.delay_s, self.down.rate = down_s, down_rate
        say("ok")
        return True


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def be_prompt() -> None:
    """Networks do not wait for a processor: real-time priority and exact timers, where allowed."""
    ctypes.CDLL(None).prctl(TIMER_SLACK, 1000, 0, 0, 0)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))


def main() -> None:
    be_prompt()
    with contextlib.suppress(KeyboardInterrupt):
        Relay(int(sys.argv[1])).run()


if __name__ == "__main__":
    main()
