"""Shared fixtures."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cluster import RUN_MARK, Cluster, engine_pids, eventually
from taking_turns import pytest_runtest_protocol

from agents import engine as engines
from agents.contract import EngineFacts
from supervisor.demo_model import write_demo_model

__all__ = ["Cluster", "engine_pids", "eventually", "pytest_runtest_protocol"]


def pytest_configure() -> None:
    """Children heed Ctrl-C, though whoever runs the tests in the background ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI a skip is a failure: everything was installed, so everything has to run.

    Except for what the machine forbids, which no installation changes.
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter is not None else []
    skipped = [report for report in reports if "not permitted here" not in str(report.longrepr)]
    if reporter and skipped and exitstatus == 0 and os.environ.get("REQUIRE_ALL_TESTS"):
        reporter.write_line(f"{len(skipped)} tests were skipped, and none may be here", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def engine() -> EngineFacts:
    """The real llama.cpp programs; without them the suite fails, it never skips."""
    found = engines.discover(engines.inherited())
    assert found, "no llama.cpp programs: run 'uv sync', which builds them, or set LLAMA_CPP_BIN"
    return asyncio.run(engines.inspect(found[0], engines.inherited()))


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that recites one sentence."""
    path = tmp_path_factory.mktemp("models") / "recite.gguf"
    write_demo_model(path)
    return path


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, whose output shows the smallest numeric difference."""
    path = tmp_path_factory.mktemp("models") / "random.gguf"
    write_demo_model(path, recite=False)
    return path


@pytest.fixture(scope="session", autouse=True)
def _marked_environment() -> Iterator[None]:
    """Every process of this run carries a mark, so that orphans can be told from strangers."""
    os.environ["TMPDIR_MARK_OF_TESTS"] = RUN_MARK
    yield
    del os.environ["TMPDIR_MARK_OF_TESTS"]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """An empty cluster folder; nothing of it may be left running afterwards."""
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        await made.close()
    left = engine_pids()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"engine processes were left running: {left}"


@pytest.fixture
async def pair(cluster: Cluster) -> Cluster:
    """A supervisor and two ready workers."""
    await cluster.supervisor()
    await asyncio.gather(cluster.agent("one"), cluster.agent("two"))
    return cluster
