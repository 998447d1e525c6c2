"""Who listens on a port of this host, as far as the platform tells. Connects to nothing."""

import contextlib
from pathlib import Path
from typing import Final

from agents.doctor import reading

_LISTENS: Final = "0A"
"""State of a socket in ``/proc/net/tcp``."""


def listening_inodes(table: str, port: int) -> set[str]:
    """Sockets that listen on ``port``, by a table as in ``/proc/net/tcp``."""
    rows = (line.split() for line in table.splitlines()[1:])
    return {
        row[9]
        for row in rows
        if len(row) > 9 and row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) == port
    }


def named_by_lsof(output: str) -> str:
    """``python3 (pid 123)`` of what ``lsof -F pc`` prints."""
    fields = {line[0]: line[1:] for line in output.splitlines() if line}
    return f"{fields.get('c', 'a program')} (pid {fields['p']})" if "p" in fields else ""


async def holder(port: int) -> str:
    """Program and pid; empty where nothing tells, as on Android or for another user's program."""
    tables = [reading.text_of(Path(f"/proc/net/{name}")) for name in ("tcp", "tcp6")]
    if any(table is not None for table in tables):
        inodes = set().union(*(listening_inodes(table or "", port) for table in tables))
        return await reading.in_thread(lambda: _owner(inodes)) if inodes else ""
    said = await reading.command("lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fpc")
    return named_by_lsof(said.text) if said.status == 0 else ""


def _owner(inodes: set[str]) -> str:
    names = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for handle in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(handle.readlink()) in names:
                        return f"{_name(process)} (pid {process.name})"
    return "a program of another user"


def _name(process: Path) -> str:
    """What it is called: a script's own name rather than its interpreter's."""
    return (reading.text_of(process / "comm") or "a program").strip()
