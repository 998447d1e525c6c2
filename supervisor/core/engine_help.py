"""What a llama.cpp program's ``--help`` tells of its options.

Source:
    llama.cpp ``common/arg.cpp``, ``common_arg::to_string``: the names and what follows them from
    the first column, then the description from column 40 or on the next line.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_NAME: Final = re.compile(r"(--?[A-Za-z][\w.-]*)(,\s*(?=-)|(?=\s|$))")
_HINT: Final = re.compile(r" (\S+(?: \S+)*?)(?:\s{2,}|$)")
_DESCRIPTION_INDENT: Final = 8
_LISTED: Final = re.compile(r"^[{\[<](?!.*\.\.)([\w.|,+-]+)[}\]>]$")
_RANGE: Final = re.compile(r"^<(-?\d+)\.\.\.(-?\d+)>$")
_ALLOWED: Final = re.compile(r"allowed values: ((?:[\w.+-]+, )*[\w.+-]+)")
_BULLET: Final = re.compile(r"^\s*- ([\w.+-]+)(?: \(default\))?:", re.MULTILINE)
_DEFAULT: Final = re.compile(r"\(default: ([^\s,;)]+)")
_TEMPLATES: Final = re.compile(r"list of built-in templates:\s*((?:[\w.-]+, )*[\w.-]+)")
_WHOLE: Final = re.compile(r"-?\d+")


@dataclass(frozen=True, slots=True)
class HelpOption:
    """One option. ``hint`` is what the help writes for its value; empty: it takes none."""

    names: tuple[str, ...]
    hint: str = ""
    description: str = ""

    @property
    def values(self) -> int:
        """How many words follow it."""
        if not self.hint:
            return 0
        return 2 if re.fullmatch(r"[A-Z]+ [A-Z]+", self.hint) else 1

    @property
    def default(self) -> str:
        """As the help gives it; empty: it does not."""
        found = _DEFAULT.search(self.description)
        return found[1].strip("'\"") if found else ""

    @property
    def allowed(self) -> tuple[str, ...]:
        """The only values that it takes; none: any."""
        if found := _LISTED.match(self.hint):
            return tuple(re.split(r"[|,]", found[1]))
        if found := _ALLOWED.search(_joined(self.description)):
            return tuple(found[1].split(", "))
        bullets = tuple(_BULLET.findall(self.description))
        if bullets and self.default and self.default not in bullets:
            return (*bullets, self.default)
        return bullets

    @property
    def limits(self) -> tuple[int, int] | None:
        """The smallest and the largest number, if the help says so."""
        found = _RANGE.match(self.hint)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def is_number(self) -> bool:
        return self.hint == "N"

    @property
    def is_whole_number(self) -> bool:
        return self.is_number and _WHOLE.fullmatch(self.default) is not None

    @property
    def templates(self) -> tuple[str, ...]:
        """Names of the engine's own chat templates."""
        found = _TEMPLATES.search(_joined(self.description))
        return tuple(found[1].split(", ")) if found else ()


@dataclass(frozen=True, slots=True)
class EngineHelp:
    """All options of one program, by each of their names."""

    options: Mapping[str, HelpOption] = field(default_factory=dict)

    def find(self, name: str) -> HelpOption | None:
        return self.options.get(name)


def parse_help(text: str) -> EngineHelp:
    """Read a ``--help``; what looks otherwise than expected is left out."""
    options: dict[str, HelpOption] = {}
    for head, lines in _entries(text):
        option = _option(head, lines)
        options |= dict.fromkeys(option.names, option)
    return EngineHelp(options)


def _entries(text: str) -> list[tuple[str, list[str]]]:
    entries: list[tuple[str, list[str]]] = []
    is_open = False
    for line in text.splitlines():
        if _NAME.match(line):
            entries.append((line, []))
            is_open = True
        elif line.startswith(" " * _DESCRIPTION_INDENT) and is_open:
            entries[-1][1].append(line.strip())
        elif line.strip():
            is_open = False  # a heading
    return entries


def _option(head: str, lines: list[str]) -> HelpOption:
    names, at = [], 0
    while found := _NAME.match(head, at):
        names.append(found[1])
        at = found.end()
        if not found[2]:
            break
    rest = head[at:]
    hint = _HINT.match(rest)
    first = rest[hint.end() :] if hint else rest.strip()
    return HelpOption(tuple(names), hint[1] if hint else "", "\n".join([first, *lines]).strip())


def _joined(text: str) -> str:
    return " ".join(text.split())
