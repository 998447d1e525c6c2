"""Requests for whole files, as they are needed to fill the hub's cache."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import LocalEntryNotFoundError

from agents.errors import ProjectError
from supervisor import __version__
from supervisor.adapters import hub_http
from supervisor.adapters.hub_http import CLIENT, Hub, RemotePart
from supervisor.errors import HubUnreachable

RANGE_BYTES: Final = 8 << 30
"""Asked for at once. The links to the hub's store end after an hour, and some stores in front of
it refuse to send more than 50 GB at once."""

TryAgain: Final = hub_http._TryAgain
"""This try failed, the next may not."""


class NoRanges(HubUnreachable):
    """The store sends whole files only."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the hub says of one file in one version."""

    etag: str
    size_bytes: int


class Line(Hub):
    """A hub of which whole files are wanted."""

    __slots__ = ()

    def facts(self, part: RemotePart) -> Facts:
        """Ask for a file's version and size as the hub's cache counts them.

        Raises:
            ModelMissing, ModelForbidden, HubOffline, HubUnreachable: With reason and link.
        """
        self._check_endpoint()
        with self._translated(part.repo, part.path):
            found = get_hf_file_metadata(
                self._url(part),
                token=hub_http._token() or False,
                timeout=self.patience.silence_s,
                endpoint=self.endpoint,
                library_name=CLIENT,
                library_version=__version__,
            )
        size_bytes = part.size_bytes if found.size is None else found.size
        return Facts(found.etag or part.etag, size_bytes)

    def stream(
        self,
        part: RemotePart,
        start: int,
        end: int,
        take: Callable[[bytes], None],
        *,
        is_part: bool = False,
    ) -> None:
        """Hand the bytes from ``start`` to ``end`` to ``take``, in pieces; at most ``RANGE_BYTES``.

        Raises:
            ModelMissing, ModelForbidden, HubOffline, HubUnreachable: With reason and link; what
                was taken before counts.
            NoRanges: It would send the whole file, and ``is_part`` says that others fetch the rest.
            ProjectError: What ``take`` raises.
        """
        end = min(start + RANGE_BYTES, end)
        headers = hub_http._headers() | {
            "Range": f"bytes={start}-{end - 1}",
            "Accept-Encoding": "identity",
        }
        at = start
        with (
            self._translated(part.repo, part.path),
            get_session().stream(
                "GET", self._url(part), headers=headers, timeout=self._wait_s
            ) as answer,
        ):
            if answer.status_code not in (200, 206):
                raise self._refusal(part.repo, part.path, answer.status_code, answer.headers)
            hub_http._check_size(part, start, answer.status_code, answer.headers)
            if is_part and answer.status_code == 200:
                raise NoRanges(f"{self.endpoint} sends {part.name} as a whole or not at all")
            # Status 200: no ranges here, and everything is sent; what is there is skipped.
            skip = start if answer.status_code == 200 else 0
            for piece in answer.iter_bytes():
                new = piece[skip:][: end - at]
                skip = max(0, skip - len(piece))
                if new:
                    take(new)
                    at += len(new)
                if at == end:
                    return
        raise TryAgain(
            f"{self.endpoint} sent {at - start} of {end - start} bytes of {part.name}; try again"
            " later"
        )

    def linked(self, part: RemotePart, cache: Path) -> Path:
        """Let huggingface_hub give a file that is in its cache its name there.

        Raises:
            ModelMissing, ModelForbidden, HubOffline, HubUnreachable: With reason and link.
        """
        with self._translated(part.repo, part.path):
            try:
                path = hf_hub_download(
                    part.repo,
                    part.path,
                    revision=part.revision,
                    cache_dir=str(cache),
                    endpoint=self.endpoint,
                    token=hub_http._token() or False,
                    etag_timeout=self.patience.silence_s,
                    library_name=CLIENT,
                    library_version=__version__,
                )
            except LocalEntryNotFoundError as exc:  # says so of a hub that is busy, too
                raise TryAgain(
                    f"{self.endpoint} did not confirm {part.name}; try again later"
                ) from exc
        return Path(path)

    def _url(self, part: RemotePart) -> str:
        return hf_hub_url(part.repo, part.path, revision=part.revision, endpoint=self.endpoint)


def cache_folder(given: str = "") -> Path:
    """Of huggingface_hub: ``HF_HUB_CACHE``, or below ``HF_HOME``."""
    return Path(given or os.path.expanduser(constants.HF_HUB_CACHE))  # noqa: PTH111


def given_up(error: ProjectError) -> HubUnreachable:
    """What is said when a try will not be followed by another."""
    return HubUnreachable(str(error))
