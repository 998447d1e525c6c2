"""Writes the header of a model far larger than any machine here; the file is sparse."""

import os
import struct
from pathlib import Path

TIB = 1 << 40


def write_giant(path: Path, size_bytes: int = 2 * TIB, layers: int = 8) -> None:
    """A GGUF v3 file whose one F32 tensor is ``size_bytes`` long and takes no disk."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    metadata += text("llama.block_count") + struct.pack("<II", 4, layers)
    row = 1 << 20
    tensor = text("token_embd.weight") + struct.pack("<I", 2)
    tensor += struct.pack("<QQ", row, size_bytes // 4 // row) + struct.pack("<IQ", 0, 0)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + metadata + tensor
    data_at = -(-len(header) // 32) * 32
    path.write_bytes(header)
    os.truncate(path, data_at + size_bytes)
