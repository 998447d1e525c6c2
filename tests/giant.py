"""Writes the header of a model far larger than any machine here; the file is sparse."""

import os
import struct
from pathlib import Path

TIB = 1 << 40


def write_giant(path: Path, size_bytes: int = 2 * TIB, layers: int = 512) -> None:
    """A GGUF v3 file of one F32 tensor per layer, ``size_bytes`` in all, that takes no disk."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    metadata += text("llama.block_count") + struct.pack("<II", 4, layers)
    metadata += text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2")
    row, share = 1 << 20, size_bytes // layers
    tensors = b""
    for layer in range(layers):
        tensors += text(f"blk.{layer}.ffn_up.weight") + struct.pack("<I", 2)
        tensors += struct.pack("<QQ", row, share // 4 // row)
        tensors += struct.pack("<IQ", 0, layer * share)
    header = b"GGUF" + struct.pack("<IQQ", 3, layers, 3) + metadata + tensors
    data_at = -(-len(header) // 32) * 32
    path.write_bytes(header)
    os.truncate(path, data_at + size_bytes)
