"""How long the header of a model takes to read, and how much memory.

    uv run python bench/planning/header.py

Headers of the sizes of real ones, generated: a 70B model with vocabularies of 32 000 to 262 144
tokens, their scores, types and merges. The least of several runs is shown, since other programs
only add to it; memory is the peak of all Python objects.
"""

import argparse
import struct
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from shapes import SHAPES, header, string, text

from supervisor.adapters.gguf import read_header
from supervisor.adapters.sparse_model import sparse_model

VOCABULARIES = (32_000, 128_256, 150_000, 262_144)
MERGES_PER_TOKEN = 2
LETTERS = "abcdefghijklmnop"
RUNS = 7
MB = 1_000_000


def tokenizer(tokens: int) -> dict[str, bytes]:
    """The metadata of a byte-pair vocabulary: tokens, scores, types and merges."""
    words = [string(f"{LETTERS[: number % 8]}{number}") for number in range(tokens)]
    merges = [
        string(f"{LETTERS[: 1 + number % 5]} {LETTERS[: 1 + number % 7]}")
        for number in range(tokens * MERGES_PER_TOKEN)
    ]
    return {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.tokens": array(8, len(words), b"".join(words)),
        "tokenizer.ggml.scores": array(6, tokens, bytes(4 * tokens)),
        "tokenizer.ggml.token_type": array(5, tokens, bytes(4 * tokens)),
        "tokenizer.ggml.merges": array(8, len(merges), b"".join(merges)),
        "tokenizer.chat_template": text("{{ message }}" * 1000),
    }


def array(element_type: int, count: int, elements: bytes) -> bytes:
    return struct.pack("<IIQ", 9, element_type, count) + elements


def least_s(path: Path, runs: int) -> float:
    found = []
    for _ in range(runs):
        started_s = time.perf_counter()
        read_header(path)
        found.append(time.perf_counter() - started_s)
    return min(found)


def peak_bytes(path: Path) -> int:
    tracemalloc.start()
    try:
        read_header(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    shape = next(shape for shape in SHAPES if "70B" in shape.name)
    print("| vocabulary | header | tensors | time | memory at the peak |")
    print("|--:|--:|--:|--:|--:|")
    for tokens in VOCABULARIES:
        with tempfile.TemporaryDirectory() as folder:
            made = header(shape, tokenizer(tokens))
            path = sparse_model([made], Path(folder))
            found = read_header(path)
            print(
                f"| {tokens} | {len(made.start) / MB:.1f} MB | {len(found.tensors)}"
                f" | {least_s(path, options.runs):.3f} s | {peak_bytes(path) / MB:.1f} MB |"
            )


if __name__ == "__main__":
    main()
