"""How fast one processor reads RPC framing in pure Python: tensor data, and small commands.

    uv run python bench/framing.py --seconds 3

Nothing is sent: a stream is made once and fed again and again, and every event is turned back into
the bytes that an end would pass on.
"""

import argparse
import json
import struct
import time
from collections.abc import Callable

from agents.rpc_commands import hello_answer, memory_answer
from agents.rpc_events import wire_bytes
from agents.rpc_framing import Conversation
from agents.rpc_protocol import Command, DeviceMemory, Triple, encode_request, hello_request
from agents.rpc_tensors import TENSOR_BYTES

VERSION = Triple(7, 0, 0)
PIECE_BYTES = 256 << 10
DATA_BYTES = 8 << 20
TENSORS = 4
"""In the stream of data, so that pieces begin and end anywhere in a message."""

MESSAGES = 1000
"""In one piece of small commands."""


def greeted() -> Conversation:
    made = Conversation()
    made.feed_requests(hello_request())
    made.feed_responses(hello_answer(VERSION))
    return made


def tensor_pieces() -> list[bytes]:
    body = bytes(TENSOR_BYTES + 9 + DATA_BYTES)
    message = struct.pack("<BQ", Command.SET_TENSOR, len(body)) + body
    stream = message * TENSORS
    return [stream[i : i + PIECE_BYTES] for i in range(0, len(stream), PIECE_BYTES)]


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units per second of the processor's time, not the clock's."""
    work()
    started_s, done = time.process_time(), 0
    while time.process_time() - started_s < seconds:
        done += work()
    return done / (time.process_time() - started_s)


def data(made: Conversation, pieces: list[bytes]) -> Callable[[], int]:
    """Bytes of SET_TENSOR."""

    def once() -> int:
        passed = 0
        for piece in pieces:
            for event in made.feed_requests(piece):
                passed += len(wire_bytes(event))
        return passed

    return once


def in_bulk(made: Conversation) -> Callable[[], int]:
    """Commands without an answer, many in one piece."""
    stream = encode_request(Command.GRAPH_RECOMPUTE, bytes(4)) * MESSAGES

    def once() -> int:
        return sum(1 for event in made.feed_requests(stream) if wire_bytes(event))

    return once


def in_turn(made: Conversation) -> Callable[[], int]:
    """Commands and their answers, each fed by itself, as llama-server waits for them."""
    request = encode_request(Command.GET_DEVICE_MEMORY, bytes(4))
    answer = memory_answer(DeviceMemory(1, 2))

    def once() -> int:
        for _ in range(MESSAGES):
            for event in made.feed_requests(request):
                wire_bytes(event)
            for reply in made.feed_responses(answer):
                wire_bytes(reply)
        return MESSAGES

    return once


def run(seconds: float) -> dict[str, float]:
    data_bytes_per_s = rate(data(greeted(), tensor_pieces()), seconds)
    return {
        "set_tensor_mb_per_s": round(data_bytes_per_s / 1e6),
        "us_per_piece": round(1e6 * PIECE_BYTES / data_bytes_per_s, 2),
        "small_commands_per_s": round(rate(in_bulk(greeted()), seconds)),
        "commands_with_answer_per_s": round(rate(in_turn(greeted()), seconds)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0)
    print(json.dumps(run(parser.parse_args().seconds), indent=2))
