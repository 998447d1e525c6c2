"""The way in: what to ask the engine for a streamed answer, and the transcript that follows it."""

from collections.abc import Mapping
from typing import Any

from supervisor.core.answer_numbers import AnswerNumbers as Numbers
from supervisor.core.continuing.asking import asked_upstream
from supervisor.core.continuing.base import Transcript
from supervisor.core.continuing.chat import Chat
from supervisor.core.continuing.completions import Completion, Native
from supervisor.core.continuing.messages import Messages
from supervisor.core.continuing.outcomes import Continue, Hopeless, Outcome, Restart
from supervisor.core.continuing.responses import Responses
from supervisor.core.gateway_routes import Api

__all__ = [
    "Continue",
    "Hopeless",
    "Numbers",
    "Outcome",
    "Restart",
    "Transcript",
    "asked_upstream",
    "transcript_of",
]


def transcript_of(api: Api, path: str, body: Mapping[str, Any]) -> Transcript:
    """A transcript for the answer to a streaming request.

    Args:
        api: Whose events come.
        path: Of the route, which tells llama-server's own ones apart.
        body: As the client sent it.
    """
    match api:
        case Api.CHAT:
            return Chat(body)
        case Api.COMPLETIONS:
            return Completion(body)
        case Api.RESPONSES:
            return Responses(body)
        case Api.MESSAGES:
            return Messages(body)
        case Api.NATIVE:
            return Native(path, body)
