"""Drives ``relay.py``, which stands for a bad link to something that listens."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

RELAY = Path(__file__).parent / "relay.py"
ANSWER_S = 10.0
GRACE_S = 2.0

PerWay = float | tuple[float, float]
"""One value for both ways, or that of the way up, towards the target, and that of the way down."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a link treats what passes; see ``Link.set``."""

    one_way_delay_s: PerWay = 0.0
    rate_bytes_per_s: PerWay = 0.0
    jitter_s: PerWay = 0.0

    @property
    def command(self) -> str:
        pairs = map(_both, (self.one_way_delay_s, self.rate_bytes_per_s, self.jitter_s))
        return " ".join(["set", *(str(value) for pair in pairs for value in pair)])


@dataclass(frozen=True, slots=True)
class Traffic:
    """What has arrived over a link since it was started, and its connections."""

    up_bytes: int
    down_bytes: int
    accepted: int
    open: int


class Link:
    """A link that is emulated; connect to ``port`` of 127.0.0.1 instead of to the target.

    Each method returns when what it asks for is so.
    """

    def __init__(self, running: asyncio.subprocess.Process) -> None:
        self.port = 0
        self._running = running
        self._shape = Shape()
        self._turn = asyncio.Lock()
        self._unheard = 0

    @property
    def pid(self) -> int:
        return self._running.pid

    async def set(
        self,
        *,
        one_way_delay_s: PerWay | None = None,
        rate_bytes_per_s: PerWay | None = None,
        jitter_s: PerWay | None = None,
    ) -> None:
        """Treat so what comes from now on; ``None`` leaves a value as it is.

        Args:
            one_way_delay_s: Seconds from one end to the other, besides those for the rate.
            rate_bytes_per_s: Of all connections together; 0: no limit.
            jitter_s: A piece is late by up to so many seconds, uniformly; order is kept.
        """
        wanted = {
            "one_way_delay_s": one_way_delay_s,
            "rate_bytes_per_s": rate_bytes_per_s,
            "jitter_s": jitter_s,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        self._shape = replace(self._shape, **given)
        await self._order(self._shape.command)

    async def black_hole(self) -> None:
        """Let nothing pass; connections stay, and new ones get no answer.

        The relay's kernel still acknowledges what is sent, as far as its buffers go.
        """
        await self._order("hole")

    async def heal(self) -> None:
        """End the black hole; what waited flows on with the delay and rate that are set."""
        await self._order("heal")

    async def cut(self) -> None:
        """Reset all connections, at both ends; new ones are welcome."""
        await self._order("cut")

    async def traffic(self) -> Traffic:
        return Traffic(*map(int, (await self._ask("traffic")).split()))

    async def _order(self, line: str) -> None:
        answer = await self._ask(line)
        assert answer == "ok", answer

    async def _ask(self, line: str) -> str:
        assert self._running.stdin is not None
        async with self._turn:
            self._running.stdin.write(f"{line}\n".encode())
            self._unheard += 1
            while True:  # answers to those who were cancelled come first
                answer = await self._hear()
                self._unheard -= 1
                if not self._unheard:
                    return answer

    async def _hear(self) -> str:
        assert self._running.stdout is not None
        async with asyncio.timeout(ANSWER_S):
            line = await self._running.stdout.readline()
        assert line, "the relay has ended"
        return line.decode().strip()

    async def _open(self) -> None:
        self.port = int(await self._hear())

    async def _close(self) -> None:
        """End its stdin, and then the program itself if that was not enough."""
        assert self._running.stdin is not None
        self._running.stdin.close()
        try:
            async with asyncio.timeout(GRACE_S):
                await self._running.communicate()
        except TimeoutError:
            self._running.kill()
            await self._running.wait()
        except asyncio.CancelledError:
            self._running.kill()
            raise


@asynccontextmanager
async def emulated_link(
    target_port: int,
    *,
    target_host: str = "127.0.0.1",
    one_way_delay_s: PerWay = 0.0,
    rate_bytes_per_s: PerWay = 0.0,
    jitter_s: PerWay = 0.0,
) -> AsyncIterator[Link]:
    """Start a link to what listens there; it is gone when the block is left.

    Args:
        target_port: Where connections lead.
        target_host: An IPv4 address.
        one_way_delay_s: As for ``Link.set``.
        rate_bytes_per_s: As for ``Link.set``.
        jitter_s: As for ``Link.set``.
    """
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-IS", str(RELAY), target_host, str(target_port)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        process_group=0,  # Ctrl-C is for us; we end it in order
    )
    link = Link(running)
    try:
        await link._open()
        await link.set(
            one_way_delay_s=one_way_delay_s, rate_bytes_per_s=rate_bytes_per_s, jitter_s=jitter_s
        )
        yield link
    finally:
        await link._close()


def _both(value: PerWay) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)
