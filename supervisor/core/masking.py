"""What nobody else should read in a bug report: secrets, home folders, the user's name.

Pure and lossy: there is no way back. Logs must stay useful, so only what looks like a secret, or
is known to be one, goes.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

MASK: Final = "***"
HOME: Final = "~"
USER: Final = "user"

_LEAST_CHARS: Final = 6
"""A shorter secret is none, and hiding it would tear holes into everything else."""
_NOBODY: Final = frozenset(
    ("root", "user", "admin", "ubuntu", "debian", "termux", "runner", "llama", "server", "device")
)
"""User names that tell nothing of a person, and words of every log."""

_SECRET_WORDS: Final = re.compile("KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL")

# How names end that have secrets: variables of the environment, and fields. "tokens" is a count.
_VARIABLE: Final = rf"(?:{_SECRET_WORDS.pattern})[A-Z0-9_]{{0,60}}"
_FIELD: Final = (  # begins with a set of letters, by which a search finds its places quickly
    "[AaHhPpRrSs](?i:(?<=a)pi[_-]?key|(?<=p)assw(?:or)?d|(?<=p)assphrase|(?<=p)rivate[_-]key"
    "|(?<=s)ecret|(?<=s)upervisor_key|(?:(?<=a)ccess|(?<=a)uth|(?<=h)f|(?<=r)efresh)[_-]token)"
)
_OPTION: Final = r"(?<![\w-])--?(?:api-key|hf-token|hft|token|key|password|secret)"
_QUOTED: Final = r"""(?:\\"(?:[^"\\\n]|\\[^"\n])*\\"|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_CUT: Final = r"""\\?["'][^\s"'\\]+"""
_BARE: Final = r"""\\?["']?[^\s"'\\]+"""
_QUOTE: Final = re.compile(r"""\\?["']""")

# Every repetition is bounded or cannot match what follows it, so none can take quadratic time.
_NAMED_VALUES: Final = tuple(
    re.compile(
        # JSON, or Python's way of writing it; else a shell, or a log.
        rf"(?P<name>{name})(?:(?P<between>\\?[\"']{mark}\s{{0,20}})(?P<quoted>{_QUOTED}|{_CUT})"
        rf"|(?P<separator>{separator})(?P<value>{_QUOTED}+|{_BARE}))"
    )
    for name, mark, separator in (
        (_VARIABLE, r"\s?:", r"\s?[:=]\s?"),
        (_FIELD, r"\s?:", r"\s?[:=]\s?"),
        (r"(?<!\w)[Tt](?i:oken)", r"\s?:", r"(?!)"),
        (_OPTION, r",", r"(?:=|\s{1,20})"),
    )
)
_SHAPES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # A join code: ADDRESS:PORT/TOKEN/FINGERPRINT.
        (r"(:\d{1,5}/)[\w-]{6,64}/[\w-]{43}(?![\w-])", rf"\1{MASK}/{MASK}"),
        # Tokens of the hub, and keys of OpenAI's kind, as ours are.
        (r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}", MASK),
        (r"(?<![A-Za-z0-9])sk-[\w-]{16,}", MASK),
        # One of ours, whatever stands before it: in JSON that may be the n of a line break.
        (r"sk-(?=[a-z_-]{0,31}[A-Z0-9])[\w-]{32}(?![\w-])", MASK),
        # Headers, whatever the scheme.
        (
            r"(?i)(?<![\w-])((?:proxy-)?authorization)(\\?[\"']?\s{0,3}[:=,]\s{0,3}(?:b?\\?[\"'])?)"
            r"(?:(?:bearer|basic|digest|token)\s+)?[^\s\"',;\\]+",
            rf"\1\2{MASK}",
        ),
        (r"(?i)(?<![\w-])(bearer\s+)[\w.~+/=-]{8,}", rf"\1{MASK}"),
        (r"(?i)(?<![\w-])((?:set-)?cookie\s?:\s?)[^\r\n\"]+", rf"\1{MASK}"),
        # What an address may carry.
        (r"(?<=://)[^/\s:@\"']{1,100}:[^/\s@\"']{1,200}@", f"{MASK}@"),
        (
            r"(?i)([?&][\w-]{0,40}(?:key|token|secret|password|signature|credential)=)[^&\s\"'\\]+",
            rf"\1{MASK}",
        ),
    )
)
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)", re.S
)
_END_OF_KEY: Final = re.compile(r"-----END [A-Z ]{0,40}PRIVATE KEY-----")
_HOMES: Final = re.compile(r"(?<![\w.~-])/(?:(?:home|Users)/[^/\s\"':;,\\]+|root)(?![\w.-])")


@dataclass(frozen=True, slots=True)
class Private:
    """What to hide besides that which shows by itself."""

    secrets: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()
    users: tuple[str, ...] = ()


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Values of variables whose name says that they are secret."""
    return tuple(
        value for name, value in sorted(environment.items()) if _SECRET_WORDS.search(name.upper())
    )


def mask(text: str, private: Private) -> str:
    """``text`` without secrets, home folders and user names. Masking again changes nothing."""
    text = _without_keys(text)
    if known := _any_of(form for secret in private.secrets for form in _forms(secret)):
        text = known.sub(MASK, text)
    for pattern in _NAMED_VALUES:
        text = pattern.sub(_without_value, text)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    homes = (home.rstrip("/\\") for home in private.homes)
    if known := _any_of((home for home in homes if len(home) > 1), ends=r"(?![\w.-])"):
        text = known.sub(HOME, text)
    text = _HOMES.sub(HOME, text)
    users = (user for user in private.users if len(user) > 2 and user.lower() not in _NOBODY)
    if known := _any_of(users, begins=r"(?i)(?<![A-Za-z0-9])", ends=r"(?![A-Za-z0-9])"):
        text = known.sub(USER, text)
    return text


def _forms(secret: str) -> tuple[str, ...]:
    """A secret as it is, and as JSON, addresses and shells write it."""
    secret = secret.strip()
    if len(secret) < _LEAST_CHARS or not secret.strip("*"):
        return ()
    in_json = (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1])
    return (secret, *in_json, quote(secret, safe=""), shlex.quote(secret).strip("'"))


def _without_value(found: re.Match[str]) -> str:
    """The name stays, and the quotes, so that JSON remains JSON."""
    opening = _QUOTE.match(found["quoted"] or found["value"])
    quote_ = opening[0] if opening else ""
    between = found["between"] or found["separator"]
    return f"{found['name']}{between}{quote_}{MASK}{quote_}"


def _any_of(words: Iterable[str], begins: str = "", ends: str = "") -> re.Pattern[str] | None:
    """Matches each word, a longer one before what it begins with."""
    longest_first = sorted(set(words), key=lambda word: (-len(word), word))
    if not longest_first:
        return None
    return re.compile(f"{begins}(?:{'|'.join(map(re.escape, longest_first))}){ends}")


def _without_keys(text: str) -> str:
    """Without private keys in PEM, also where only their beginning or their end is there."""
    if "PRIVATE KEY-----" not in text:
        return text
    text = _PRIVATE_KEY.sub(MASK, text)
    if (end := _END_OF_KEY.search(text)) is None:
        return text
    # All before the first end that has no beginning: the text was cut within a key.
    return MASK + _END_OF_KEY.sub(MASK, text[end.end() :])
