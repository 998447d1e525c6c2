"""Requests to the model hub: searches, what a repository holds, and ranges of its files; never
whole files.

``huggingface_hub`` brings address (``HF_ENDPOINT``), token, connections and proxies; what it leaves
open is decided here: every request has time-outs and a bounded number of tries.

Source:
    huggingface_hub 2.4 ``utils/_http.py`` for the headers that tell why the hub refuses.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from pydantic import BaseModel, Field, TypeAdapter
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)
from tenacity.nap import sleep_using_event

from agents.errors import ProjectError
from supervisor import __version__
from supervisor.core.model_reference import FoundRepo, RepoFile
from supervisor.core.pulling import is_within
from supervisor.errors import HubOffline, HubUnreachable, ModelForbidden, ModelMissing

log = logging.getLogger(__name__)
T = TypeVar("T")

CLIENT: Final = "llama-rpc-supervisor"
MAX_QUOTED: Final = 300  # characters of the hub's own words in a message
BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
TRANSPORT_ERROR: Final[type[Exception]] = HfHubHTTPError.__bases__[0]
"""Of the HTTP library that this huggingface_hub uses: httpx in 1.x, httpx2 in 2.x."""

_SHOWN_OF_FOUND: Final = ("downloads", "gated", "lastModified", "likes")
"""What a search is to tell of each repository; by itself the hub would tell far more."""

_MOST_FOUND_BYTES: Final = 4 << 20

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_RATE_LIMIT: Final = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d{1,9})")
"""Of the header RateLimit: no request remains, a new window begins in so many seconds."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the hub is waited for."""

    connect_s: float = 10.0
    silence_s: float = 20.0
    """Between two pieces of an answer."""
    range_s: float = 300.0
    """For one range, however steadily it drips."""
    tries: int = 4
    first_pause_s: float = 0.5
    longest_pause_s: float = 60.0
    """Between two tries; a hub that asks for more is not asked again."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds; ``etags`` change with the content of a file."""

    repo: str
    revision: str
    files: tuple[RepoFile, ...]
    etags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RemotePart:
    """One file of a model on the hub, in exactly one version."""

    repo: str
    revision: str
    path: str
    size_bytes: int
    etag: str

    @property
    def name(self) -> str:
        """What messages call it; also the reference to exactly this file."""
        return f"{self.repo}/{self.path}"


class _Found(BaseModel):
    """A repository in the hub's answer to a search; what it says besides is left alone."""

    id: str
    downloads: int | None = None
    likes: int | None = None
    last_modified: datetime | None = Field(default=None, alias="lastModified")
    gated: str | bool | None = None
    """How access is given, such as "auto" or "manual"."""

    def facts(self) -> FoundRepo:
        changed = self.last_modified
        return FoundRepo(
            repo=self.id,
            downloads=self.downloads or 0,
            likes=self.likes or 0,
            updated_at=changed.isoformat(timespec="seconds") if changed else "",
            is_gated=bool(self.gated),
        )


_ANSWER: Final = TypeAdapter(list[_Found])


class _TryAgain(HubUnreachable):
    """This try failed, the next may not; ``after_s`` is what the hub asks to wait."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class Hub:
    """The hub that the environment names."""

    patience: Patience = Patience()
    endpoint: str = field(default_factory=lambda: constants.ENDPOINT)
    stop: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set by who no longer waits for an answer, from any thread."""

    def listing(self, repo: str) -> Listing:
        """Ask what a repository holds now.

        Raises:
            ModelMissing, ModelForbidden, HubOffline, HubUnreachable: With reason, link and remedy.
        """
        self._check_endpoint()
        return self._repeated(repo, "", lambda: self._listing(repo))

    def _listing(self, repo: str) -> Listing:
        api = HfApi(
            endpoint=self.endpoint,
            token=_token() or False,
            library_name=CLIENT,
            library_version=__version__,
        )
        try:
            info = api.model_info(repo, files_metadata=True, timeout=self.patience.silence_s)
            siblings = info.siblings or []
            etags = {s.rfilename: (s.lfs.sha256 if s.lfs else s.blob_id) or "" for s in siblings}
            files = tuple(
                RepoFile(path=s.rfilename, size_bytes=s.size or (s.lfs.size if s.lfs else 0))
                for s in siblings
                if is_within(s.rfilename)
            )
            return Listing(info.id, info.sha or constants.DEFAULT_REVISION, files, etags)
        except (ValueError, KeyError, TypeError) as exc:
            raise self._is_no_hub() from exc

    def search(self, text: str, limit: int) -> list[FoundRepo]:
        """Ask for repositories with GGUF files whose name has ``text``, the most loaded first.

        ``HfApi.list_models`` asks the same, but waits for ever for a hub that is silent, and
        minutes for one that is busy.

        Raises:
            ModelForbidden, HubOffline, HubUnreachable: With reason, link and remedy.
        """
        self._check_endpoint()
        body = self._repeated("", "", lambda: self._found(text, limit))
        try:
            return [found.facts() for found in _ANSWER.validate_json(body)][:limit]
        except ValueError as exc:
            raise self._is_no_hub() from exc

    def _found(self, text: str, limit: int) -> bytes:
        patience = self.patience
        deadline_s = time.monotonic() + patience.range_s
        params: dict[str, Any] = {"filter": "gguf", "sort": "downloads", "limit": limit}
        params |= {"expand": _SHOWN_OF_FOUND} | ({"search": text} if text else {})
        url, found = f"{self.endpoint.rstrip('/')}/api/models", bytearray()
        with get_session().stream(
            "GET", url, params=params, headers=_headers(), timeout=self._wait_s
        ) as response:
            if response.status_code != 200:
                raise self._refusal("", "", response.status_code, response.headers)
            for piece in response.iter_bytes():
                found += piece
                if len(found) > _MOST_FOUND_BYTES or time.monotonic() > deadline_s:
                    raise HubUnreachable(
                        f"{self.endpoint} sent {len(found)} bytes of an answer in"
                        f" {patience.range_s:g} s and went on; try again, or search for less"
                    )
        return bytes(found)

    def fetch(self, part: RemotePart, start: int, end: int) -> bytes:
        """Read the bytes from ``start`` to before ``end``; what a dropped connection brought
        counts.

        Raises:
            ModelMissing, ModelForbidden, HubOffline, HubUnreachable: With reason, link and remedy.
        """
        found = bytearray()
        deadline_s = time.monotonic() + self.patience.range_s

        def extend() -> None:
            self._extend(found, part, start, end, deadline_s)

        self._repeated(part.repo, part.path, extend)
        return bytes(found)

    def _extend(
        self, found: bytearray, part: RemotePart, start: int, end: int, deadline_s: float
    ) -> None:
        patience, at = self.patience, start + len(found)
        url = hf_hub_url(part.repo, part.path, revision=part.revision, endpoint=self.endpoint)
        headers = _headers() | {"Range": f"bytes={at}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, timeout=self._wait_s) as response:
            if response.status_code not in (200, 206):
                raise self._refusal(part.repo, part.path, response.status_code, response.headers)
            # Status 200: the server knows no ranges and sends everything, of which we want little.
            skip = at if response.status_code == 200 else 0
            _check_size(part, at, response.status_code, response.headers)
            for piece in response.iter_bytes():
                found += piece[skip:]
                skip = max(0, skip - len(piece))
                if len(found) >= end - start:
                    break
                self._check_wanted()
                if time.monotonic() > deadline_s:
                    raise HubUnreachable(
                        f"{self.endpoint} sent {len(found)} of {end - start} bytes of {part.name}"
                        f" in {patience.range_s:g} s; try again over a faster connection"
                    )
        del found[end - start :]
        if len(found) < end - start:
            raise _TryAgain(
                f"{self.endpoint} sent {len(found)} of {end - start} bytes of"
                f" {part.name}; try again later"
            )

    @property
    def _wait_s(self) -> tuple[float, float, float, float]:
        """To connect, read, write, and get a connection."""
        patience = self.patience
        return patience.connect_s, patience.silence_s, patience.silence_s, patience.connect_s

    def _repeated(self, repo: str, path: str, work: Callable[[], T]) -> T:
        """Do it until it succeeds, fails for good, or has been tried often enough."""

        def once() -> T:
            self._check_wanted()
            with self._translated(repo, path):
                return work()

        retrying = Retrying(
            retry=retry_if_exception_type(_TryAgain),
            stop=stop_after_attempt(self.patience.tries),
            wait=self._pause_s,
            before_sleep=_log_retry,
            sleep=sleep_using_event(self.stop),
            reraise=True,
        )
        return retrying(once)

    def _check_wanted(self) -> None:
        if self.stop.is_set():
            raise HubUnreachable("nobody waits for the hub any more; ask again")

    def _pause_s(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        asked_s = failure.after_s if isinstance(failure, _TryAgain) else 0.0
        patience = self.patience
        jittered = wait_random_exponential(patience.first_pause_s, max=patience.longest_pause_s)
        return max(asked_s, jittered(state))

    @contextmanager
    def _translated(self, repo: str, path: str) -> Iterator[None]:
        """Turn the errors of huggingface_hub and of its HTTP library into ours."""
        try:
            yield
        except HfHubHTTPError as exc:
            response = exc.response
            raise self._refusal(repo, path, response.status_code, response.headers) from exc
        except OfflineModeIsEnabled as exc:
            raise HubOffline(
                f"HF_HUB_OFFLINE is set, so {repo or 'the hub'} cannot be looked up; unset it, or"
                " give the path of a .gguf file"
            ) from exc
        except (TRANSPORT_ERROR, OSError) as exc:
            raise _TryAgain(
                f"{self.endpoint} cannot be reached ({_quoted(str(exc)) or type(exc).__name__});"
                " check the internet connection, or give the path of a .gguf file"
            ) from exc

    def _refusal(
        self, repo: str, path: str, status: int, headers: Mapping[str, str]
    ) -> ProjectError:
        """Why the hub answers with an error, in our words and its own."""
        code, words = headers.get("x-error-code", ""), _quoted(headers.get("x-error-message", ""))
        # Without a repository it was a search, of which "models" is the hub's page.
        link, said = f"{self.endpoint}/{repo or 'models'}", f" ({words})" if words else ""
        if status in BUSY:
            return self._busy(status, headers)
        if code == "GatedRepo":
            return ModelForbidden(
                f"{repo} may only be read by those who accepted its terms{said}: accept them at"
                f" {link}, then log in with 'hf auth login' or give HF_TOKEN"
            )
        if path and status == 404 and code != "RepoNotFound":
            return ModelMissing(f"{link} does not have {path} any more{said}; look there")
        is_hidden = status == 401 and "credentials in auth" not in words.lower()
        if repo and (status == 404 or is_hidden):
            return ModelMissing(
                f"{link} does not exist, or is private{said}; check the name, or log in with"
                " 'hf auth login' if it is yours"
            )
        if status in (401, 403, 451):
            return ModelForbidden(
                f"the hub does not let this account read {link}: HTTP {status}{said}; look there,"
                " and check the token (HF_TOKEN, or 'hf auth login')"
            )
        return HubUnreachable(f"{link} cannot be read: HTTP {status}{said}; look there")

    def _busy(self, status: int, headers: Mapping[str, str]) -> HubUnreachable:
        after_s, longest_s = _asked_pause_s(status, headers), self.patience.longest_pause_s
        problem = f"{self.endpoint} is overloaded or limits us (HTTP {status})"
        if after_s > longest_s:
            return HubUnreachable(f"{problem} and asks to wait {after_s:.0f} s; try again then")
        tries = self.patience.tries
        return _TryAgain(f"{problem}; {tries} tries were in vain, try again later", after_s)

    def _is_no_hub(self) -> HubUnreachable:
        return HubUnreachable(
            f"{self.endpoint} answers, but not as a model hub does; check HF_ENDPOINT, and"
            " whether this network wants you to sign in first"
        )

    def _check_endpoint(self) -> None:
        try:
            parts = urlsplit(self.endpoint)
            usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        except ValueError:
            usable = False
        if not usable:
            raise HubUnreachable(
                f"HF_ENDPOINT is {self.endpoint[:MAX_QUOTED]!r}, which is no http address; correct"
                " or unset it"
            )


def _check_size(part: RemotePart, at: int, status: int, headers: Mapping[str, str]) -> None:
    """A store whose file differs from what the hub lists would give a wrong plan."""
    if status == 206:
        match = _CONTENT_RANGE.match(headers.get("content-range", ""))
        start, size = (match[1], match[2]) if match else ("", "")
    else:
        start, size = str(at), headers.get("content-length", str(part.size_bytes))
    if (start, size) != (str(at), str(part.size_bytes)):
        raise HubUnreachable(
            f"{part.name} has {part.size_bytes} bytes in the hub's list, and {size or 'unknown'}"
            f" where it is stored (from {start or 'unknown'}, asked for from {at}); try again"
            " later, or use another mirror"
        )


def _asked_pause_s(status: int, headers: Mapping[str, str]) -> float:
    """What the hub asks to wait: its own header for limits, or Retry-After in both its forms."""
    limit = _RATE_LIMIT.search(headers.get("ratelimit", "")) if status == 429 else None
    if limit is not None:
        return float(limit[1])
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (when - datetime.now(UTC)).total_seconds()) if when.tzinfo else 0.0


def _headers() -> dict[str, str]:
    """Who asks."""
    agent = {"User-Agent": f"{CLIENT}/{__version__}"}
    token = _token()
    return agent | ({"Authorization": f"Bearer {token}"} if token else {})


def _token() -> str | None:
    """The user's token, unless the user forbade to send it unasked."""
    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def _quoted(text: str) -> str:
    return " ".join(text.split())[:MAX_QUOTED]


def _log_retry(state: RetryCallState) -> None:
    failure = state.outcome.exception() if state.outcome else None
    log.warning(
        "hub.retry_scheduled",
        extra={
            "attempt": state.attempt_number,
            "delay_s": round(state.next_action.sleep, 2) if state.next_action else 0.0,
            "cause": str(failure),
        },
    )
