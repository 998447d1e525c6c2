"""The page's pure modules, tested by Node's own test runner."""

import gzip
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_the_pure_modules_of_the_page_pass_their_tests() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node.js 20 or newer: apt-get install nodejs")
    files = sorted(str(path) for path in HERE.glob("*.test.mjs"))
    assert files
    done = subprocess.run(
        [node, "--test", *files], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_stays_small() -> None:
    """In what is sent, which is compressed: modules and styles are served as they are written."""
    folder = HERE.parent.parent / "dashboard"
    fetched = [path for path in folder.rglob("*") if path.is_file() and path.name != "types.mjs"]
    sizes = {
        str(path.relative_to(folder)): len(gzip.compress(path.read_bytes())) for path in fetched
    }
    assert sum(sizes.values()) < 150 * 1024, sorted(sizes.items(), key=lambda each: -each[1])
