"""Holds a process to this host: whoever looks for another one is refused, and noted."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Final

_HERE: Final = ("127.0.0.1", "::1", "localhost")
_EVENTS: Final = {"socket.connect": 1, "socket.getaddrinfo": 0}
"""What is audited, and which of its arguments says where to."""


class Held:
    """Python never forgets an audit hook, so it is told when to look."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """Hosts that were looked for."""
        self.is_holding = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_holding or event not in _EVENTS:
            return
        target = arguments[_EVENTS[event]]
        if isinstance(target, str | bytes) and event == "socket.connect":
            return  # the path of a Unix socket
        host = target[0] if isinstance(target, tuple) else target
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and name not in _HERE:
            self.asked.append(str(name))
            raise PermissionError(f"{name} is not this host")


@contextlib.contextmanager
def held_to_this_host() -> Iterator[Held]:
    """Hold this process to it for as long as the block lasts."""
    held = Held()
    held.is_holding = True
    try:
        yield held
    finally:
        held.is_holding = False
