"""An agent in a unit with MemoryMax= offers what the unit may take, not what the host has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lab.memory_group import ENTER, memory_group

MIB = 1 << 20
READ = "import json; from agents import facts; print(json.dumps(facts.memory()))"
UNIT = "user.slice/user-1000.slice/user@1000.service/app.slice/llama-rpc-agent.service"

ENTER_UNIT = """
set -e
mount --make-rprivate /
mount -t tmpfs groups /sys/fs/cgroup
cp -r "$1"/. /sys/fs/cgroup/
mount --bind "$2" "/proc/$$/cgroup"
shift 2
exec "$@"
"""


def read(*before: str) -> tuple[int, int]:
    """Total and available bytes, as an agent behind those words sees them."""
    done = subprocess.run(
        [*before, sys.executable, "-c", READ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode and before and before[0] == "unshare":
        pytest.skip(f"not permitted here: a mount namespace ({done.stderr.strip()})")
    assert done.returncode == 0, done.stderr
    total, available = json.loads(done.stdout)
    return int(total), int(available)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The folder of groups of a host with cgroup v2, as systemd makes it."""
    root = tmp_path / "groups"
    folder = root / UNIT
    folder.mkdir(parents=True)
    for each in (folder, *folder.parents):
        if each == root:
            break
        (each / "memory.max").write_text("max\n")
        (each / "memory.current").write_text(f"{900 * MIB}\n")
    return folder


def in_unit(unit: Path) -> tuple[int, int]:
    root = unit.parents[len(Path(UNIT).parts) - 1]
    own = root.parent / "own"
    own.write_text(f"0::/{UNIT}\n")
    enter = ("unshare", "-m", "/bin/sh", "-c", ENTER_UNIT, "enter", str(root), str(own))
    return read(*enter)


def test_the_limit_of_the_unit_is_what_there_is(unit: Path) -> None:
    (unit / "memory.max").write_text(f"{512 * MIB}\n")
    (unit / "memory.current").write_text(f"{112 * MIB}\n")
    assert in_unit(unit) == (512 * MIB, 400 * MIB)


def test_a_tighter_slice_above_it_counts(unit: Path) -> None:
    (unit / "memory.max").write_text(f"{2048 * MIB}\n")
    (unit / "memory.current").write_text(f"{48 * MIB}\n")
    (unit.parents[2] / "memory.max").write_text(f"{1000 * MIB}\n")
    assert in_unit(unit) == (1000 * MIB, 100 * MIB)


def test_a_unit_without_a_limit_has_all_of_the_host(unit: Path) -> None:
    total, _ = in_unit(unit)
    assert total == read()[0]


def test_a_real_group_of_the_kernel_is_seen() -> None:
    with memory_group(f"limit-{os.getpid()}", 256 * MIB) as group:
        total, available = read(*ENTER, str(group))
    assert total == 256 * MIB
    assert 0 < available < total
