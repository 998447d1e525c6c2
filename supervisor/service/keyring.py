"""Who has a key: made, found, limited, counted and revoked.

Only hashes are kept. A text has 192 random bits, so nobody finds it by trying, and one round of
SHA-256 is enough: slow hashes are for what people think up. It is found by its hash in a dict, and
how long that takes says nothing of the text, since nobody can choose the hash of a guess.

Usage waits in memory and is written every few seconds; while the disk takes nothing it goes on
waiting, so only a crash loses any, that of these seconds.
"""

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from supervisor.core.callers import LOCAL, Caller, Scope
from supervisor.core.keys import ApiKey, KeyWanted, Limiter
from supervisor.errors import ApiKeyExists, ApiKeyUnknown, BadRequest, RateLimited, StoreUnusable
from supervisor.ports import StorePort
from supervisor.service.clock import timestamp

log = logging.getLogger(__name__)

MAIN: Final = "main"
"""Name of the key that every supervisor has, in the file ``api.key`` of its data folder."""

_RANDOM_BYTES: Final = 24
_SHOWN_CHARS: Final = len("sk-") + 4
"""The rest still has 168 random bits."""
_SAVE_EVERY_S: Final = 5.0
_CLOSED_AGAIN_S: Final = 1.0
"""When to try again where too many requests are open: nobody knows when one ends."""


def new_text() -> str:
    """The text of a new key."""
    return "sk-" + secrets.token_urlsafe(_RANDOM_BYTES)


class KeyRing:
    """All keys of this supervisor. Whatever is asked of it, it answers from memory."""

    def __init__(
        self,
        store: StorePort,
        main_key: str,
        clock: Callable[[], str] = timestamp,
        monotonic_s: Callable[[], float] = time.monotonic,
        *,
        save_every_s: float = _SAVE_EVERY_S,
    ) -> None:
        """Read what there is.

        Raises:
            StoreUnusable: It cannot be read.
        """
        self._store = store
        self._clock = clock
        self._monotonic_s = monotonic_s
        self._save_every_s = save_every_s
        self._main_hash = _hash_of(main_key)
        self._keys: dict[str, ApiKey] = {}
        self._hashes: dict[str, str] = {}
        """By name."""
        for key_hash, key in store.api_keys():
            if key.name != MAIN or key_hash == self._main_hash:  # else of a file that was replaced
                self._add(key_hash, key)
        self._used: set[str] = set()
        """Hashes of keys whose usage has to be written."""
        self._revoked: set[str] = set()
        """Hashes of keys that the disk did not forget yet."""
        self._limiters: dict[Caller, Limiter] = {}
        self._problem = ""
        self._writer: asyncio.Task[None] | None = None
        self._has_news = asyncio.Event()
        if self._main_hash not in self._keys:
            shown = _shown(main_key)
            main = ApiKey(name=MAIN, shown=shown, scopes=(Scope.ADMIN,), created_at=clock())
            self._add(self._main_hash, main)
            self._is_used(self._main_hash)

    # -- asking ------------------------------------------------------------------------------

    def caller(self, text: str) -> Caller | None:
        """Whose key this is; None: nobody's, or it was revoked."""
        # No key is never the right one, not even if ours were empty.
        return self._caller(_hash_of(text)) if text else None

    def caller_named(self, name: str) -> Caller | None:
        """Who has the key of that name, for whoever has proved to have shown it; None: nobody."""
        return self._caller(self.hash_of(name))

    def hash_of(self, name: str) -> str:
        """What tells the key of that name from any other, also from a later one; empty: none."""
        return self._hashes.get(name, "")

    def all(self) -> list[ApiKey]:
        """Every key that is good, by name."""
        return sorted(self._keys.values(), key=lambda key: key.name)

    @contextmanager
    def entered(self, caller: Caller) -> Iterator[None]:
        """Count a request of a caller, from when it came until it has ended.

        Raises:
            RateLimited: It has made or has open as many as it may; a refused one does not count.
        """
        if caller.requests_per_minute is None and caller.concurrent is None:
            yield
            return
        limiter = self._limiters.get(caller)
        if limiter is None:
            limiter = Limiter(caller.requests_per_minute, caller.concurrent)
            self._limiters[caller] = limiter
        now_s = self._monotonic_s()
        if limiter.is_full:
            raise RateLimited(
                f"key {caller.name} has {limiter.open} requests open, and may have "
                f"{caller.concurrent}; wait until one ends",
                _CLOSED_AGAIN_S,
            )
        if wait_s := limiter.wait_s(now_s):
            raise RateLimited(
                f"key {caller.name} has made {limiter.recent(now_s)} requests in the last minute, "
                f"and may make {caller.requests_per_minute}; try again in {math.ceil(wait_s)} s",
                wait_s,
            )
        limiter.enter(now_s)
        try:
            yield
        finally:
            limiter.leave()

    # -- changing ----------------------------------------------------------------------------

    def create(self, wanted: KeyWanted) -> tuple[ApiKey, str]:
        """Make a key; the text that comes with it is kept nowhere.

        Raises:
            ApiKeyExists: There is one of that name.
            BadRequest: The name stands for something else.
            StoreUnusable: It cannot be kept, so there is none.
        """
        if wanted.name == LOCAL.name:
            raise BadRequest(f"{LOCAL.name!r} stands for whoever needs no key; choose another name")
        if wanted.name in self._hashes:
            raise ApiKeyExists(
                f"there is a key {wanted.name!r} already; choose another name, or revoke it first"
            )
        text = new_text()
        scopes = tuple(scope for scope in Scope if scope in wanted.scopes)
        known = wanted.model_dump() | {"scopes": scopes, "shown": _shown(text)}
        key = ApiKey(**known, created_at=self._clock())
        self._store.save_key(_hash_of(text), key)
        self._add(_hash_of(text), key)
        log.info("key.created", extra={"key": key.name, "scopes": ",".join(key.scopes)})
        return key, text

    def revoke(self, name: str) -> None:
        """Refuse a key from now on. Requests that it began already go on to their end.

        Raises:
            ApiKeyUnknown: There is none of that name.
            BadRequest: It is the main key.
            StoreUnusable: It is refused, but still on disk; that is tried again.
        """
        key_hash = self._hashes.get(name)
        if key_hash is None:
            raise ApiKeyUnknown(f"there is no key {name!r}; see 'supervisor keys'")
        if key_hash == self._main_hash:
            raise BadRequest(
                f"{MAIN!r} is the file api.key of the data folder; to replace it, delete that file "
                "and start the supervisor again"
            )
        del self._keys[key_hash], self._hashes[name]
        self._used.discard(key_hash)
        for caller in [caller for caller in self._limiters if caller.name == name]:
            del self._limiters[caller]
        log.info("key.revoked", extra={"key": name})
        try:
            self._store.delete_key(key_hash)
        except StoreUnusable as exc:
            self._revoked.add(key_hash)
            self._has_news.set()
            raise StoreUnusable(
                f"key {name!r} is refused from now on, but would be good again after a restart, "
                f"until the database can be written: {exc}"
            ) from exc

    def note_usage(self, caller_name: str, prompt_tokens: int, generated_tokens: int) -> None:
        """Count one request of a key; of whoever has none, nothing is kept here."""
        key_hash = self._hashes.get(caller_name)
        if key_hash is None:
            return
        key = self._keys[key_hash]
        self._keys[key_hash] = key.model_copy(
            update={
                "requests": key.requests + 1,
                "prompt_tokens": key.prompt_tokens + prompt_tokens,
                "generated_tokens": key.generated_tokens + generated_tokens,
                "last_used_at": self._clock(),
            }
        )
        self._is_used(key_hash)

    # -- writing -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what waits, every few seconds. Runs for ever."""
        while True:
            await self._has_news.wait()
            await asyncio.sleep(self._save_every_s)
            await self._write()

    async def close(self) -> None:
        """Write what still waits; what cannot be written now is lost, and said."""
        for _ in range(2):  # the first may join a write that began before
            if self._used or self._revoked:
                await self._write()
        if self._used or self._revoked:
            log.error(
                "keys.lost",
                extra={"keys": len(self._used | self._revoked), "reason": self._problem},
            )

    def _caller(self, key_hash: str) -> Caller | None:
        """Whose key has this hash; it is used now."""
        key = self._keys.get(key_hash)
        if key is None:
            return None
        self._keys[key_hash] = key.model_copy(update={"last_used_at": self._clock()})
        self._is_used(key_hash)
        return key.caller()

    def _add(self, key_hash: str, key: ApiKey) -> None:
        self._keys[key_hash] = key
        self._hashes[key.name] = key_hash

    def _is_used(self, key_hash: str) -> None:
        self._used.add(key_hash)
        self._has_news.set()

    async def _write(self) -> None:
        """Write what waits, in a task that goes on when the caller is cancelled.

        A write whose end nobody awaits could otherwise overtake the next one.
        """
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_once())
        await asyncio.shield(self._writer)

    async def _write_once(self) -> None:
        self._has_news.clear()
        used = {key_hash: self._keys[key_hash] for key_hash in self._used}
        revoked = frozenset(self._revoked)
        try:
            await asyncio.to_thread(self._store_all, used, revoked)
        except StoreUnusable as exc:
            self._failed(str(exc))
            return
        self._revoked -= revoked
        # What was used meanwhile still waits.
        self._used -= {
            key_hash for key_hash, key in used.items() if self._keys.get(key_hash) is key
        }
        if self._problem:
            self._problem = ""
            log.info("keys.works_again")

    def _store_all(self, used: dict[str, ApiKey], revoked: frozenset[str]) -> None:
        for key_hash in revoked:
            self._store.delete_key(key_hash)
        if main := used.get(self._main_hash):
            self._store.save_key(self._main_hash, main)  # which may never have been written
        self._store.save_key_usage(used)

    def _failed(self, problem: str) -> None:
        self._has_news.set()
        if not self._problem:
            log.error("keys.failing", extra={"reason": problem})
        self._problem = problem


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _shown(text: str) -> str:
    return text[:_SHOWN_CHARS] + "…"
