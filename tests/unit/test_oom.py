"""The kernel's kills for want of memory: told apart from those of others, where that can be."""

import os
from pathlib import Path

import pytest

from agents import oom
from agents.oom import OomWatch

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 7\noom 9\noom_kill {}\noom_group_kill 5\n"
VMSTAT = "nr_free_pages 5\noom_kill {}\nnuma_hit 3\n"


class Kernel:
    """Files as the kernel has them, for this very process."""

    def __init__(self, folder: Path) -> None:
        self.host = folder / "vmstat"
        self.groups = folder / "cgroup"
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        self._paths = {
            "v1" if controllers else "v2": path.lstrip("/")
            for _, controllers, path in (line.split(":", 2) for line in lines)
            if controllers in ("", "memory")
        }

    def count(self, version: str, kills: int) -> Path:
        """Have our group count so many; the version that this host has is what is looked for."""
        if version not in self._paths:
            pytest.skip(f"not permitted here: no memory group of cgroup {version}")
        path = self.groups / self._paths[version] / "memory.events"
        if version == "v1":
            path = self.groups / "memory" / self._paths[version] / "memory.oom_control"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((V2 if version == "v2" else V1).format(kills))
        return path

    @property
    def version(self) -> str:
        """One that this host has."""
        return next(iter(self._paths), "v2")

    def count_host(self, kills: int) -> None:
        self.host.write_text(VMSTAT.format(kills))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tmp_path)
    monkeypatch.setattr(oom, "_HOST", made.host)
    monkeypatch.setattr(oom, "_GROUPS", made.groups)
    return made


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_kills_in_our_group_count_and_those_of_others_do_not(kernel: Kernel, version: str) -> None:
    kernel.count(version, 3)
    kernel.count_host(100)
    watch = OomWatch(os.getpid())
    kernel.count_host(104)
    watch.look()
    assert watch.kills() == watch.kills(has_ended=True) == 0
    kernel.count(version, 5)
    assert watch.kills() == watch.kills(has_ended=True) == 2


def test_without_groups_the_whole_host_counts(kernel: Kernel) -> None:
    kernel.count_host(7)
    watch = OomWatch(os.getpid())
    assert watch.kills() == 0
    kernel.count_host(9)
    watch.look()
    assert watch.kills() == watch.kills(has_ended=True) == 2
    assert oom.kills_so_far() == 9


def test_where_nothing_tells_the_kills_are_unknown(kernel: Kernel) -> None:
    watch = OomWatch(os.getpid())
    assert watch.kills() is None
    assert watch.kills(has_ended=True) is None
    assert oom.kills_so_far() is None
    kernel.count_host(5)
    assert watch.kills() is None, "no difference is known"
    kernel.host.write_text("nr_free_pages 5\n")
    assert oom.kills_so_far() is None, "a kernel before 4.13"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_our_own_group_is_what_is_left_where_the_host_is_hidden(
    kernel: Kernel, version: str
) -> None:
    kernel.count(version, 4)
    watch = OomWatch(os.getpid())
    kernel.count(version, 5)
    assert watch.kills() == 1
    assert oom.kills_so_far() == 5


def test_a_process_that_changed_its_group_after_the_last_look_is_not_missed(
    kernel: Kernel,
) -> None:
    kernel.count(kernel.version, 0)
    kernel.count_host(1)
    watch = OomWatch(os.getpid())
    kernel.count_host(2)
    watch.look()
    kernel.count_host(3)
    assert watch.kills() == 0, "it lives, so this was another"
    assert watch.kills(has_ended=True) == 1


def test_a_group_that_is_gone_keeps_its_last_figure(kernel: Kernel) -> None:
    file = kernel.count(kernel.version, 1)
    kernel.count_host(0)
    watch = OomWatch(os.getpid())
    kernel.count(kernel.version, 2)
    assert watch.kills() == 1
    file.unlink()
    watch.look()
    assert watch.kills(has_ended=True) == 1


def test_a_process_that_is_gone_is_no_error(kernel: Kernel) -> None:
    kernel.count_host(1)
    watch = OomWatch(2**22 + 1)  # above the largest pid
    watch.look()
    kernel.count_host(2)
    assert watch.kills(has_ended=True) == 1
