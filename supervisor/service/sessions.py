"""Sign-in sessions: what a browser keeps in place of a key, and who tries too many keys.

A session is a text that only we can have written: the name of a key, a mark of that key, two times,
and an HMAC-SHA256 of all this. Nothing of it is kept here, so sessions outlive a restart, and a
flood of sign-ins fills no memory. It is good as long as its key is: the mark differs for a key that
is made anew under the same name. Signing out makes the browser forget it; to end one that was
copied, revoke the key.
"""

import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from supervisor.core.callers import Caller
from supervisor.errors import RateLimited
from supervisor.service.keyring import KeyRing

log = logging.getLogger(__name__)

LIFETIME_S: Final = 30 * 24 * 3600
"""Of a session, however much it is used: once a month somebody signs in again."""

LEAST_SECRET_CHARS: Final = 32
_MARK_CHARS: Final = 32  # hexadecimal: 128 bits
_MOST_CHARS: Final = 1024
"""The longest name of a key needs less."""

WRONG_TRIES: Final = 5
WRONG_WINDOW_S: Final = 60.0
_MOST_ADDRESSES: Final = 1024
_IPV6_NETWORK_BITS: Final = 64
"""What one host may have for itself: it can call from any address of it."""


class Sessions:
    """Writes sessions, and reads them again."""

    def __init__(
        self, secret: str, keyring: KeyRing, clock_s: Callable[[], float] = time.time
    ) -> None:
        """``clock_s``: seconds since 1970."""
        if len(secret) < LEAST_SECRET_CHARS:
            raise ValueError("a secret this short could be guessed")
        self._secret = secret.encode()
        self._keyring = keyring
        self._clock_s = clock_s

    def begin(self, key_name: str) -> str:
        """The text of a new session of a key that there is."""
        made_s = int(self._clock_s())
        mark = self._mark(self._keyring.hash_of(key_name))
        facts = json.dumps([key_name, mark, made_s, made_s + LIFETIME_S], ensure_ascii=False)
        body = base64.urlsafe_b64encode(facts.encode()).decode().rstrip("=")
        return f"{body}.{self._signature(body)}"

    def caller(self, text: str) -> Caller | None:
        """Whose session this is; None: nobody's, it has ended, or its key is no longer good."""
        body, _, signature = text.partition(".")
        if len(text) > _MOST_CHARS or not text.isascii():
            return None
        if not hmac.compare_digest(signature.encode(), self._signature(body).encode()):
            return None
        # From here on, it is our own text.
        padded = body + "=" * (-len(body) % 4)
        name, mark, _, until_s = json.loads(base64.urlsafe_b64decode(padded))
        key_hash = self._keyring.hash_of(name)
        is_of_this_key = hmac.compare_digest(mark, self._mark(key_hash))
        if not key_hash or not is_of_this_key or until_s <= self._clock_s():
            return None
        return self._keyring.caller_named(name)

    def _mark(self, key_hash: str) -> str:
        """Tells a key from another of the same name, and nothing else."""
        return self._hmac("key", key_hash).hexdigest()[:_MARK_CHARS]

    def _signature(self, body: str) -> str:
        digest = self._hmac("session", body).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def _hmac(self, purpose: str, text: str) -> hmac.HMAC:
        """Of different purposes, so that one can never be taken for another."""
        return hmac.new(self._secret, f"{purpose}:{text}".encode(), hashlib.sha256)


@dataclass(slots=True)
class WrongTries:
    """Who showed wrong keys lately. Keys cannot be guessed; this keeps it quiet, too."""

    monotonic_s: Callable[[], float] = time.monotonic
    most_addresses: int = _MOST_ADDRESSES
    _times_s: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    """By place of the caller, the one that tried last at the end; at most WRONG_TRIES each."""

    def check(self, address: str) -> None:
        """Let one more try pass.

        Raises:
            RateLimited: Too many wrong keys came from there; says when to try again.
        """
        times_s = self._times_s.get(_place(address))
        if times_s is None or len(times_s) < WRONG_TRIES:
            return
        wait_s = times_s[0] + WRONG_WINDOW_S - self.monotonic_s()
        if wait_s > 0:
            raise RateLimited(
                f"{WRONG_TRIES} wrong keys came from {address} within a minute; try again in "
                f"{math.ceil(wait_s)} s",
                wait_s,
            )

    def note(self, address: str) -> None:
        """A wrong key came."""
        place = _place(address)
        times_s = self._times_s.setdefault(place, deque(maxlen=WRONG_TRIES))
        times_s.append(self.monotonic_s())
        self._times_s.move_to_end(place)
        while len(self._times_s) > self.most_addresses:
            self._times_s.popitem(last=False)
        if len(times_s) == WRONG_TRIES and times_s[-1] - times_s[0] < WRONG_WINDOW_S:
            log.warning("session.tries_slowed", extra={"address": address})


def _place(address: str) -> str:
    """What stands for a caller: its address, or its network where it has one of its own."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if not isinstance(found, ipaddress.IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(found), _IPV6_NETWORK_BITS), strict=False))
