"""The real ``ggml-rpc-server``, until SIGUSR1: then it ends like one whose GPU failed.

Its last words are those of the file ``--last-words``, its end is SIGABRT, as llama.cpp's own.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", required=True)
    parser.add_argument("--last-words", type=Path, required=True)
    options, rest = parser.parse_known_args()
    if "?" in rest:
        os.execv(options.real, [options.real, *rest])
    server = subprocess.Popen([options.real, *rest])

    def fail(*_: object) -> None:
        sys.stdout.write(options.last_words.read_text())
        sys.stdout.flush()
        os.kill(server.pid, signal.SIGKILL)  # ``server`` itself is being waited for
        os.abort()

    signal.signal(signal.SIGUSR1, fail)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    sys.exit(server.wait())


if __name__ == "__main__":
    main()
