"""The way in: which requests can be asked for as a stream, how, and what folds it."""

from collections.abc import Mapping
from typing import Any, Final

from supervisor.core.calls import with_members
from supervisor.core.folding.base import Fold
from supervisor.core.folding.chunks import Chat, Completion
from supervisor.core.folding.messages import Messages
from supervisor.core.folding.native import Native
from supervisor.core.folding.responses import Responses
from supervisor.core.gateway_routes import ROUTES, Api, Work

__all__ = ["Fold", "as_stream", "can_fold", "fold_of", "stream_members"]

_PROBABILITIES: Final = ("n_probs", "logprobs", "top_logprobs")

_UNTOLD: Final = ("verbose", "response_fields", "return_tokens", "n_indent", "post_sampling_probs")
"""Members that a stream does not answer as a whole answer does: it leaves out what the engine knows
at the end only, tokens within a character, and text that is taken back."""

_OVERWRITTEN: Final = ("stream", "timings_per_token", "echo")
"""Members that :func:`as_stream` puts in place of the client's own. A value of another type is
refused by the engine, and has to stay."""

_ASKED: Final[Mapping[str, Any]] = {"stream": True}
_TIMED: Final = {
    **_ASKED,
    "stream_options": {"include_usage": True},
    "timings_per_token": True,
}
_MEMBERS: Final[Mapping[Api, Mapping[str, Any]]] = {
    Api.CHAT: {**_TIMED, "echo": True},
    Api.COMPLETIONS: _TIMED,
    Api.RESPONSES: _ASKED,
    Api.MESSAGES: _ASKED,
    Api.NATIVE: _ASKED,
}


def can_fold(api: Api, path: str, body: Mapping[str, Any]) -> bool:
    """Whether the whole answer to a request can be made of the stream that it gets instead.

    Args:
        api: Which is called.
        path: Of the route.
        body: As the client sent it.
    """
    route = ROUTES.get(("POST", path))
    if route is None or route.work is not Work.GENERATES or body.get("stream"):
        return False
    return not (
        any(body.get(name) for name in _UNTOLD)
        or _is_several(body)
        or _is_refused(body)
        or body.get("reasoning_format") == "deepseek-legacy"  # not the same in a stream
        or (any(body.get(name) for name in _PROBABILITIES) and not _tells_probabilities(api, body))
        or (api is Api.RESPONSES and _has_stop_words(body))  # it does not tell why it ended
    )


def _is_several(body: Mapping[str, Any]) -> bool:
    """Whether more than one answer comes."""
    prompt = body.get("prompt")
    is_list = isinstance(prompt, list) and not any(isinstance(part, int) for part in prompt)
    is_one = not is_list or len(prompt or ()) == 1
    return not is_one or any(body.get(name) not in (None, 1) for name in ("n", "n_cmpl"))


def _is_refused(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    usage = options.get("include_usage") if isinstance(options, Mapping) else None
    given = [usage, *(body.get(name) for name in _OVERWRITTEN)]
    return not all(value is None or isinstance(value, bool) for value in given)


def _tells_probabilities(api: Api, body: Mapping[str, Any]) -> bool:
    """Those of a chat come with its text only; those of a stop word are taken back."""
    return api in (Api.COMPLETIONS, Api.NATIVE) and not body.get("stop")


def _has_stop_words(body: Mapping[str, Any]) -> bool:
    """Whether the engine may hold text back, since it may become a stop word."""
    return bool(body.get("stop") or body.get("stop_sequences"))


def stream_members(api: Api) -> Mapping[str, Any]:
    """Members that make of a request the same one for a stream, which tells the usage.

    The timings of each event tell the tokens of a text; ``echo`` has the stream tell what the
    client itself has the answer begin with, as a whole answer does.
    """
    return _MEMBERS[api]


def as_stream(api: Api, body: bytes) -> bytes:
    """The same request for a stream; nothing else of it changes.

    Args:
        api: Which is called.
        body: A JSON object, for which :func:`can_fold` holds.
    """
    return with_members(body, stream_members(api))


def fold_of(api: Api, path: str, body: Mapping[str, Any]) -> Fold:
    """What takes the events of a stream.

    Events may have come through a transcript of :mod:`supervisor.core.continuing`. It should have
    been made with the body of :func:`as_stream`; else it takes out the timings, and parts of
    answers that end by a limit are not known to be missing.

    Args:
        api: Whose events come.
        path: Of the route.
        body: As the client sent it.
    """
    held = _has_stop_words(body)
    match api:
        case Api.CHAT:
            return Chat(has_stop_words=held)
        case Api.COMPLETIONS:
            return Completion(has_stop_words=held)
        case Api.RESPONSES:
            return Responses()
        case Api.MESSAGES:
            return Messages(model=str(body.get("model") or ""), has_stop_words=held)
        case Api.NATIVE:
            return Native(has_stop_words=held)
