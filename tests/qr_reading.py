"""Reads QR codes, as far as ours go: from their SVG or their half blocks back to the text.

It is no scanner, and corrects no errors: what it reads was drawn without any. Tables of the
standard come from the library that draws; layout and masks are written here once more.

Source:
    ISO/IEC 18004:2015, 6.3 (symbol), 7.7 (placement), 7.8 (masks), 7.9 (format information).
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import unquote
from xml.etree import ElementTree

from segno import consts

Modules = list[list[bool]]
"""Rows of modules, dark ones true, without the quiet zone."""

QUIET_ZONE: Final = 4
_FORMAT_MASK: Final = 0b101010000010010
_SVG: Final = "{http://www.w3.org/2000/svg}"
_MASKS: Final[tuple[Callable[[int, int], bool], ...]] = (
    lambda row, column: (row + column) % 2 == 0,
    lambda row, column: row % 2 == 0,
    lambda row, column: column % 3 == 0,
    lambda row, column: (row + column) % 3 == 0,
    lambda row, column: (row // 2 + column // 3) % 2 == 0,
    lambda row, column: row * column % 2 + row * column % 3 == 0,
    lambda row, column: (row * column % 2 + row * column % 3) % 2 == 0,
    lambda row, column: ((row + column) % 2 + row * column % 3) % 2 == 0,
)


def drawn_in_svg(uri: str) -> Modules:
    """The modules of a data URI; it must be black on white, with a quiet zone."""
    kind, _, content = uri.partition(",")
    assert kind.split(";")[0] == "data:image/svg+xml"
    svg = ElementTree.fromstring(unquote(content))
    assert svg.tag == f"{_SVG}svg"
    size = int(svg.attrib["viewBox"].split()[2])
    ground, lines = svg.findall(f"{_SVG}path")
    assert ground.attrib == {"fill": "#fff", "d": f"M0 0h{size}v{size}h-{size}z"}
    assert lines.attrib["stroke"] == "#000"
    dark = set(_strokes(lines.attrib["d"]))
    return _inner([[(row, column) in dark for column in range(size)] for row in range(size)])


def drawn_in_blocks(lines: list[str]) -> Modules:
    """The modules of half blocks, which are light on dark."""
    rows: Modules = []
    for line in lines:
        rows.append([block not in "█▀" for block in line])
        rows.append([block not in "█▄" for block in line])
    return _inner(rows[: len(rows[0])])


def version_of(modules: Modules) -> int:
    return (len(modules) - 17) // 4


def text_of(modules: Modules) -> str:
    """What the code says, if it says it in bytes."""
    version = version_of(modules)
    level, mask = _format(modules)
    bits = _unmasked(modules, mask)
    codewords = [int(bits[at : at + 8], 2) for at in range(0, len(bits) - 7, 8)]
    data = "".join(f"{word:08b}" for word in _data_of(codewords, version, level))
    assert data[:4] == "0100", "bytes"
    end_of_count = 4 + (8 if version < 10 else 16)
    count = int(data[4:end_of_count], 2)
    content = data[end_of_count : end_of_count + 8 * count]
    return bytes(int(content[at : at + 8], 2) for at in range(0, 8 * count, 8)).decode()


def _strokes(path: str) -> Iterator[tuple[int, int]]:
    """Places of the dark modules, from strokes of the width 1 through their middles."""
    row = column = 0
    for command, first, second in re.findall(r"([Mmh])(-?[\d.]+)(?: (-?[\d.]+))?", path):
        if command == "h":
            yield from ((row, column + step) for step in range(int(first)))
            column += int(first)
        elif command == "m":
            column, row = column + int(first), row + int(second)
        else:
            column, row = int(first), int(float(second))


def _inner(rows: Modules) -> Modules:
    size = len(rows)
    edge = {*range(QUIET_ZONE), *range(size - QUIET_ZONE, size)}
    for row in range(size):
        assert not any(rows[row][column] for column in (range(size) if row in edge else edge))
    return [row[QUIET_ZONE:-QUIET_ZONE] for row in rows[QUIET_ZONE:-QUIET_ZONE]]


def _format(modules: Modules) -> tuple[int, int]:
    """Level of error correction and number of the mask."""
    places = [(8, c) for c in (0, 1, 2, 3, 4, 5, 7, 8)] + [(r, 8) for r in (7, 5, 4, 3, 2, 1, 0)]
    found = int("".join(str(int(modules[row][column])) for row, column in places), 2)
    number = (found ^ _FORMAT_MASK) >> 10
    return number >> 3, number & 0b111


def _unmasked(modules: Modules, mask: int) -> str:
    """The bits of all codewords, up and down in pairs of columns from the right."""
    size = len(modules)
    taken = _function_places(size)
    bits, is_upward = "", True
    for right in (*range(size - 1, 6, -2), *range(5, 0, -2)):
        for row in range(size - 1, -1, -1) if is_upward else range(size):
            for column in (right, right - 1):
                if (row, column) not in taken:
                    bits += str(int(modules[row][column] ^ _MASKS[mask](row, column)))
        is_upward = not is_upward
    return bits


def _function_places(size: int) -> set[tuple[int, int]]:
    """Where no data is: finders with format, timing, alignment, version."""

    def area(rows: range, columns: range) -> set[tuple[int, int]]:
        return {(row, column) for row in rows for column in columns}

    near, far = range(9), range(size - 8, size)
    taken = area(near, near) | area(near, far) | area(far, near)
    taken |= {(6, at) for at in range(size)} | {(at, 6) for at in range(size)}
    version = (size - 17) // 4
    centres = consts.ALIGNMENT_POS[version - 2] if version > 1 else ()
    corners = {(6, 6), (6, size - 7), (size - 7, 6)}
    for row, column in {(row, column) for row in centres for column in centres} - corners:
        taken |= area(range(row - 2, row + 3), range(column - 2, column + 3))
    if version >= 7:
        beside = range(size - 11, size - 8)
        taken |= area(range(6), beside) | area(beside, range(6))
    return taken


def _data_of(codewords: list[int], version: int, level: int) -> list[int]:
    """The data codewords in their order: they were dealt to blocks in turn."""
    table: Any = consts.ECC
    counts = [kind.num_data for kind in table[version][level] for _ in range(kind.num_blocks)]
    blocks: list[list[int]] = [[] for _ in counts]
    source = iter(codewords)
    for turn in range(max(counts)):
        for block, count in zip(blocks, counts, strict=True):
            if turn < count:
                block.append(next(source))
    return [word for block in blocks for word in block]
