"""Where the kernel keeps the limits of the control group that this process is in."""

from pathlib import Path


def folders(controller: str, root: Path = Path("/")) -> list[tuple[Path, bool]]:
    """Folders of the group and of all groups around it, and whether they are of version 2.

    A limit counts wherever it is set on the way up. Nothing where there are no groups.

    Args:
        controller: ``memory`` or ``cpu``.
        root: Where ``proc`` and ``sys`` are.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        is_v2 = controllers == ""
        if not is_v2 and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("" if is_v2 else controller)
        folder = base / path.lstrip("/")
        for level in (folder, *folder.parents):
            if level == base.parent:
                break
            found.append((level, is_v2))
    return found
