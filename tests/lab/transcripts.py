"""What a real client and a real server say to each other, and how two such talks are compared.

A relay between them keeps the bytes; it neither knows nor changes what they mean.
"""

import contextlib
import difflib
import http.client
import io
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

_RECEIVED_BYTES: Final = 1 << 16
_HEADERS_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

_RANDOM: Final = re.compile(
    rb'("(?:id|item_id|call_id)":")((?:chatcmpl-|resp_|rs_|msg_|fc_|call_)?)([A-Za-z0-9]{32})"'
)
"""An id as llama-server makes it. Those of one function call end alike, however they begin."""
_TIMES: Final = re.compile(rb'("(?:created|created_at|completed_at)":)\d{10}(?:\.0)?(?=[,}])')
_TIMINGS: Final = re.compile(rb'"timings":\{[^{}]*\}')
_ALL_TIMINGS: Final = re.compile(r',"timings":\{[^{}]*\}')
_INDEX: Final = re.compile(r'"index":\d+')
_DURATIONS: Final = re.compile(rb'("\w+_(?:ms|per_second)":)[-+.\deE]+')
_PROGRESS: Final = re.compile(rb'("prompt_progress":\{[^{}]*"time_ms":)\d+')

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Transcript:
    """One request and its answer, without what differs from one time to the next."""

    method: str
    path: str
    status: int
    content_type: str
    parts: tuple[str, ...]
    """The events of a stream, each with its closing blank line; of others, the body."""

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def _lines(self) -> list[str]:
        head = f"{self.method} {self.path}: {self.status} {self.content_type}"
        return [head, *map(repr, self.parts)]


def without_timings(said: Sequence[Transcript]) -> list[Transcript]:
    """The same, where timings do not matter at all."""
    return [
        replace(each, parts=tuple(_ALL_TIMINGS.sub("", part) for part in each.parts))
        for each in said
    ]


def by_index(said: Sequence[Transcript]) -> list[Transcript]:
    """The same, with the answers of a stream one after the other."""
    return [replace(each, parts=tuple(sorted(each.parts, key=_index))) for each in said]


def _index(event: str) -> str:
    """Of the answer that an event belongs to; the end of all belongs to none."""
    found = _INDEX.search(event)
    return found[0] if found else "~"


def differences(one: Sequence[Transcript], other: Sequence[Transcript]) -> list[str]:
    """What only one (``-``) or only the other (``+``) has; empty: they are equal."""
    first, second = ([line for talk in talks for line in talk._lines] for talks in (one, other))
    return list(difflib.unified_diff(first, second, n=0, lineterm=""))[2:]


def normalised(body: bytes) -> bytes:
    """A body without its random ids, times and durations.

    Nothing else changes: not the order of keys, not a space, not a count. Each id becomes a number
    in the order of appearance, so that an answer with two ids is told from one with one. No text
    of a model can be taken for one of these, since its quotes are escaped.
    """
    numbers: dict[bytes, int] = {}

    def numbered(found: re.Match[bytes]) -> bytes:
        number = numbers.setdefault(found[3], len(numbers) + 1)
        return b'%b%b#%d"' % (found[1], found[2], number)

    without_ids = _RANDOM.sub(numbered, body)
    without_times = _PROGRESS.sub(rb"\g<1>0", _TIMES.sub(rb"\g<1>0", without_ids))
    return _TIMINGS.sub(lambda found: _DURATIONS.sub(rb"\g<1>0", found[0]), without_times)


def events_of(body: bytes) -> tuple[bytes, ...]:
    """A stream in its events; what follows the last blank line is one more."""
    return tuple(part for part in re.split(rb"(?<=\n\n)", body) if part)


@dataclass
class _Talk:
    """One connection and all bytes of it."""

    client: socket.socket
    server: socket.socket
    sent: bytearray = field(default_factory=bytearray)
    answered: bytearray = field(default_factory=bytearray)

    def pass_on(self) -> None:
        """Until both sides have ended. What is kept is there before the other side has it."""
        ways = {
            self.client: (self.server, self.sent),
            self.server: (self.client, self.answered),
        }
        with self.client, self.server, contextlib.suppress(OSError):
            while ways:
                for source in select.select(list(ways), [], [])[0]:
                    sink, kept = ways[source]
                    data = source.recv(_RECEIVED_BYTES)
                    kept += data
                    if data:
                        sink.sendall(data)
                    else:
                        del ways[source]
                        sink.shutdown(socket.SHUT_WR)

    def hang_up(self) -> None:
        for each in (self.client, self.server):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


class Relay:
    """Listens on loopback and passes everything on to one server."""

    def __init__(self, server_port: int) -> None:
        self._server = ("127.0.0.1", server_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._talks: list[_Talk] = []
        self._threads: list[threading.Thread] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def heard(self, act: Callable[[], T]) -> tuple[T, list[Transcript]]:
        """What ``act`` returns, and what was said meanwhile."""
        starts = [(len(talk.sent), len(talk.answered)) for talk in self._talks]
        result = act()
        talks = list(self._talks)
        starts += [(0, 0)] * (len(talks) - len(starts))
        said: list[Transcript] = []
        for talk, (sent, answered) in zip(talks, starts, strict=True):
            said += _transcripts(bytes(talk.sent[sent:]), bytes(talk.answered[answered:]))
        return result, said

    @property
    def connections(self) -> int:
        """So far."""
        return len(self._talks)

    def start(self) -> None:
        self._run(self._serve)

    def close(self) -> None:
        """Hang up on everybody."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for talk in self._talks:
            talk.hang_up()
        for thread in self._threads:
            thread.join(5)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                talk = _Talk(client, socket.create_connection(self._server))
                for each in (talk.client, talk.server):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._talks.append(talk)
                self._run(talk.pass_on)

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()


@contextlib.contextmanager
def relayed(server_port: int) -> Iterator[Relay]:
    """A relay in front of a server on this host."""
    relay = Relay(server_port)
    relay.start()
    try:
        yield relay
    finally:
        relay.close()


class _Replayed(io.BytesIO):
    """Several answers, one after the other; the reader of one must not close the next."""

    def close(self) -> None:
        pass

    def makefile(self, _: str) -> "_Replayed":
        return self


def _transcripts(sent: bytes, answered: bytes) -> list[Transcript]:
    """The requests and answers of one connection.

    Raises:
        http.client.HTTPException: An answer is not complete, or not HTTP. Of a stream, only the
            mark of its end may be missing: some clients leave as soon as they have the last event.
    """
    answers = _Replayed(answered)
    found: list[Transcript] = []
    for method, path in _requests(sent):
        answer = http.client.HTTPResponse(answers, method=method)  # type: ignore[arg-type]
        answer.begin()
        content_type = answer.getheader("content-type") or ""
        is_stream = content_type.startswith("text/event-stream")
        try:
            body = answer.read()
        except http.client.IncompleteRead as exc:
            if not (is_stream and exc.partial.endswith(b"\n\n")):
                raise
            body = exc.partial
        parts = events_of(normalised(body)) if is_stream else (normalised(body),)
        texts = tuple(part.decode() for part in parts)
        found.append(Transcript(method, path, answer.status, content_type, texts))
    return found


def _requests(sent: bytes) -> Iterator[tuple[str, str]]:
    """Method and path of each request; clients of today announce the length of their bodies."""
    at = 0
    while at < len(sent):
        end = sent.index(_HEADERS_END, at) + len(_HEADERS_END)
        method, path, _ = sent[at : sent.index(b"\r\n", at)].decode().split(" ")
        yield method, path
        length = _LENGTH.search(sent, at, end)
        at = end + (int(length[1]) if length else 0)
