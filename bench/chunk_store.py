"""What hashing, storing and finding weight chunks costs on this machine; decides the constants.

uv run python bench/chunk_store.py --folder /where/the/store/would/be

Everything is read back from the page cache, as it is when a model was loaded a moment ago. Where
thousands of files were just deleted, ext4 takes up to 0.7 ms to create one instead of 0.02 ms, for
about a minute; rest before a run, or give a folder on a fresh file system.
"""

import argparse
import hashlib
import json
import os
import statistics
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agents.chunk_store import ChunkStore
from agents.chunks import CHUNK_BYTES, ChunkName, chunk_name
from agents.gguf_index import GgufIndex

KIB = 1024
MIB = 1024 * KIB
PLENTY_BYTES = 1 << 40
REPEATS = 5
Step = Callable[[], object]


def seconds(step: Step) -> float:
    start_s = time.perf_counter()
    step()
    return time.perf_counter() - start_s


def mbyte_per_s(size_bytes: int, steps: dict[str, Step]) -> dict[str, float]:
    """Best rate of each step, the steps taking turns.

    The best, since a virtual machine that gets fresh memory from its host for the page cache takes
    ten times as long now and then.
    """
    took: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():
            took[name].append(seconds(step))
    return {name: round(size_bytes / min(t) / 1e6, 1) for name, t in took.items()}


def hashing() -> dict[str, Any]:
    data = memoryview(os.urandom(64 * MIB))
    parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    hashes: dict[str, Callable[[memoryview], bytes]] = {
        "sha256": lambda part: hashlib.sha256(part).digest(),
        "blake2b_256": lambda part: hashlib.blake2b(part, digest_size=32).digest(),
    }
    steps: dict[str, Step] = {}
    with ThreadPoolExecutor(2) as pool:
        for name, hash_of in hashes.items():
            steps[name] = lambda hash_of=hash_of: [hash_of(part) for part in parts]  # type: ignore[misc]
            steps[f"{name}_two_threads"] = lambda hash_of=hash_of: list(pool.map(hash_of, parts))  # type: ignore[misc]
        return mbyte_per_s(len(data), steps)


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def storing(folder: Path, chunk_bytes: int, total_bytes: int) -> dict[str, Any]:
    """Put, get and what it would cost to sync each chunk, or to append to one packed file."""
    count = total_bytes // chunk_bytes
    block = os.urandom(chunk_bytes - 8)
    chunks = [number.to_bytes(8, "little") + block for number in range(count)]
    names = [chunk_name(chunk) for chunk in chunks]
    buffer = bytearray(chunk_bytes)
    stores: list[ChunkStore] = []

    def put() -> None:
        stores.append(ChunkStore(folder / f"store-{len(stores)}", PLENTY_BYTES))
        for name, chunk in zip(names, chunks, strict=True):
            stores[-1].put(name, chunk)

    def synced() -> None:
        for number, chunk in enumerate(chunks[:: max(count // 32, 1)]):
            write_synced(folder / f"synced-{number}", chunk)

    def packed() -> None:
        with (folder / f"packed-{len(stores)}").open("wb", buffering=0) as file:
            for name, chunk in zip(names, chunks, strict=True):
                if chunk_name(chunk) == name:
                    file.write(chunk)

    rates = mbyte_per_s(
        total_bytes,
        {
            "put": put,
            "get": lambda: [stores[-1].get(name) for name in names],
            "readinto": lambda: [stores[-1].readinto(name, buffer) for name in names],
            "hash_and_append_to_one_file": packed,
        },
    )
    os.sync()
    synced_bytes = len(chunks[:: max(count // 32, 1)]) * chunk_bytes
    return {"chunk_kib": chunk_bytes // KIB} | rates | mbyte_per_s(synced_bytes, {"fsync": synced})


def indexing(folder: Path, count: int) -> dict[str, Any]:
    """Opening a store of ``count`` chunks, asking it for all of them, and its memory."""
    names = [chunk_name(number.to_bytes(8, "little")) for number in range(count)]
    first = ChunkStore(folder, PLENTY_BYTES)
    put_s = seconds(
        lambda: [first.put(name, n.to_bytes(8, "little")) for n, name in enumerate(names)]
    )
    asked = [ChunkName(bytes(name)) for name in names]
    open_s = [seconds(lambda: ChunkStore(folder, PLENTY_BYTES)) for _ in range(REPEATS)]
    has_s = [seconds(lambda: first.has(asked)) for _ in range(REPEATS)]
    tracemalloc.start()
    store = ChunkStore(folder, PLENTY_BYTES)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {
        "chunks": store.usage().chunks,
        "open_ms": round(1e3 * statistics.median(open_s), 1),
        "has_all_ms": round(1e3 * statistics.median(has_s), 2),
        "memory_mib": round(held_bytes / MIB, 2),
        "put_of_8_bytes_us": round(1e6 * put_s / count, 1),
    }


def write_gguf(path: Path, tokens: int, tensors: int, tensor_bytes: int) -> None:
    """A GGUF with a vocabulary and f32 tensors of random bytes."""
    key = b"tokenizer.ggml.tokens"
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, tensors, 1))
        file.write(struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 8, tokens))
        for number in range(tokens):
            token = b"t%d" % number
            file.write(struct.pack("<Q", len(token)) + token)
        for number in range(tensors):
            name = b"blk.%d" % number
            file.write(struct.pack("<Q", len(name)) + name)
            file.write(struct.pack("<IQIQ", 1, tensor_bytes // 4, 0, number * tensor_bytes))
        file.write(bytes(-file.tell() % 32))
        for _ in range(tensors):
            file.write(os.urandom(tensor_bytes))


def gguf(folder: Path) -> dict[str, Any]:
    """First index of a model of 256 MiB with 256 000 tokens; the same from its cache; reading."""
    path, cache = folder / "model.gguf", folder / "cache"
    write_gguf(path, 256_000, 64, 4 * MIB)
    empty = folder / "empty.gguf"
    write_gguf(empty, 256_000, 1, 64 * KIB)
    index = GgufIndex(cache)
    first_s = seconds(lambda: index.index_gguf([path]))
    return {
        "model_mib": path.stat().st_size // MIB,
        "header_of_256000_tokens_s": round(seconds(lambda: index.index_gguf([empty])), 2),
        "first_index_s": round(first_s, 2),
        "from_cache_ms": round(1e3 * seconds(lambda: GgufIndex(cache).index_gguf([path])), 1),
    }


def run(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"hash_mbyte_per_s": hashing(), "store_mbyte_per_s": []}
    for chunk_kib in (256, 512, 1024, 4096):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            results["store_mbyte_per_s"].append(
                storing(Path(place), chunk_kib * KIB, total_bytes=128 * MIB)
            )
    with tempfile.TemporaryDirectory(dir=folder) as place:
        results["index"] = indexing(Path(place), 10_000)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        results["gguf"] = gguf(Path(place))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    print(json.dumps(run(parser.parse_args().folder), indent=2))
