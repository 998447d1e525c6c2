"""Where the main host finds the agent's REST API: at one named address, which may change.

A phone changes its Wi-Fi, a laptop its cable; the address that faced the main host is gone then,
and what listens there hears nothing any more.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Final

from agents import ports
from agents.errors import PortInUse
from agents.web import Web

log = logging.getLogger(__name__)

PURPOSE: Final = "the agent's REST API"
_LOOK_EVERY_S: Final = 5.0


class RestDoor:
    """One server at a time; a new one at another address when the present one's is gone."""

    def __init__(
        self,
        listener: socket.socket,
        make_server: Callable[[], Web],
        facing: Callable[[], str],
        *,
        moves: bool,
    ) -> None:
        """``facing`` finds our address towards the main host now. ``moves``: unless an operator
        chose the address.
        """
        self._listener = listener
        self._make_server = make_server
        self._facing = facing
        self._moves = moves
        self._server: Web | None = None
        self._is_ending = False

    @property
    def address(self) -> str:
        """Where it listens now."""
        return str(self._listener.getsockname()[0])

    @property
    def port(self) -> int:
        """The usual one, unless that was taken."""
        return int(self._listener.getsockname()[1])

    def end(self) -> None:
        """Let open requests end, for a moment; then :meth:`serve` returns."""
        self._is_ending = True
        if self._server is not None:
            self._server.should_exit = True

    async def serve(self) -> None:
        """Serve until :meth:`end`."""
        while not self._is_ending:
            self._server = self._make_server()
            serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
            try:
                self._listener = await self._until_moved(serving)
            finally:
                self._server.should_exit = True
                await asyncio.gather(serving, return_exceptions=True)
            if serving.done() and not serving.cancelled() and (error := serving.exception()):
                raise error

    async def _until_moved(self, serving: asyncio.Task[None]) -> socket.socket:
        """A listener at a new address; or the present one, when it is served no more."""
        while True:
            await asyncio.wait({serving}, timeout=_LOOK_EVERY_S)
            if serving.done() or self._is_ending:
                return self._listener
            if self._moves and not ports.is_own(self.address) and (new := self._elsewhere()):
                log.info("agent.moved", extra={"from": self.address, "to": new.getsockname()[0]})
                return new

    def _elsewhere(self) -> socket.socket | None:
        """At our address of now, on the same port if that is free; None without a network."""
        address = self._facing()
        if not ports.is_own(address) or address.startswith("127."):
            return None
        for port in (self.port, 0):
            with contextlib.suppress(PortInUse):
                return ports.listen(address, port, PURPOSE)
        return None
