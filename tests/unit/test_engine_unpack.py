"""Unpacking an engine: links as they are, hard links as copies, nothing outside its folder."""

import io
import random
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from agents.engine_unpack import unpack
from agents.errors import EngineNotFetched

Member = tuple[str, bytes | str, bytes]
"""Name, content or target of a link, and kind as tarfile has it."""


def tar(path: Path, *members: Member) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o4755
            if isinstance(content, bytes):
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
            else:
                info.linkname = content
                made.addfile(info)
    return path


def taken(archive: Path, folder: Path) -> Path:
    unpack(archive, folder / "made.new", threading.Event())
    return folder / "made.new"


def test_programs_links_and_hard_links(tmp_path: Path) -> None:
    made = taken(
        tar(
            tmp_path / "a.tar.gz",
            ("llama-b1/", b"", tarfile.DIRTYPE),
            ("llama-b1/llama-server", b"program", tarfile.REGTYPE),
            ("llama-b1/libggml.so.1", b"library", tarfile.REGTYPE),
            ("llama-b1/libggml.so", "libggml.so.1", tarfile.SYMTYPE),
            ("llama-b1/rpc-server", "llama-b1/llama-server", tarfile.LNKTYPE),
        ),
        tmp_path,
    )
    top = made / "llama-b1"
    assert (top / "libggml.so").readlink() == Path("libggml.so.1")
    assert (top / "rpc-server").read_bytes() == b"program"
    assert (top / "rpc-server").stat().st_nlink == 1, "Android has no hard links"
    assert (top / "rpc-server").stat().st_mode & 0o7777 == 0o755, "no set-user-id bit"


def test_what_was_half_unpacked_before_is_gone(tmp_path: Path) -> None:
    (tmp_path / "made.new" / "old").mkdir(parents=True)
    made = taken(tar(tmp_path / "a.tar.gz", ("new", b"x", tarfile.REGTYPE)), tmp_path)
    assert [path.name for path in made.iterdir()] == ["new"]


@pytest.mark.parametrize(
    "members",
    [
        [("../outside", b"x", tarfile.REGTYPE)],
        [("/tmp/outside-absolute", b"x", tarfile.REGTYPE)],
        [("a/../../outside", b"x", tarfile.REGTYPE)],
        [("link", "..", tarfile.SYMTYPE)],
        [("link", "/etc", tarfile.SYMTYPE)],
        [("d/", b"", tarfile.DIRTYPE), ("l", "d", tarfile.SYMTYPE), ("l/../../o", b"", b"0")],
        [("a/b/", b"", b"5"), ("s", "a/b", b"2"), ("t", "s/../../..", b"2")],
        [("hard", "../../etc/passwd", tarfile.LNKTYPE)],
        [("hard", "/etc/passwd", tarfile.LNKTYPE)],
        [("device", b"", tarfile.CHRTYPE)],
        [("pipe", b"", tarfile.FIFOTYPE)],
        [("twice", b"x", tarfile.REGTYPE), ("twice", b"y", tarfile.REGTYPE)],
    ],
)
def test_members_that_an_engine_does_not_have_are_refused(
    tmp_path: Path, members: list[Member]
) -> None:
    (tmp_path / "box").mkdir()
    archive = tar(tmp_path / "a.tar.gz", *members)
    with pytest.raises(EngineNotFetched):
        taken(archive, tmp_path / "box")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"box", "a.tar.gz"}
    assert {path.name for path in (tmp_path / "box").iterdir()} == {"made.new"}


@pytest.mark.parametrize("cut", [20, 100, 3000])
def test_half_an_archive_is_refused(tmp_path: Path, cut: int) -> None:
    archive = tar(tmp_path / "a.tar.gz", ("x", random.Random(1).randbytes(9000), b"0"))
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(EngineNotFetched, match="cannot be unpacked"):
        taken(archive, tmp_path)


def test_a_zip_with_programs_and_links(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for name, content, mode in (
            ("build/bin/llama-server", "program", 0o100755),
            ("build/bin/libggml.so", "libggml.so.1", 0o120777),
            ("build/bin/libggml.so.1", "library", 0o100644),
        ):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            made.writestr(info, content)
    made_folder = taken(archive, tmp_path) / "build" / "bin"
    assert (made_folder / "libggml.so").read_text() == "library"
    assert (made_folder / "llama-server").stat().st_mode & 0o777 == 0o755


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    archive = tar(tmp_path / "a.tar.gz", ("x", b"x", tarfile.REGTYPE))
    with pytest.raises(EngineNotFetched, match="with the agent"):
        unpack(archive, tmp_path / "made.new", stop)
