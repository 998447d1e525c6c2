"""The real ``ggml-rpc-server`` behind a relay that is slow, or goes silent after some bytes.

Stands for a worker on a bad network; the programs at both ends are the real ones.
"""

import argparse
import os
import socket
import subprocess
import sys
import threading
import time

_CHUNK = 64 * 1024


class Link:
    """What all connections share: bytes towards the server, their rate, and where they end."""

    def __init__(self, rate: float, stall_after: float) -> None:
        self.rate = rate
        self.stall_after = stall_after
        self.sent = 0
        self.lock = threading.Lock()

    def carry(self, count: int) -> None:
        with self.lock:
            self.sent += count
            is_black_hole = self.sent > self.stall_after
        if is_black_hole:
            time.sleep(3600)
        time.sleep(count / self.rate)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-H", dest="host", default="127.0.0.1")
    parser.add_argument("-p", dest="port", type=int, default=50052)
    parser.add_argument("--real", required=True)
    parser.add_argument("--bytes-per-s", type=float, default=float("inf"))
    parser.add_argument("--stall-after", type=float, default=float("inf"))
    parser.add_argument("--relay-to", type=int)
    options, rest = parser.parse_known_args()
    if options.relay_to is not None:
        run_relay(options)
    if "?" in rest:
        os.execv(options.real, [options.real, *rest])
    inner = _free_port()
    subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--relay-to", str(inner)])
    # The real server takes over this process, so that what its agent measures is the real one.
    os.execv(options.real, [options.real, "-H", "127.0.0.1", "-p", str(inner), *rest])


def run_relay(options: argparse.Namespace) -> None:
    link = Link(options.bytes_per_s, options.stall_after)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((options.host, options.port))
    listener.listen(1)
    while True:
        client, _ = listener.accept()
        target = (client, options.relay_to, link)
        threading.Thread(target=relay, args=target, daemon=True).start()


def relay(client: socket.socket, port: int, link: Link) -> None:
    for _ in range(100):
        try:
            server = socket.create_connection(("127.0.0.1", port))
            break
        except OSError:
            time.sleep(0.02)
    else:
        return
    back = threading.Thread(target=pump, args=(server, client, None), daemon=True)
    back.start()
    pump(client, server, link)


def pump(source: socket.socket, sink: socket.socket, link: Link | None) -> None:
    for end in (source, sink):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        while data := source.recv(_CHUNK):
            if link is not None:
                link.carry(len(data))
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
