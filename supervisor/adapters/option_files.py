"""Files of the main host that model options name: whether they are there, and what they are."""

import concurrent.futures
import json
import os
import re
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Final

from supervisor.adapters.gguf import LocalSource
from supervisor.adapters.gguf_parse import GgufPart, parse_part, shown
from supervisor.core.engine_options import FileKind, OptionFile
from supervisor.core.option_memory import IMAGE_WORKSPACE_BYTES, FileFacts, OptionMemory
from supervisor.errors import ModelBroken, OptionFileUnusable

MAX_TEXT_BYTES: Final = 1 << 20
"""Chat templates of real models have up to 30 KiB."""

_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_SUFFIXES: Final[dict[FileKind, tuple[str, ...]]] = {
    "template": (".jinja", ".jinja2", ".j2", ".tmpl", ".txt"),
    "text": (".gbnf", ".txt"),
    "JSON": (".json",),
}
"""What is read as text may be asked for again by requests, as a template's text: no other file of
the main host is to be had in this way."""

_OPENING: Final = re.compile(r"\{[{%#]")
_IN_TAG: Final = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|%\}|\}\}""", re.DOTALL)
_RAW: Final = re.compile(r"\{%-?\s*raw\s*-?%\}")
_END_RAW: Final = re.compile(r"\{%-?\s*endraw\s*-?%\}")
NEWLINE: Final = "\n"


LIMIT_S: Final = 10.0
"""For all files of a launch; a disk that was asleep wakes up within it."""


class OptionFileReader:
    """``read_files`` with an end: a network that is away keeps who reads waiting for ever."""

    def __init__(self, read: Callable[[Sequence[OptionFile], str], FileFacts], limit_s: float):
        self._read = read
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._silent: set[str] = set()

    def __call__(self, files: Sequence[OptionFile], architecture: str) -> FileFacts:
        """As ``read_files``.

        Raises:
            OptionFileUnusable: Also for what does not answer in time. Its thread is given up, and
                no other one is started for the same file meanwhile.
        """
        paths = {file.path for file in files}
        reading = concurrent.futures.Future[FileFacts]()

        def work() -> None:
            try:
                reading.set_result(self._read(files, architecture))
            except Exception as exc:  # noqa: BLE001 - whoever waits gets it
                reading.set_exception(exc)
            with self._lock:
                self._silent -= paths

        with self._lock:
            if silent := self._silent & paths:
                raise self._unanswered(files, silent)
        # Not one of the event loop's threads: who ends waits for those.
        threading.Thread(target=work, daemon=True, name="option files").start()
        try:
            return reading.result(self._limit_s)
        except concurrent.futures.TimeoutError:
            with self._lock:
                self._silent |= paths if not reading.done() else set()
            raise self._unanswered(files, paths) from None

    def _unanswered(self, files: Sequence[OptionFile], paths: set[str]) -> OptionFileUnusable:
        named = " and ".join(f"{f.option} ({f.path})" for f in files if f.path in paths)
        return OptionFileUnusable(
            f"{named} cannot be read: no answer within {self._limit_s:g} s; check the disk, or the "
            "network that it is on"
        )


def read_files(files: Sequence[OptionFile], architecture: str) -> FileFacts:
    """Check every file. Blocks.

    Args:
        files: That options name.
        architecture: Of the model, which adapters have to be made for; empty: unknown yet.

    Raises:
        OptionFileUnusable: With the option, the file, and what it should be.
    """
    memory, sizes = OptionMemory(), []
    for file in files:
        size_bytes, memory = _read(file, architecture, memory)
        sizes.append((file, size_bytes))
    return FileFacts(memory, tuple(sizes))


def _read(file: OptionFile, architecture: str, memory: OptionMemory) -> tuple[int, OptionMemory]:
    if file.kind in ("template", "text", "JSON"):
        return _read_text(file), memory
    part = _read_gguf(file)
    found = part.metadata.get("general.architecture")
    if file.kind == "projector":
        if found != "clip":
            raise _wrong(file, found)
        more = part.size_bytes + IMAGE_WORKSPACE_BYTES
        return part.size_bytes, replace(memory, host_bytes=memory.host_bytes + more)
    if file.kind == "control vector":
        if found != "controlvector":
            raise _wrong(file, found)
        return part.size_bytes, replace(memory, host_bytes=memory.host_bytes + part.size_bytes)
    if part.metadata.get("adapter.type") != "lora":
        raise _wrong(file, found)
    if architecture and found != architecture:
        raise OptionFileUnusable(
            f"{file.option}: {file.path} is an adapter for {shown(found)}, and the model is "
            f"{architecture}; give an adapter that was made for this model"
        )
    return part.size_bytes, _with_lora(memory, part)


def _wrong(file: OptionFile, architecture: object) -> OptionFileUnusable:
    what = f"a GGUF file of {shown(architecture)}" if architecture else "a GGUF file without a kind"
    return OptionFileUnusable(
        f"{file.option}: {file.path} is {what}, not a {file.kind}; give the {file.kind} made for "
        "this model"
    )


def _with_lora(memory: OptionMemory, part: GgufPart) -> OptionMemory:
    layers, at_input, at_output = dict(memory.layers), memory.input_bytes, memory.output_bytes
    for tensor in part.tensors:
        if found := _BLOCK.match(tensor.name):
            layers[int(found[1])] = layers.get(int(found[1]), 0) + tensor.size_bytes
        elif tensor.name.startswith("token_embd."):
            at_input += tensor.size_bytes
        else:
            at_output += tensor.size_bytes
    return replace(memory, layers=layers, input_bytes=at_input, output_bytes=at_output)


def _read_text(file: OptionFile) -> int:
    with _opened(file) as handle:
        content = handle.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise OptionFileUnusable(
            f"{file.option}: {file.path} is larger than {MAX_TEXT_BYTES >> 10} KiB, which no "
            f"{file.kind} is; give another file"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or not text.strip():
        what = "is no text in UTF-8" if text.strip() else "is empty"
        raise OptionFileUnusable(
            f"{file.option}: {file.path} {what}; give a file with the {file.kind} in it"
        )
    if file.kind == "template":
        _check_template(file, text)
    if file.kind == "JSON":
        _check_json(file, text)
    return len(content)


def _check_template(file: OptionFile, text: str) -> None:
    """The engine reads it in full at the launch; a tag that never ends is told before."""
    at = _unclosed(text)
    if at is not None:
        raise OptionFileUnusable(
            f"{file.option}: {text[at : at + 2]} in line {text.count(NEWLINE, 0, at) + 1} of "
            f"{file.path} is never closed; correct the template"
        )


def _unclosed(text: str) -> int | None:
    """Where a Jinja tag begins that has no end; texts in quotes are skipped."""
    at = 0
    while opened := _OPENING.search(text, at):
        if opened[0] == "{#":
            end = text.find("#}", opened.end())
            at = end + 2
        else:
            wanted = "%}" if opened[0] == "{%" else "}}"
            parts = _IN_TAG.finditer(text, opened.end())
            end = next((part.end() for part in parts if part[0] == wanted), -1)
            at = end
        if end < 0:
            return opened.start()
        if raw := _RAW.match(text, opened.start()):
            ended = _END_RAW.search(text, raw.end())
            if ended is None:
                return opened.start()
            at = ended.end()
    return None


def _check_json(file: OptionFile, text: str) -> None:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise OptionFileUnusable(
            f"{file.option}: {file.path} is not JSON ({str(exc)[:80]}); correct it"
        ) from None


def _check_suffix(file: OptionFile, path: Path) -> None:
    wanted = _SUFFIXES.get(file.kind, (".gguf",))
    try:
        names = (path, path.resolve()) if file.kind in _SUFFIXES else (path,)
    except (OSError, ValueError, RuntimeError):
        names = (path,)
    if any(name.suffix.lower() not in wanted for name in names):
        raise OptionFileUnusable(
            f"{file.option}: the name of {str(path)!r} does not end in {' or '.join(wanted)}; give "
            f"a {file.kind} that is named so"
        )


def _read_gguf(file: OptionFile) -> GgufPart:
    with _opened(file) as handle:
        size_bytes = os.fstat(handle.fileno()).st_size
        try:
            return parse_part(LocalSource(file.path, size_bytes, handle))
        except ModelBroken as exc:
            raise OptionFileUnusable(f"{file.option}: {exc}") from exc
        except OSError as exc:
            raise OptionFileUnusable(
                f"{file.option}: {file.path} cannot be read: {exc.strerror}; check its disk"
            ) from exc


def _opened(file: OptionFile) -> FileIO:
    """The file, which is a regular one in full: opening a pipe would wait for ever."""
    path = Path(file.path)
    if not path.is_absolute():
        raise OptionFileUnusable(
            f"{file.option}: {file.path} is no full path; give that of a file on the main host"
        )
    _check_suffix(file, path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OptionFileUnusable(f"{file.option}: {path} is not a file; give a {file.kind}")
        return path.open("rb", buffering=0)
    except (FileNotFoundError, NotADirectoryError):
        raise OptionFileUnusable(
            f"{file.option}: {path} is not on the main host; give the full path of a {file.kind}"
        ) from None
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "a NUL in its name"
        raise OptionFileUnusable(
            f"{file.option}: {str(path)!r} cannot be read: {why}; check its rights"
        ) from exc
