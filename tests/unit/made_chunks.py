"""Chunks with names, and the files of a chunk store, for the tests of it."""

import os
import random
import time
from pathlib import Path

from agents.chunk_store import ChunkStore, PutResult
from agents.chunks import ChunkName, chunk_name

KIB = 1 << 10
GIB = 1 << 30
PLENTY_BYTES = 1 << 40
STORED, NO_ROOM, DAMAGED = PutResult.STORED, PutResult.NO_ROOM, PutResult.DAMAGED


def made(seed: int, size_bytes: int = 4 * KIB) -> tuple[ChunkName, bytes]:
    data = random.Random(seed).randbytes(size_bytes)
    return chunk_name(data), data


def path_of(folder: Path, name: ChunkName) -> Path:
    return folder / name.hex()[:2] / name.hex()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def put_all(store: ChunkStore, seeds: range) -> list[ChunkName]:
    names = []
    for seed in seeds:
        name, data = made(seed)
        assert store.put(name, data) is STORED
        names.append(name)
    return names


def flip(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


def age(folder: Path, name: ChunkName, hours: float) -> None:
    then_s = time.time() - hours * 3600
    os.utime(path_of(folder, name), (then_s, then_s))
