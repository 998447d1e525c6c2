"""What the engine is asked in place of what its client asked."""

from collections.abc import Mapping
from typing import Any, Final

from supervisor.core.continuing.exactness import answers_to
from supervisor.core.gateway_routes import Api

_TIMED: Final = (Api.CHAT, Api.COMPLETIONS, Api.RESPONSES)
"""APIs whose events tell tokens only where timings are asked for."""


def asked_upstream(api: Api, body: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent to the engine in place of the body of a streaming request.

    Timings then come with each event, and with them the exact number of tokens; a transcript takes
    them out again. They are not asked for where the request says itself whether it wants them,
    where it wants to see its own settings (``verbose``), and where several answers are wanted, of
    which nothing is counted.

    One trace of this is left: without it, the last event before a stop word has timings, too, and
    here they are taken out with the others.
    """
    asked = dict(body)
    is_free = "timings_per_token" not in body and not body.get("verbose")
    if api in _TIMED and is_free and answers_to(body) == 1:
        asked["timings_per_token"] = True
    return asked
