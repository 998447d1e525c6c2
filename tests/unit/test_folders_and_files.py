"""What keys and records are written with, and the folder they are in."""

import asyncio
import os
from pathlib import Path

import pytest

from agents import datafolder, privatefile
from agents.errors import AgentRunning, FolderNotWritable

TAKEN = AgentRunning("another agent uses it")


def test_a_private_file_is_whole_and_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old and readable by all")
    path.chmod(0o644)
    privatefile.write(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_what_an_interrupted_write_left_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "key"
    (tmp_path / "key.new").write_text("ha")
    privatefile.write(path, "half no more")
    assert path.read_text() == "half no more"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("old")
    (tmp_path / "key.new").mkdir()  # as if the disk refused
    with pytest.raises(OSError, match=r"key\.new"):
        privatefile.write(path, "new")
    assert path.read_text() == "old"


async def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    async with datafolder.held(folder, "x.lock", taken=TAKEN):
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(AgentRunning):
            async with datafolder.held(folder, "x.lock", taken=TAKEN):
                pytest.fail("two owners")
    async with datafolder.held(folder, "x.lock", taken=TAKEN):
        pass


async def test_who_is_patient_gets_a_folder_that_is_being_left(tmp_path: Path) -> None:
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def first() -> None:
        async with datafolder.held(tmp_path, "x.lock", taken=TAKEN):
            entered.set()
            await leave.wait()

    async def second() -> str:
        async with datafolder.held(tmp_path, "x.lock", taken=TAKEN, patience_s=10):
            return "in"

    owner = asyncio.create_task(first())
    await entered.wait()
    waiting = asyncio.create_task(second())
    await asyncio.sleep(0.02)
    assert not waiting.done()
    leave.set()
    assert await waiting == "in"
    await owner


async def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(FolderNotWritable, match="--data"):
        async with datafolder.held(blocked / "sub", "x.lock", taken=TAKEN):
            pytest.fail(os.fspath(blocked))
