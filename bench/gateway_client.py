"""A client of streams that costs next to nothing: raw sockets, in a process of its own.

It reads one command per line of its input, as JSON, and answers with one line. Tokens are counted
by a mark in the bytes; nothing is parsed.
"""

import json
import selectors
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

TOKEN: Final = b'"content":"'
END: Final = b"\r\n0\r\n\r\n"
"""Of a body in chunks."""

RECEIVED_BYTES: Final = 1 << 16
SILENT_S: Final = 300.0
LITTLE_BYTES: Final = 2048
"""Receive buffer of a client that does not read; the system makes it a little larger."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A server, and what is asked of it."""

    port: int
    headers: Mapping[str, str]

    def request(self, body: Mapping[str, Any]) -> bytes:
        data = json.dumps(body).encode()
        head = {"Host": f"127.0.0.1:{self.port}", "Content-Type": "application/json"}
        lines = [f"{n}: {v}" for n, v in {**head, **self.headers}.items()]
        lines = ["POST /v1/chat/completions HTTP/1.1", *lines, f"Content-Length: {len(data)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


@dataclass
class Stream:
    """One answer that comes."""

    sock: socket.socket
    began_s: float
    tokens: int = 0
    first_s: float = 0.0
    """From the connect to the first token."""
    end_s: float = 0.0
    _tail: bytes = b""

    @classmethod
    def opened(cls, arm: Arm, body: Mapping[str, Any], buffer_bytes: int | None = None) -> "Stream":
        began_s = time.perf_counter()
        sock = socket.socket()
        if buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.settimeout(SILENT_S)
        sock.connect(("127.0.0.1", arm.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(arm.request(body))
        return cls(sock, began_s)

    def read(self) -> bool:
        """Take what there is; whether more will come.

        Raises:
            ConnectionError: The answer is an error, or has no end.
        """
        data = self.sock.recv(RECEIVED_BYTES)
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"no stream: {data[:500]!r}")
        seen = self._tail + data
        new = seen.count(TOKEN) - self._tail.count(TOKEN)
        now_s = time.perf_counter()
        if new and not self.tokens:
            self.first_s = now_s - self.began_s
        self.tokens += new
        self._tail = seen[1 - len(TOKEN) :]
        if seen.endswith(END):
            if not self.tokens:
                raise ConnectionError(f"a stream without a token: {seen[-500:]!r}")
            self.end_s = now_s
            self.sock.close()
            return False
        if not data:
            raise ConnectionError("the stream ended early")
        return True


@dataclass
class Client:
    """Its streams: those that it reads in windows, and those that it only holds."""

    reading: list[Stream] = field(default_factory=list)
    held: list[Stream] = field(default_factory=list)

    def turns(self, arms: Mapping[str, Arm], body: Mapping[str, Any], count: int) -> Any:
        """Seconds to the first token, in turn from each server, one stream at a time."""
        names, found = list(arms), {name: [0.0] * count for name in arms}
        for number in range(count):
            for name in names if number % 2 else reversed(names):
                stream = Stream.opened(arms[name], body)
                while stream.read():
                    pass
                found[name][number] = stream.first_s
        return found

    def run(self, arm: Arm, bodies: Sequence[Mapping[str, Any]]) -> Any:
        """Streams at once, from the first connect to the last end."""
        began_s = time.perf_counter()
        streams = [Stream.opened(arm, body) for body in bodies]
        _read(streams)
        took_s = max(stream.end_s for stream in streams) - began_s
        return {"tokens": sum(stream.tokens for stream in streams), "took_s": took_s}

    def start(self, arm: Arm, bodies: Sequence[Mapping[str, Any]]) -> Any:
        """Begin streams for :meth:`window`, and wait until each has a token."""
        self.reading = [Stream.opened(arm, body) for body in bodies]
        for stream in self.reading:
            while not stream.tokens:
                stream.read()
        return len(self.reading)

    def window(self, seconds: float) -> Any:
        """Tokens that come within a time; what came before does not count."""
        _read(self.reading, until_s=time.perf_counter() + 0.2)
        before = sum(stream.tokens for stream in self.reading)
        began_s = time.perf_counter()
        _read(self.reading, until_s=began_s + seconds)
        took_s = time.perf_counter() - began_s
        if any(stream.end_s for stream in self.reading):
            raise ConnectionError("a stream ended within the window")
        return {"tokens": sum(stream.tokens for stream in self.reading) - before, "took_s": took_s}

    def hold(self, arm: Arm, body: Mapping[str, Any], count: int, reads: bool) -> Any:
        """Open streams and read nothing; ``reads``: at least their kernels would."""
        buffer_bytes = None if reads else LITTLE_BYTES
        self.held += [Stream.opened(arm, body, buffer_bytes) for _ in range(count)]
        return len(self.held)

    def leave(self) -> Any:
        """Hang up on all that is open."""
        for stream in (*self.held, *self.reading):
            stream.sock.close()
        self.held, self.reading = [], []
        return 0


def _read(streams: Iterable[Stream], until_s: float | None = None) -> None:
    """Read all of them, to their ends or until a time."""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream.sock, selectors.EVENT_READ, stream)
        while selector.get_map():
            left_s = SILENT_S if until_s is None else until_s - time.perf_counter()
            if left_s <= 0:
                return
            ready = selector.select(left_s)
            if not ready and until_s is None:
                raise TimeoutError(f"nothing came for {SILENT_S} s")
            for key, _ in ready:
                # Closed streams have no descriptor any more.
                if not key.data.read():
                    selector.unregister(key.fd)


def main() -> None:
    client = Client()
    for line in sys.stdin:
        command = json.loads(line)
        if "arm" in command:
            command["arm"] = Arm(**command["arm"])
        if "arms" in command:
            command["arms"] = {name: Arm(**arm) for name, arm in command["arms"].items()}
        answer = getattr(client, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
