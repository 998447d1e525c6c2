"""The site of llama.cpp's releases: which builds there are, and their archives, which resume.

A download may last for hours as long as bytes come: only silence and failures in a row end it.

Source:
    https://docs.github.com/rest/releases, and "Rate limits for the REST API" there.
"""

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import random
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from agents.errors import DiskFull, EngineDigestWrong
from supervisor import __version__
from supervisor.adapters.partial_file import Part, digest_of
from supervisor.core.engine_builds import RELEASES_PAGE, Asset, Release, read_release
from supervisor.core.units import gib
from supervisor.errors import BadSettings, ReleaseSiteUnreachable, ReleaseUnknown
from supervisor.ports import Fetched

log = logging.getLogger(__name__)

TOKEN_HOST: Final = "api.github.com"  # noqa: S105 - no secret, but who may see it
"""The only host that may see the token."""
TOKEN_VARIABLE: Final = "GITHUB_TOKEN"  # noqa: S105 - its name
BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
SPARE_BYTES: Final = 256 << 20
"""Left free on the disk, beside the archive."""
_MOST_ANSWER_BYTES: Final = 8 << 20
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the site is waited for."""

    connect_s: float = 15.0
    silence_s: float = 30.0
    """Between two pieces of an answer."""
    tries: int = 5
    """Of a download: in a row that brought nothing."""
    questions: int = 3
    """How often the site is asked which builds there are; somebody waits for the answer."""
    first_pause_s: float = 0.5
    longest_pause_s: float = 60.0
    """A site that asks for more is not asked again."""


class _TryAgain(ReleaseSiteUnreachable):
    """This try failed, the next may not; ``after_s`` is what the site asks to wait."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True, slots=True)
class ReleaseSite:
    """The releases below ``address``, such as ``https://api.github.com/repos/OWNER/NAME``."""

    address: str
    token: str = field(default="", repr=False)
    patience: Patience = Patience()

    def __post_init__(self) -> None:
        check_address(self.address)

    async def release(self, build: str | None) -> Release:
        """A release by its name, or the newest.

        Raises:
            ReleaseUnknown: There is none of that name.
            ReleaseSiteUnreachable: With reason and remedy.
        """
        path = f"/releases/tags/{build}" if build else "/releases/latest"
        body: list[Any] = []

        async def ask() -> None:
            async with self._client() as client:
                body[:] = [await self._answer(client, path, build)]

        await self._repeated(ask, lambda: 0, self.patience.questions)
        found = read_release(body[0], self.address)
        if build is not None and found.build != build:
            raise ReleaseSiteUnreachable(
                f"{self.address} was asked for {build} and answered with {found.build}"
            )
        return found

    async def _answer(self, client: httpx.AsyncClient, path: str, build: str | None) -> Any:
        found = bytearray()
        url = f"{self.address.rstrip('/')}{path}"
        headers = {"Accept": "application/vnd.github+json"}
        async with client.stream("GET", url, headers=headers) as response:
            if response.status_code == 404:
                raise ReleaseUnknown(
                    f"{self.address} has no llama.cpp release {build or 'at all'}; see"
                    f" {RELEASES_PAGE} for the builds there are, or leave the name out for the"
                    " newest"
                )
            if response.status_code != 200:
                raise self._refusal(response)
            async for piece in response.aiter_bytes():
                found += piece
                if len(found) > _MOST_ANSWER_BYTES:
                    raise ReleaseSiteUnreachable(f"{url} sent {len(found)} bytes and went on")
        try:
            return json.loads(found)
        except ValueError:
            return None

    async def fetch(
        self, asset: Asset, folder: Path, tell: Callable[[int, int], None], *, spare_bytes: int = 0
    ) -> Fetched:
        """Download an archive to ``folder/NAME.part``, going on where an earlier try ended.

        Args:
            asset: What; its digest is checked at the end.
            folder: Where to.
            tell: Called with the bytes that are there, and all.
            spare_bytes: Room that is needed besides.

        Raises:
            EngineDigestWrong: The file is another one; it was thrown away.
            DiskFull: There is no room; what is there stays.
            ReleaseUnknown, ReleaseSiteUnreachable: With reason and remedy.
        """
        part = Part(folder / f"{asset.name}.part", asset)
        try:
            part.recall()
            _check_room(folder, asset.size_bytes - part.bytes_there() + spare_bytes)
            tell(part.bytes_there(), asset.size_bytes)
            if part.bytes_there() < asset.size_bytes:
                await self._repeated(
                    lambda: self._extend(part, tell), part.bytes_there, self.patience.tries
                )
            digest = await asyncio.to_thread(digest_of, part.path)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                raise DiskFull(
                    f"{folder} has no room for {asset.name} ({gib(asset.size_bytes)}); free some"
                    " space and install it again: what was fetched is kept"
                ) from exc
            raise
        if asset.sha256 and digest != asset.sha256:
            part.discard()
            raise EngineDigestWrong(
                f"{asset.name} has the digest {digest[:16]}…, and the release site says"
                f" {asset.sha256[:16]}…; it was thrown away, install it again, and look for a proxy"
                " or mirror that changes files if that repeats"
            )
        part.note.unlink(missing_ok=True)
        return Fetched(part.path, digest, is_verified=bool(asset.sha256))

    async def _extend(self, part: Part, tell: Callable[[int, int], None]) -> None:
        start, asset = part.bytes_there(), part.asset
        headers = {"Accept": "application/octet-stream", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
            if part.etag:
                headers["If-Range"] = part.etag
        async with (
            self._client() as client,
            client.stream("GET", asset.url, headers=headers) as response,
        ):
            at = self._begin(response, part, start)
            with part.path.open("r+b" if at else "wb") as file:
                file.seek(at)
                async for piece in response.aiter_raw():
                    at += len(piece)
                    if at > asset.size_bytes:
                        break
                    file.write(piece)
                    tell(at, asset.size_bytes)
        if at != asset.size_bytes:
            if at > asset.size_bytes:
                part.discard()
            raise _TryAgain(
                f"{_host(asset.url)} sent {at} of the {asset.size_bytes} bytes of {asset.name};"
                " install it again later: what was fetched is kept"
            )

    def _begin(self, response: httpx.Response, part: Part, start: int) -> int:
        """Where in the file the answer begins, in bytes."""
        status, asset = response.status_code, part.asset
        etag = response.headers.get("etag", "")
        etag = "" if etag.startswith("W/") else etag
        if status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
            if match and (int(match[1]), int(match[2])) == (start, asset.size_bytes):
                return start
            part.discard()
            raise _TryAgain(f"{_host(asset.url)} sent another part of {asset.name} than was asked")
        if status == 200:
            part.remember(etag)
            return 0
        if status == 416:
            part.discard()
            raise _TryAgain(f"{_host(asset.url)} has another {asset.name} than before")
        if status == 404:
            raise ReleaseUnknown(
                f"{_host(asset.url)} does not have {asset.name} (HTTP 404); the release may be"
                f" in the making: see {RELEASES_PAGE}, or take another"
            )
        raise self._refusal(response)

    def _refusal(self, response: httpx.Response) -> ReleaseSiteUnreachable:
        status, host = response.status_code, _host(str(response.url))
        is_limit = status == 429 or (
            status == 403
            and (
                "retry-after" in response.headers
                or response.headers.get("x-ratelimit-remaining") == "0"
            )
        )
        after_s = _asked_pause_s(response.headers)
        if is_limit:
            problem = f"{host} limits how often it is asked (HTTP {status})"
            remedy = "" if self.token else ", or set GITHUB_TOKEN, which raises the limit"
            if after_s > self.patience.longest_pause_s:
                return ReleaseSiteUnreachable(f"{problem}; try again in {after_s:.0f} s{remedy}")
            return _TryAgain(f"{problem}; try again in {max(after_s, 1):.0f} s{remedy}", after_s)
        problem = f"{host} answers HTTP {status}"
        if status in BUSY:
            return _TryAgain(f"{problem}, {self.patience.tries} times; try again later", after_s)
        return ReleaseSiteUnreachable(
            f"{problem}; look at the setting engine_site ({self.address}), and at GITHUB_TOKEN if"
            " it is set"
        )

    async def _repeated(
        self, work: Callable[[], Awaitable[None]], progress: Callable[[], int], tries: int
    ) -> None:
        """Do it until it succeeds, fails for good, or failed too often without any progress."""
        failures, reached = 0, progress()

        def is_enough(_: RetryCallState) -> bool:
            nonlocal failures, reached
            failures, reached = (0 if progress() > reached else failures + 1), progress()
            return failures >= tries

        def pause_s(state: RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            asked_s = failure.after_s if isinstance(failure, _TryAgain) else 0.0
            longest_s = min(
                self.patience.first_pause_s * 2**failures, self.patience.longest_pause_s
            )
            return max(asked_s, random.uniform(longest_s / 2, longest_s))

        async def once() -> None:
            with self._translated():
                await work()

        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_TryAgain),
            stop=is_enough,
            wait=pause_s,
            before_sleep=_log_retry,
            reraise=True,
        )
        await retrying(once)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as exc:
            reason = " ".join(str(exc).split())[:200] or type(exc).__name__
            raise _TryAgain(
                f"the release site cannot be reached ({reason}); look at this host's way to the"
                f" internet, or name a mirror with the setting engine_site (now {self.address})"
            ) from exc
        except (httpx.TooManyRedirects, httpx.InvalidURL) as exc:
            raise ReleaseSiteUnreachable(f"{self.address} leads nowhere: {exc}") from exc

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Follows redirects, but never to plain http, and shows the token to one host alone."""

        async def before(request: httpx.Request) -> None:
            check_address(str(request.url))
            request.headers.pop("authorization", None)
            if self.token and request.url.scheme == "https" and request.url.host == TOKEN_HOST:
                request.headers["authorization"] = f"Bearer {self.token}"

        patience = self.patience
        async with httpx.AsyncClient(
            follow_redirects=True,
            timeout=httpx.Timeout(patience.silence_s, connect=patience.connect_s),
            headers={"User-Agent": f"llama-rpc-supervisor/{__version__}"},
            event_hooks={"request": [before]},
            # A proxy of the environment would not reach this host itself.
            trust_env=not _is_loopback(urlsplit(self.address).hostname or ""),
        ) as client:
            yield client


def check_address(address: str) -> None:
    """Raises BadSettings unless it is https, or plain http to this host itself."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
    except ValueError:
        parts, host = urlsplit(""), ""
    if parts.scheme == "https" and host:
        return
    if parts.scheme == "http" and _is_loopback(host):
        return
    raise BadSettings(
        f"engine_site is or leads to {address[:200]!r}; it must be an https address (plain http"
        " only on this host itself)"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


def _asked_pause_s(headers: Mapping[str, str]) -> float:
    """What the site asks to wait: seconds, a date, or when its window ends."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text[:9])
    now = datetime.now(UTC)
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and reset.isdecimal():
        return max(0.0, float(reset[:12]) - now.timestamp())
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (when - now).total_seconds()) if when.tzinfo else 0.0


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + SPARE_BYTES:
        raise DiskFull(
            f"{folder} has {gib(free)} free, and {gib(needed_bytes)} are needed beside"
            f" {gib(SPARE_BYTES)} of head-room; free some space, or use another data folder"
        )


def _log_retry(state: RetryCallState) -> None:
    failure = state.outcome.exception() if state.outcome else None
    log.warning(
        "release_site.retry_scheduled",
        extra={
            "attempt": state.attempt_number,
            "delay_s": round(state.next_action.sleep, 2) if state.next_action else 0.0,
            "cause": str(failure),
        },
    )
