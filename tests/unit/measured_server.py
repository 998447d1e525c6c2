"""An rpc-server in a few lines of asyncio, which really multiplies, for tests of measurements.

It keeps buffers, copies, and computes F32 MUL_MAT nodes of at most ``SMALL`` weights; larger ones
cost no time. Faults are attributes.
"""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

SMALL = 64
TENSOR = 296
MULTIPLY = 29
COMPUTE = 16
BASE = 1 << 40
SILENT = {4, 5, 6, 10, 16}


@dataclass
class MeasuredServer:
    """What it was asked, and how it misbehaves."""

    port: int = 0
    triple: tuple[int, int, int] = (7, 0, 0)
    free_bytes: int = 1 << 34
    multiply: int = MULTIPLY
    can_copy: bool = True
    largest_buffer: int = 1 << 40
    dies_at: int | None = None
    answers_short: int | None = None
    commands: list[int] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    memory: dict[int, bytes] = field(default_factory=dict)
    sent: bytes = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                command, length = struct.unpack("<BQ", await reader.readexactly(9))
                body = await reader.readexactly(length)
                self.commands.append(command)
                if command == self.dies_at:
                    self.ends.append("died")
                    return
                reply = self.answer(command, body)
                if command in SILENT:
                    continue
                if command == self.answers_short:
                    reply = reply[:-1]
                writer.write(struct.pack("<Q", len(reply)))
                await writer.drain()
                writer.write(reply)
        except asyncio.IncompleteReadError as exc:
            self.ends.append("eof" if not exc.partial else "cut")
        except ConnectionError:
            self.ends.append("reset")
        finally:
            writer.close()

    def answer(self, command: int, body: bytes) -> bytes:
        match command:
            case 14:
                return bytes([*self.triple, 0]) + bytes(24)
            case 15:
                return struct.pack("<I", 1)
            case 11:
                return struct.pack("<QQ", self.free_bytes, self.free_bytes)
            case 1 | 2:
                return struct.pack("<Q", 64 if command == 1 else 2**64 - 1)
            case 0:
                size = struct.unpack("<IQ", body)[1]
                return struct.pack("<QQ", 7, size) if size <= self.largest_buffer else bytes(16)
            case 3:
                return struct.pack("<Q", BASE)
            case 5:
                self.cleared.append(body[8])
            case 6:
                self.sent = body
                self.memory[address(body)] = body[TENSOR + 9 :]
            case 8:
                size = struct.unpack_from("<Q", body, TENSOR + 8)[0]
                return self.memory.get(address(body), b"").ljust(size, b"\0")[:size]
            case 9:
                return bytes([self.can_copy])
            case 10:
                self.compute(body)
        return b""

    def compute(self, body: bytes) -> None:
        _, count = struct.unpack_from("<II", body)
        nodes = struct.unpack_from(f"<{count}Q", body, 8)
        start = 12 + 8 * count
        tensors = {
            struct.unpack_from("<Q", body, at)[0]: body[at : at + TENSOR]
            for at in range(start, len(body), TENSOR)
        }
        for node in nodes:
            self.multiply_one(tensors, tensors[node])

    def multiply_one(self, tensors: dict[int, bytes], node: bytes) -> None:
        operation, flags = (
            struct.unpack_from("<I", node, 52)[0],
            struct.unpack_from("<i", node, 120)[0],
        )
        sources = struct.unpack_from("<2Q", node, 124)
        weights, vector = tensors[sources[0]], tensors[sources[1]]
        inputs, outputs = struct.unpack_from("<2I", weights, 20)
        if operation != self.multiply or not flags & COMPUTE or inputs * outputs > SMALL:
            return
        data = struct.unpack(f"<{inputs * outputs}f", self.memory[address(weights)])
        by = struct.unpack(f"<{inputs}f", self.memory[address(vector)])
        rows = [data[i * inputs : (i + 1) * inputs] for i in range(outputs)]
        products = [sum(a * b for a, b in zip(row, by, strict=True)) for row in rows]
        self.memory[address(node)] = struct.pack(f"<{outputs}f", *products)


def address(tensor: bytes) -> int:
    found: int = struct.unpack_from("<Q", tensor, 220)[0]
    return found


@contextlib.asynccontextmanager
async def measured_server(made: MeasuredServer) -> AsyncIterator[MeasuredServer]:
    """Listen on loopback until the block ends."""
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=1 << 20)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
