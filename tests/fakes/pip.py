"""Stands for pip on a phone: wheels lie in ``$SHOP``, and ``$NO_WHEEL`` names what has none.

What it is called with is recorded in ``$CALLS``. ``install`` unpacks wheels of that folder only.
"""

import os
import re
import shutil
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

NEEDS = dict.fromkeys(("pydantic", "fastapi", "typer"), "pydantic-core")


def main(argv: Sequence[str]) -> int:
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.write(f"pip {' '.join(argv)}\n")
    if argv[0] in ("wheel", "download"):
        return fetch(argv)
    wanted = list(requirements(argv))
    missing = os.environ.get("NO_WHEEL", "").split()
    for each in wanted:
        name = (re.match(r"[\w.-]+", each) or [""])[0]
        if name in missing or ("--no-deps" not in argv and NEEDS.get(name) in missing):
            print(f"ERROR: No matching distribution found for {each}", file=sys.stderr)
            return 1
    if "--dry-run" not in argv:
        for each in wanted:
            if each.endswith(".whl"):
                with zipfile.ZipFile(each) as wheel:
                    wheel.extractall(sysconfig.get_path("purelib"))
    return 0


def fetch(argv: Sequence[str]) -> int:
    """Put the wheel that is asked for into the folder that is named."""
    folder = Path(argv[argv.index("--wheel-dir" if argv[0] == "wheel" else "--dest") + 1])
    name = "llama_rpc_supervisor" if argv[0] == "wheel" else "huggingface_hub"
    if argv[0] == "wheel" and not Path(argv[-1]).exists():
        print(f"ERROR: {argv[-1]} does not exist", file=sys.stderr)
        return 1
    folder.mkdir(parents=True)
    (wheel,) = Path(os.environ["SHOP"]).glob(f"{name}-*.whl")
    shutil.copy(wheel, folder)
    return 0


def requirements(argv: Sequence[str]) -> Iterator[str]:
    words = iter(argv[1:])
    for word in words:
        if word == "-r":
            yield from Path(next(words)).read_text().splitlines()
        elif word in ("--extra-index-url", "--no-binary"):
            next(words)
        elif not word.startswith("-"):
            yield word


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
