"""Anthropic's messages: blocks of reasoning, text and tools, each opened, filled and closed."""

import json
import math
from collections.abc import Mapping
from typing import Any, Final

from supervisor.core.folding.base import Fold, Told, dumped

_INTEGERS: Final = range(-(2**63), 2**64)
"""Beyond these the engine reads a floating-point number."""
_MOST_DIGITS: Final = 20


class Messages(Fold):
    """One message."""

    def __init__(self, *, model: str, has_stop_words: bool) -> None:
        """Begin.

        Args:
            model: As the request names it, for an answer that does not.
            has_stop_words: Whether the engine may hold text back.
        """
        super().__init__()
        self._has_stop_words = has_stop_words
        usage = {"cache_read_input_tokens": 0, "input_tokens": 0, "output_tokens": 0}
        self._start: Told = {"id": "chatcmpl-", "model": model, "usage": usage}
        self._has_start = False
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._tools: dict[str, _Tool] = {}
        self._tool: _Tool | None = None
        """The one that is being filled."""
        self._delta: Told = {}

    def _take(self, told: Told) -> None:
        match told["type"]:
            case "content_block_delta":
                self._hear(told["delta"])
            case "content_block_start":
                self._open(told["content_block"])
            case "message_start":
                self._start = told["message"]
                self._has_start = True
            case "message_delta":
                self._delta = told
            case "message_stop":
                self.is_complete = True
                self._end()
        if not self._has_start and told["type"] != "ping":
            # The engine tells no start if its first token ends within a character.
            self.is_exact = False

    def _open(self, block: Mapping[str, Any]) -> None:
        if block["type"] == "tool_use":  # again if its name grew while it was read
            self._tool = self._tools.setdefault(block["id"], _Tool(block["id"]))
            self._tool.name = block["name"]

    def _hear(self, delta: Mapping[str, Any]) -> None:
        match delta["type"]:
            case "text_delta":
                self._text.append(delta["text"])
            case "thinking_delta":
                self._reasoning.append(delta["thinking"])
            case "input_json_delta" if self._tool is not None:
                self._tool.arguments.append(delta["partial_json"])

    def _end(self) -> None:
        tokens, delta = self._delta["usage"]["output_tokens"], self._delta["delta"]
        is_by_limit = delta["stop_reason"] == "max_tokens"
        is_by_itself = not is_by_limit and delta["stop_sequence"] is None
        others = self._reasoning or self._tools
        is_all_shown = not others and len(self._text) >= tokens
        if is_by_limit and self._has_stop_words and not is_all_shown:
            self.is_exact = False
        # An end-of-text token alone is nothing. Anything else a whole answer shows as it is.
        if not (others or self._text) and tokens > is_by_itself:
            self.is_exact = False

    def _whole(self) -> Told:
        delta, usage = self._delta["delta"], self._start["usage"]
        return {
            "id": self._start["id"],
            "type": "message",
            "role": "assistant",
            "content": self._blocks(),
            "model": self._start["model"],
            "stop_reason": delta["stop_reason"],
            "stop_sequence": delta["stop_sequence"],
            "usage": {**usage, "output_tokens": self._delta["usage"]["output_tokens"]},
        }

    def _blocks(self) -> list[Told]:
        blocks: list[Told] = []
        if self._reasoning:
            thinking = "".join(self._reasoning)
            blocks.append({"type": "thinking", "thinking": thinking, "signature": ""})
        if self._text:
            blocks.append({"type": "text", "text": "".join(self._text)})
        return blocks + [tool.block() for tool in self._tools.values()]


class _Tool:
    """One use of a tool."""

    def __init__(self, id_: str) -> None:
        self._id = id_
        self.name = ""
        self.arguments: list[str] = []

    def block(self) -> Told:
        """All of it."""
        given = _parsed("".join(self.arguments))
        return {"type": "tool_use", "id": self._id, "name": self.name, "input": given}


def _parsed(arguments: str) -> Any:
    """As the engine parses them: an empty object where they are no JSON."""
    try:
        parsed = json.loads(
            arguments, parse_int=_integer, parse_float=_finite, parse_constant=_finite
        )
        dumped({"": parsed})  # a half of a surrogate pair is no text
    except (ValueError, RecursionError):
        return {}
    return parsed


def _integer(digits: str) -> int | float:
    is_integer = len(digits) <= _MOST_DIGITS and int(digits) in _INTEGERS
    return int(digits) if is_integer else _finite(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is no number")
    return number
