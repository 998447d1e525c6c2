"""Cores: which may be used, which are fast, how many threads, and where an rpc-server is pinned."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from agents import cores
from agents.cores import Cores

PIXEL = {0: 1803, 1: 1803, 2: 1803, 3: 1803, 4: 2348, 5: 2348, 6: 2850, 7: 2850}
"""Highest clocks of a phone with cores of three kinds."""

DESKTOP = {0: 5200, 1: 5300, 2: 5200, 3: 5250}
"""The best of equal cores were sorted out."""


@pytest.mark.parametrize(
    ("allowed", "max_khz", "fast"),
    [
        (range(8), PIXEL, {4, 5, 6, 7}),
        ({0, 1, 4}, PIXEL, {4}),  # what the system leaves to a program in the background
        ({0, 1}, PIXEL, {0, 1}),  # only slow ones are left: they are all there is
        (range(4), DESKTOP, {0, 1, 2, 3}),
        (range(8), {**PIXEL, 6: 0}, {0, 1, 2, 3, 4, 5, 7}),
        (range(8), {number: PIXEL[number] for number in range(7)}, None),  # one is unreadable
        (range(8), {}, None),
        ((), PIXEL, None),
    ],
)
def test_the_fast_cores_are_all_but_the_slowest_kind(
    allowed: range | set[int], max_khz: Mapping[int, int], fast: set[int] | None
) -> None:
    assert cores.fast_cores(frozenset(allowed), max_khz) == fast


@pytest.mark.parametrize(
    ("allowed", "present", "quota", "usable"),
    [
        ({0, 1, 2, 3}, 8, None, 4),
        (None, 8, None, 8),
        (None, None, None, 1),
        ({0, 1, 2, 3}, 8, 2.0, 2),
        ({0, 1, 2, 3}, 8, 2.9, 2),
        ({0, 1, 2, 3}, 8, 0.5, 1),
        ({0, 1}, 8, 6.0, 2),
        (None, 8, 3.0, 3),
    ],
)
def test_no_more_cores_are_used_than_the_quota_is_worth(
    allowed: set[int] | None, present: int | None, quota: float | None, usable: int
) -> None:
    assert cores.cores(allowed, present, quota, {}).usable == usable


@pytest.mark.parametrize(
    ("allowed", "max_khz", "quota", "phone", "computer"),
    [
        (range(8), PIXEL, None, 4, 8),
        ({0, 1}, PIXEL, None, 2, 2),
        ({0, 6}, PIXEL, None, 1, 2),
        (range(8), {}, None, 4, 8),
        ({0}, {}, None, 1, 1),
        (range(8), PIXEL, 3.0, 3, 3),
    ],
)
def test_a_phone_computes_on_its_fast_cores_and_a_computer_on_all(
    allowed: range | set[int],
    max_khz: Mapping[int, int],
    quota: float | None,
    phone: int,
    computer: int,
) -> None:
    found = cores.cores(frozenset(allowed), 8, quota, max_khz)
    assert cores.threads_for(found, is_phone=True) == phone
    assert cores.threads_for(found, is_phone=False) == computer


@pytest.mark.parametrize(
    ("found", "threads", "is_phone", "pinned"),
    [
        (Cores(frozenset(range(8)), 8, frozenset({6, 7})), 2, True, {6, 7}),
        (Cores(frozenset(range(8)), 8, frozenset({6, 7})), 1, True, {6, 7}),
        (Cores(frozenset(range(8)), 8, frozenset({6, 7})), 3, True, None),
        (Cores(frozenset(range(8)), 8, frozenset({6, 7})), 2, False, None),
        (Cores(frozenset({0, 1}), 2, frozenset({0, 1})), 2, True, None),
        (Cores(frozenset(range(8)), 8, None), 4, True, None),
        (Cores(None, 8, None), 4, True, None),
    ],
)
def test_only_a_phone_is_pinned_and_only_if_its_threads_have_room(
    found: Cores, threads: int, is_phone: bool, pinned: set[int] | None
) -> None:
    assert cores.cores_to_pin(found, threads, is_phone=is_phone) == pinned


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("max 100000\n", None),
        ("-1 100000", None),
        ("150000 100000\n", 1.5),
        ("50000 100000", 0.5),
        ("400000", 4.0),
    ],
)
def test_a_quota_is_read(text: str, quota: float | None) -> None:
    assert cores.quota_of(text) == quota


@pytest.mark.parametrize("text", ["", "a b", "0 100000"])
def test_what_is_no_quota_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        cores.quota_of(text)


# -- reading ---------------------------------------------------------------------------------------


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        },
    )
    assert cores.read_quota(root) == 1.5


def test_a_quota_of_the_older_groups_is_read(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/box\n2:memory:/box\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cores.read_quota(root) == 2.5


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "what\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1 0\n"},
    ],
)
def test_without_a_readable_quota_there_is_none(tmp_path: Path, files: Mapping[str, str]) -> None:
    assert cores.read_quota(write(tmp_path, files)) is None


def test_clocks_are_read_of_the_cores_that_tell_them(tmp_path: Path) -> None:
    clock = "sys/devices/system/cpu/cpu{}/cpufreq/cpuinfo_max_freq"
    files = {clock.format(0): "1803000\n", clock.format(2): "2850000\n", clock.format(3): "?"}
    root = write(tmp_path, files)
    assert cores.read_max_khz({0, 1, 2, 3}, root) == {0: 1803000, 2: 2850000}


def test_this_host_is_read_without_an_error(tmp_path: Path) -> None:
    found = cores.read()
    assert 1 <= found.usable <= (os.cpu_count() or 1)
    bare = cores.read(tmp_path)
    assert bare.usable == len(os.sched_getaffinity(0))
    assert bare.fast is None


def test_a_platform_without_affinity_counts_its_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    found = cores.read(tmp_path)
    assert found == Cores(None, os.cpu_count() or 1, None)


def test_a_phone_that_forbids_to_ask_counts_its_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forbidden(_pid: int) -> set[int]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_getaffinity", forbidden)
    assert cores.read(tmp_path).usable == (os.cpu_count() or 1)


# -- pinning ---------------------------------------------------------------------------------------


def test_a_process_is_pinned(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        one = {max(os.sched_getaffinity(0))}
        cores.pin(process.pid, one)
        assert os.sched_getaffinity(process.pid) == one
    finally:
        process.communicate(b"\n")


def test_pinning_where_there_is_no_such_thing_is_an_error_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(OSError, match="no sched_setaffinity"):
        cores.pin(os.getpid(), {0})
