"""A stand-in for ``ggml-rpc-server`` with faults that the real one cannot be made to show.

It answers HELLO, DEVICE_COUNT, GET_DEVICE_MEMORY, GET_ALIGNMENT and GET_MAX_SIZE. ``--later-...``
faults begin with the second start that shares the state file: the first one is the agent measuring
its engine.
"""

import argparse
import socket
import struct
from pathlib import Path

GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-H", dest="host", default="127.0.0.1")
    parser.add_argument("-p", dest="port", type=int, default=50052)
    parser.add_argument("-t", dest="threads")
    parser.add_argument("-d", dest="devices", default="")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--triple", default="7.0.0")
    parser.add_argument("--later-triple")
    parser.add_argument("--later-http", action="store_true")
    parser.add_argument("--later-hangs-after", type=int, help="so many clients")
    options = parser.parse_args()
    if options.devices == "?":
        print("  CPU: fake (8192 MiB, 8192 MiB free)")
        raise SystemExit(1)
    starts = int(options.state.read_text()) if options.state.exists() else 0
    options.state.write_text(str(starts + 1))
    serve(options, is_later=starts > 0)


def serve(options: argparse.Namespace, *, is_later: bool) -> None:
    triple = options.later_triple if is_later and options.later_triple else options.triple
    hangs_after = options.later_hangs_after if is_later else None
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((options.host, options.port))
    listener.listen(1)
    served = 0
    while True:
        client, _ = listener.accept()
        print("Accepted client connection", flush=True)
        with client:
            if is_later and options.later_http:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            elif hangs_after is not None and served >= hangs_after:
                while client.recv(4096):
                    pass
            else:
                answer(client, tuple(int(part) for part in triple.split(".")))
        served += 1
        print("Client connection closed", flush=True)


def answer(client: socket.socket, triple: tuple[int, ...]) -> None:
    while header := receive(client, 9):
        command, length = struct.unpack("<BQ", header)
        receive(client, length)
        body = {
            14: bytes([*triple, 0]) + bytes(24),
            15: struct.pack("<I", 1),
            11: struct.pack("<QQ", 8 * GIB, 8 * GIB),
            1: struct.pack("<Q", 32),
            2: struct.pack("<Q", 2**64 - 1),
        }.get(command)
        if body is None:
            return
        client.sendall(struct.pack("<Q", len(body)) + body)


def receive(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = client.recv(count - len(data))
        if not piece:
            return b""
        data += piece
    return data


if __name__ == "__main__":
    main()
