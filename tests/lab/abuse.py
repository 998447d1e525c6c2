"""Clients that mean no good, as many as the machine can make, as a program of their own.

    python tests/lab/abuse.py PORT SEED

It says ``ready``, goes on until its stdin ends, and then says, as JSON, how many connections it
made, at which stage they vanished, and what those that stayed were answered.
"""

import asyncio
import contextlib
import json
import random
import resource
import socket
import struct
import sys
from collections import Counter

LOOPBACK = "127.0.0.1"
AT_ONCE = 64
STAYING = 8
"""Who waits for an answer, at once: the others would all be waiting soon."""
QUEUED_S = 0.05
ANSWER_S = 60.0

_QUESTION = {"model": "test", "prompt": "Hello", "max_tokens": 64, "stream": True, "seed": 1}
_HEAD = (
    b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n"
)


class Vanished(Exception):
    """At a stage."""


class Flood:
    """All connections of this program."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._dice = random.Random(seed)
        self._loop = asyncio.get_running_loop()
        body = json.dumps(_QUESTION).encode()
        self._head, self._body = _HEAD % len(body), body
        self._staying = 0
        self.vanished: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()

    async def run(self) -> dict[str, dict[str, int]]:
        """Until stdin ends."""
        tasks = [asyncio.create_task(self._come_again()) for _ in range(AT_ONCE)]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        bugs = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
        assert not bugs, bugs
        return {"vanished": dict(self.vanished), "answers": dict(self.answers)}

    async def _come_again(self) -> None:
        while True:
            try:
                await self._come()
            except Vanished as exc:
                self.vanished[str(exc)] += 1
            except (OSError, TimeoutError) as exc:
                self.answers[type(exc).__name__] += 1

    async def _come(self) -> None:
        client = socket.socket()
        client.setblocking(False)
        try:
            # Other addresses of this host: the ports of one would be used up.
            client.bind((f"127.0.0.{self._dice.randrange(1, 250)}", 0))
            await self._loop.sock_connect(client, (LOOPBACK, self._port))
            await self._ask(client)
        finally:
            client.close()

    async def _ask(self, client: socket.socket) -> None:
        """Half of those that come to a stage vanish there."""
        self._perhaps_vanish(client, "connected")
        half = len(self._head) // 2
        await self._loop.sock_sendall(client, self._head[:half])
        self._perhaps_vanish(client, "in the head")
        await self._loop.sock_sendall(client, self._head[half:] + self._body[:9])
        self._perhaps_vanish(client, "in the body")
        await self._loop.sock_sendall(client, self._body[9:])
        await asyncio.sleep(self._dice.random() * QUEUED_S)
        if self._staying >= STAYING:
            raise Vanished("queued")
        self._perhaps_vanish(client, "queued")
        self._staying += 1
        try:
            await self._listen(client)
        finally:
            self._staying -= 1

    async def _listen(self, client: socket.socket) -> None:
        async with asyncio.timeout(ANSWER_S):
            answer = await self._loop.sock_recv(client, 4096)
            status = answer[9:12].decode(errors="replace") or "nothing"
            if status == "200":
                self._perhaps_vanish(client, "in the stream")
                status = await self._end(client, answer)
        self.answers[status] += 1

    async def _end(self, client: socket.socket, said: bytes) -> str:
        while not said.endswith(b"0\r\n\r\n"):
            more = await self._loop.sock_recv(client, 65536)
            if not more:
                return "broken"
            said = (said + more)[-64:]
        return "whole" if b"data: [DONE]" in said else "broken"

    def _perhaps_vanish(self, client: socket.socket, stage: str) -> None:
        if self._dice.random() < 0.5:
            return
        if self._dice.random() < 0.5:  # with a reset, not a farewell
            option = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        raise Vanished(stage)


async def main() -> None:
    flood = Flood(int(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(await flood.run()))


if __name__ == "__main__":
    with contextlib.suppress(ValueError):
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
    asyncio.run(main())
