"""What the header of a program or shared library says: ELF (Linux, Android) and Mach-O (macOS)."""

import struct
from dataclasses import dataclass
from typing import Final, Protocol

_ELF_MACHINES: Final = {62: "x64", 183: "arm64", 22: "s390x"}
_MACHO_MACHINES: Final = {0x01000007: "x64", 0x0100000C: "arm64"}

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_LC_LOAD: Final = (0xC, 0x80000018, 0x8000001F)
"""LC_LOAD_DYLIB, and those of libraries that may be missing or are passed on."""
_LC_RPATH: Final = 0x8000001C
_MOST_ENTRIES: Final = 4096
_LONGEST_TEXT: Final = 4096


class Content(Protocol):
    """The bytes of a file: ``bytes`` or a map of it."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class RunPath:
    """Where a program's libraries are looked for, and where in the file that is written."""

    text: str
    offset: int


@dataclass(frozen=True, slots=True)
class ProgramFile:
    """``format`` is ``elf`` or ``macho``; machines are named as in archives of releases."""

    format: str
    machines: tuple[str, ...]
    needed: tuple[str, ...] = ()
    run_paths: tuple[RunPath, ...] = ()
    interpreter: str = ""
    """The loader that an ELF program asks for."""


def read_program(content: Content) -> ProgramFile | None:
    """None if it is neither, or broken."""
    magic = content[0:4]
    try:
        if magic == b"\x7fELF":
            return _read_elf(content)
        if magic == b"\xcf\xfa\xed\xfe":
            return _read_macho(content, 0)
        if magic == b"\xca\xfe\xba\xbe":
            return _read_fat(content)
    except (struct.error, ValueError, UnicodeDecodeError):
        return None
    return None


def _text(content: Content, offset: int) -> str:
    raw = content[offset : offset + _LONGEST_TEXT]
    end = raw.find(b"\0")
    if end < 0:
        raise ValueError("a text without an end")
    return raw[:end].decode()


def _read_elf(content: Content) -> ProgramFile:
    is_64, order = content[4:5] == b"\x02", "<" if content[5:6] == b"\x01" else ">"
    (number,) = struct.unpack(f"{order}H", content[18:20])
    machines = (_ELF_MACHINES.get(number, f"ELF machine {number}"),)
    if not is_64:
        return ProgramFile("elf", (f"{machines[0]}, 32 bits",))
    (table,) = struct.unpack(f"{order}Q", content[32:40])
    size, count = struct.unpack(f"{order}HH", content[54:58])
    loads: list[tuple[int, int, int]] = []
    dynamic, interpreter = (0, 0), ""
    for at in range(table, table + size * min(count, _MOST_ENTRIES), max(size, 56)):
        kind, _, offset, address, _, in_file, _, _ = struct.unpack(
            f"{order}IIQQQQQQ", content[at : at + 56]
        )
        if kind == _PT_LOAD:
            loads.append((address, offset, in_file))
        elif kind == _PT_DYNAMIC:
            dynamic = offset, in_file
        elif kind == _PT_INTERP:
            interpreter = _text(content, offset)
    return _with_libraries(content, order, machines, loads, dynamic, interpreter)


def _with_libraries(
    content: Content,
    order: str,
    machines: tuple[str, ...],
    loads: list[tuple[int, int, int]],
    dynamic: tuple[int, int],
    interpreter: str,
) -> ProgramFile:
    entries = []
    start, length = dynamic
    for at in range(start, start + min(length, 16 * _MOST_ENTRIES), 16):
        tag, value = struct.unpack(f"{order}QQ", content[at : at + 16])
        if tag == 0:
            break
        entries.append((tag, value))
    strings = 0
    for address in (value for tag, value in entries if tag == _DT_STRTAB):
        for begin, offset, in_file in loads:
            if begin <= address < begin + in_file:
                strings = offset + address - begin
    needed = [_text(content, strings + v) for tag, v in entries if tag == _DT_NEEDED]
    paths = [strings + v for tag, v in entries if tag in (_DT_RPATH, _DT_RUNPATH)]
    run_paths = tuple(RunPath(_text(content, at), at) for at in paths)
    return ProgramFile("elf", machines, tuple(needed), run_paths, interpreter)


def _read_macho(content: Content, base: int) -> ProgramFile:
    cpu, _, _, count = struct.unpack("<IIII", content[base + 4 : base + 20])
    needed, run_paths = [], []
    at = base + 32
    for _ in range(min(count, _MOST_ENTRIES)):
        command, size = struct.unpack("<II", content[at : at + 8])
        if command in _LC_LOAD or command == _LC_RPATH:
            (offset,) = struct.unpack("<I", content[at + 8 : at + 12])
            text = _text(content, at + offset)
            if command == _LC_RPATH:
                run_paths.append(RunPath(text, at + offset))
            else:
                needed.append(text)
        if size < 8:
            raise ValueError("a load command without a size")
        at += size
    machine = _MACHO_MACHINES.get(cpu, f"Mach-O machine {cpu:#x}")
    return ProgramFile("macho", (machine,), tuple(needed), tuple(run_paths))


def _read_fat(content: Content) -> ProgramFile:
    """A program for several machines; its libraries are those of the first."""
    (count,) = struct.unpack(">I", content[4:8])
    if not 0 < count <= 16:  # a Java class begins alike
        raise ValueError("no program for several machines")
    parts = []
    for at in range(8, 8 + 20 * count, 20):
        _, _, offset = struct.unpack(">III", content[at : at + 12])
        parts.append(_read_macho(content, offset))
    machines = tuple(machine for part in parts for machine in part.machines)
    return ProgramFile("macho", machines, parts[0].needed, parts[0].run_paths)
