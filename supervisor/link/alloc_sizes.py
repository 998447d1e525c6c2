"""Remembers what rpc-servers answered to GET_ALLOC_SIZE, from one launch to the next.

llama-server asks about the same tensors in every launch, and once more for every new number of
tokens in a batch, and does nothing else until the answer is there. An answer depends on the
question alone, as long as the server is the same build on the same devices (``file_name``).

The file is records of 32 bytes, each with its checksum, appended by one write each, which kill -9
does not divide. What a full disk tears is cut off before the next record, so that records stay
aligned, and a damaged one is skipped. Nothing is locked: what processes that cut at the same time
take from each other is only asked again. No fault of the disk leaves this module.
"""

import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from agents.rpc_commands import Generation
from agents.rpc_protocol import Command
from agents.rpc_tensors import TENSOR_BYTES

KEY_BYTES: Final = 16
MAX_BYTES: Final = 1 << 20
"""Of the file. Answers for some 8000 lengths of prompts of one model; then it starts anew."""

_DEVICE_BYTES: Final = 4
# type, buffer, shape to flags, sources and view, view offset, address, name
_TENSOR: Final = struct.Struct("<8x4sQ104s11Q8sQ64s4x")
_ID: Final = struct.Struct("<Q")
_PLACE: Final = struct.Struct("<QQ")
_OPERATION: Final = slice(32, 36)
_NO_OPERATION: Final = bytes(4)
_DIGITS: Final = b"0123456789"
_ALIGNMENT: Final = 16

_RECORD: Final = struct.Struct("<16sQ4sI")
_MARK: Final = b"SIZ1"
_MAX_RECORDS: Final = MAX_BYTES // _RECORD.size


def question_key(body: bytes, generation: Generation) -> bytes:
    """Digest of all that the answer to a GET_ALLOC_SIZE can depend on.

    That is: the device; type, shape, strides, operation with its parameters, flags and view offset
    of the tensor and of each source; and which of their sources, views and buffers are there. Ids,
    handles and addresses are new in every launch. Three exceptions, for servers of every kind:

    * A tensor that has a buffer is measured by that buffer's device, and by CUDA and SYCL by its
      address, so its key is of this launch only. llama-server asks before it has one.
    * WebGPU asks how the addresses of sources are aligned, to four elements of at most 4 bytes.
    * OpenVINO and CANN know weights by name, though not their layer.

    Args:
        body: Of the whole request.
        generation: Of the connection.

    Raises:
        ValueError: The body has another length than ``generation`` says.

    Source:
        ``rpc_server::get_alloc_size`` and ``deserialize_tensor`` of llama.cpp
        ``ggml/src/ggml-rpc/ggml-rpc.cpp``; ``get_alloc_size`` of every backend, as vendored by
        llama-cpp-python 0.3.36.
    """
    body_bytes = generation.rules[Command.GET_ALLOC_SIZE].body_bytes
    if len(body) != body_bytes:
        raise ValueError(
            f"GET_ALLOC_SIZE of {len(body)} bytes, RPC {generation.name} has {body_bytes}"
        )
    digest = hashlib.blake2b(body[:_DEVICE_BYTES], digest_size=KEY_BYTES, person=b"alloc size 1")
    tensor, *sources = (
        body[at : at + TENSOR_BYTES] for at in range(_DEVICE_BYTES, body_bytes, TENSOR_BYTES)
    )
    digest.update(_asked_tensor(tensor))
    for source in sources:
        digest.update(_source(source))
    return digest.digest()


def _asked_tensor(tensor: bytes) -> bytes:
    _, buffer, layout, *_, address, name = _TENSOR.unpack(tensor)
    is_weight = layout[_OPERATION] == _NO_OPERATION
    kind = name.partition(b"\0")[0].translate(None, _DIGITS) if is_weight else b""
    place = _PLACE.pack(buffer, address if buffer else 0)
    return _described(tensor) + place + kind.ljust(len(name), b"\0")


def _source(tensor: bytes) -> bytes:
    """A tensor without an id is none, whatever else it says."""
    if _ID.unpack_from(tensor) == (0,):
        return b"\0"
    *_, address, _ = _TENSOR.unpack(tensor)
    return b"\1" + _described(tensor) + bytes((address % _ALIGNMENT,))


def _described(tensor: bytes) -> bytes:
    type_id, buffer, layout, *links, view_offset, _, _ = _TENSOR.unpack(tensor)
    are_there = bytes(link != 0 for link in (buffer, *links))
    return bytes(type_id + layout + are_there + view_offset)


def file_name(machine: str, engine_build: str, rpc_protocol: str, devices: Iterable[str]) -> str:
    """Name of the file for one kind of rpc-server; equal only if all of it is equal, in order.

    Two hosts of one kind have one file: what one was asked, the other need not be.

    Args:
        machine: Platform and architecture of the host.
        engine_build: As llama.cpp tells it.
        rpc_protocol: As in ``"7.0.0"``.
        devices: Names and descriptions of the server's devices, by index: ``CUDA0`` alone does not
            tell which card it is.
    """
    identity = json.dumps([machine, engine_build, rpc_protocol, *devices])
    return f"alloc-sizes-{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}"


class AllocSizes:
    """Answers that are known, in memory and in one file."""

    def __init__(self, path: Path) -> None:
        """Read ``path``, if it is there; the file and its folder are made if need be."""
        self._sizes: dict[bytes, int] = {}
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = _open(path)
            self._sizes = _read(self._file)

    def get(self, key: bytes) -> int | None:
        """The answer to a question, bytes, ``None`` if it is not known."""
        return self._sizes.get(key)

    def learn(self, key: bytes, size_bytes: int) -> None:
        """Remember an answer; the last one to a question counts.

        Raises:
            ValueError: The key is not of ``question_key``.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes, not {KEY_BYTES}")
        if self._sizes.get(key) == size_bytes:
            return
        record = _record(key, size_bytes)
        if len(self._sizes) >= _MAX_RECORDS:
            self._sizes.clear()
        self._sizes[key] = size_bytes
        if self._file is not None:
            self._append(self._file, record)

    def close(self) -> None:
        """Let go of the file; what is known stays known, what is learned goes to memory only."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _append(self, file: int, record: bytes) -> None:
        try:
            if _cut(file) + len(record) > MAX_BYTES:
                os.ftruncate(file, 0)
            if os.write(file, record) < len(record):
                _cut(file)
        except OSError:
            self.close()


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        # Still good for reading; the first write will fail.
        return os.open(path, os.O_RDONLY)


def _read(file: int) -> dict[bytes, int]:
    data = os.pread(file, MAX_BYTES, 0)
    whole = memoryview(data)[: len(data) - len(data) % _RECORD.size]
    return {
        key: size_bytes
        for key, size_bytes, mark, checksum in _RECORD.iter_unpack(whole)
        if mark == _MARK and checksum == _checksum(key, size_bytes)
    }


def _record(key: bytes, size_bytes: int) -> bytes:
    return _RECORD.pack(key, size_bytes, _MARK, _checksum(key, size_bytes))


def _checksum(key: bytes, size_bytes: int) -> int:
    return zlib.crc32(size_bytes.to_bytes(8, "little"), zlib.crc32(key))


def _cut(file: int) -> int:
    """Cut off what is no whole record; returns the size that is left."""
    size_bytes = os.fstat(file).st_size
    torn_bytes = size_bytes % _RECORD.size
    if torn_bytes:
        os.ftruncate(file, size_bytes - torn_bytes)
    return size_bytes - torn_bytes
