"""Small files that must be whole or not there at all: keys, records, addresses."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Replace ``path`` with ``text``, readable by us alone.

    Half a key would be taken for ours at the next start, so the text appears under its name only
    when all of it is written.

    Raises:
        OSError: No permission, or a full disk; ``path`` is as it was.
    """
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    temporary.replace(path)
