"""An archive of which a beginning is on disk."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from agents import privatefile
from supervisor.core.engine_builds import Asset


@dataclass(slots=True)
class Part:
    """An archive of which a beginning is on disk, and what it was the beginning of."""

    path: Path
    asset: Asset
    etag: str = ""

    @property
    def note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def bytes_there(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def recall(self) -> None:
        """Go on with an earlier download of the same file; throw away what was another's."""
        try:
            noted = json.loads(self.note.read_text())
            is_same = noted["sha256"] == self.asset.sha256 and noted["url"] == self.asset.url
            is_same = is_same and noted["size_bytes"] == self.asset.size_bytes
            self.etag = str(noted["etag"]) if is_same else ""
        except (OSError, ValueError, KeyError, TypeError):
            is_same = False
        is_provable = bool(self.asset.sha256 or self.etag)
        if not is_same or not is_provable or self.bytes_there() > self.asset.size_bytes:
            self.discard()

    def remember(self, etag: str) -> None:
        self.etag = etag
        asset = self.asset
        noted = {"url": asset.url, "sha256": asset.sha256, "size_bytes": asset.size_bytes}
        privatefile.write(self.note, json.dumps({**noted, "etag": etag}))

    def discard(self) -> None:
        self.etag = ""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
