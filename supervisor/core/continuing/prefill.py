"""What a client itself had an answer begin with, and how an answer so far is put after that.

Source:
    llama.cpp: ``tools/server/server-common.cpp`` (``oaicompat_chat_params_parse``),
    ``server-chat.cpp`` (the other APIs become chats), ``common/chat.cpp`` (``render_content``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_TEXT_TYPES: Final = ("text", "output_text", "input_text")


@dataclass(frozen=True, slots=True)
class Prefill:
    """The beginning of an answer that a request holds."""

    reasoning: str = ""
    content: str = ""
    is_echoed: bool = False
    """Whether the engine says it again."""


def text_of(content: object) -> str:
    """The text of a message, as the engine joins its parts."""
    if isinstance(content, str):
        return content
    text = ""
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and part.get("type") in _TEXT_TYPES:
            text = f"{text}\n\n{part.get('text', '')}" if text else str(part.get("text", ""))
    return text


def extended(content: object, new: str, part_type: str = "text") -> Any:
    """A content with more text at its end; that of the client is copied, not changed."""
    if not isinstance(content, list):
        return (content if isinstance(content, str) else "") + new
    parts = list(content)
    for at in reversed(range(len(parts))):
        if isinstance(parts[at], Mapping) and parts[at].get("type") in _TEXT_TYPES:
            parts[at] = {**parts[at], "text": str(parts[at].get("text", "")) + new}
            return parts
    return [*parts, {"type": part_type, "text": new}]


def last_assistant(messages: object) -> Mapping[str, Any] | None:
    """The last message, if it is the assistant's own."""
    if not isinstance(messages, Sequence) or not messages or isinstance(messages, str):
        return None
    last = messages[-1]
    return last if isinstance(last, Mapping) and last.get("role") == "assistant" else None
