"""Where the far end listens: at addresses by name, never at all of them, and never at public ones.

Networks come and go while an agent runs; what has been accepted stays.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from agents import ports
from agents.errors import PortInUse

log = logging.getLogger(__name__)

_ACCEPT_PAUSE_S: Final = 0.1
_LOOK_EVERY_S: Final = 10.0


class Listeners:
    """One listener per address. The first is given, and stays whatever becomes of its address."""

    def __init__(self, first: socket.socket, take: Callable[[socket.socket], None]) -> None:
        """``take`` gets every caller."""
        self._first = first
        self._take = take
        self._others: dict[str, tuple[socket.socket, asyncio.Task[None]]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._refused: set[str] = set()

    @property
    def port(self) -> int:
        """Of the first."""
        return int(self._first.getsockname()[1])

    @property
    def ports(self) -> dict[str, int]:
        """Port by address, of all."""
        first = str(self._first.getsockname()[0])
        others = {a: int(s.getsockname()[1]) for a, (s, _) in self._others.items()}
        return {first: self.port, **others}

    async def serve(self) -> None:
        """Accept until cancelled; then nothing listens any more."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._accept(self._first))
        finally:
            self._group = None
            self._first.close()
            for listener, _ in self._others.values():
                listener.close()

    def follow(self, addresses: Iterable[str]) -> None:
        """Listen at these besides the first, and at no others any more."""
        if self._group is None:
            return
        wanted = set(addresses) - {str(self._first.getsockname()[0])}
        for address in set(self._others) - wanted:
            listener, task = self._others.pop(address)
            task.cancel()
            listener.close()
            log.info("link.not_listening", extra={"address": address})
        self._refused &= wanted
        for address in sorted(wanted - set(self._others)):
            if (made := self._made(address)) is not None:
                self._others[address] = made, self._group.create_task(self._accept(made))
                log.info("link.listening", extra={"address": address, "port": self.ports[address]})

    async def keep_following(self, wanted: Callable[[], Awaitable[Iterable[str]]]) -> None:
        """Look now and then what addresses there are. Runs for ever."""
        while True:
            self.follow(await wanted())
            await asyncio.sleep(_LOOK_EVERY_S if self._group is not None else _ACCEPT_PAUSE_S)

    def _made(self, address: str) -> socket.socket | None:
        """At the first's port if that is free; the main host is told which it is."""
        reason = ""
        for port in (self.port, 0):
            try:
                return ports.listen(address, port, "the link")
            except PortInUse as exc:
                reason = str(exc)
        if address not in self._refused:
            self._refused.add(address)
            log.warning("link.not_listening", extra={"address": address, "reason": reason})
        return None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                caller, _ = await loop.sock_accept(listener)
            except OSError as exc:  # out of descriptors, or the caller is gone already
                log.warning("link.not_accepted", extra={"reason": str(exc)})
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            self._take(caller)
