"""With several test processes (``pytest -n``), some tests have the machine to themselves.

Such a test is marked ``alone``: it is about time limits, or loads the machine on purpose. The
others share. Two locked files hold the order: who wants to be alone keeps the gate, so that nobody
new comes in, and waits until those who are in have left.
"""

import contextlib
import fcntl
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Waiting for the turn counts to no time limit of the test: this wraps those, too."""
    cache = item.config.cache
    if cache is None or not hasattr(item.config, "workerinput"):
        return (yield)  # a run of one process
    with turn(cache.mkdir("turns"), is_alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextlib.contextmanager
def turn(folder: Path, *, is_alone: bool) -> Iterator[None]:
    """Hold the machine: with others, or alone."""
    with (folder / "gate").open("a") as gate, (folder / "floor").open("a") as floor:
        with _held(gate, fcntl.LOCK_EX):
            fcntl.flock(floor, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(floor, fcntl.LOCK_UN)


@contextlib.contextmanager
def _held(file: IO[str], how: int) -> Iterator[None]:
    fcntl.flock(file, how)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
