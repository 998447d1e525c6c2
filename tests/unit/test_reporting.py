"""Packing a report, and our own log that goes into it."""

import io
import logging
import tarfile
from collections.abc import Iterator

import pytest

from agents import log as logs
from supervisor.core.masking import Private
from supervisor.service import reporting
from supervisor.service.own_log import OwnLog


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    yield
    root.handlers[:], root.level = before


def packed(files: dict[str, str], private: Private | None = None) -> list[tarfile.TarInfo]:
    made = [reporting._File(path, text) for path, text in files.items()]
    data = reporting._packed("report-1", made, private or Private(), 1_700_000_000)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        return archive.getmembers()


def test_the_same_report_is_the_same_archive() -> None:
    files = [reporting._File("README.txt", "x"), reporting._File("logs/a.log", "y" * 10_000)]
    first, second = (reporting._packed("r", files, Private(), 1_700_000_000) for _ in range(2))
    assert first == second


def test_nothing_of_this_host_is_in_the_headers_and_secrets_are_not_in_names() -> None:
    members = packed({"README.txt": "x", "logs/zoe-phone.log": "y"}, Private(users=("zoe",)))
    assert [member.name for member in members] == [
        "report-1/README.txt",
        "report-1/logs/user-phone.log",
    ]
    assert {(m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, "", "", 0o644)}


def test_what_is_too_much_is_cut_from_the_last_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "_MOST_BYTES", 2500)
    members = packed({f"{number}.log": "ä" * 500 for number in range(4)})
    assert [member.size for member in members] == [1000, 1000, 500, 0]


def test_our_own_log_is_kept_as_it_is_written_up_to_a_limit() -> None:
    shown = io.StringIO()
    logs.configure("supervisor", stream=shown)
    kept = OwnLog(lines=3)
    kept.install()
    for number in range(5):
        logging.getLogger("supervisor.test").info("thing.happened", extra={"number": number})
    assert kept.text() == "".join(shown.getvalue().splitlines(keepends=True)[-3:])
    assert "number=4" in kept.text()


def test_our_own_log_is_kept_without_any_other_handler() -> None:
    logging.getLogger().handlers.clear()
    kept = OwnLog()
    kept.install()
    logging.getLogger("supervisor.test").warning("thing.happened")
    assert kept.text() == "thing.happened\n"
