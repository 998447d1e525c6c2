"""How many files and connections this process may have open: raised at its start."""

import logging
from typing import Final

log = logging.getLogger(__name__)

WANTED: Final = 32768
_FALLBACK: Final = 10240
"""The most that macOS takes, whatever it says the limit is."""


def raise_limit() -> int | None:
    """Raise the soft limit towards the hard one; macOS begins with 256.

    Returns:
        The limit as it is now, ``None`` where nobody tells.
    """
    try:
        import resource
    except ImportError:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited:
        return None
    most = WANTED if hard == unlimited else min(WANTED, hard)
    for wanted in (most, min(most, _FALLBACK)):
        if soft >= wanted:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as exc:
            log.debug("open_files.not_raised", extra={"wanted": wanted, "reason": str(exc)})
        else:
            return wanted
    return soft
