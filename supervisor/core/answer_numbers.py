"""Tokens of an answer that came as a whole, from what it says of itself."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AnswerNumbers:
    """Tokens of one request; ``None``: the answer does not say."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    generated_tokens: int | None = None

    @classmethod
    def of(cls, body: bytes) -> "AnswerNumbers":
        """Of any API's answer."""
        try:
            told: Any = json.loads(body)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(told, Mapping):
            return cls()
        usage = told.get("usage")
        if not isinstance(usage, Mapping):
            return _native(told)
        return _anthropic(usage) if "cache_read_input_tokens" in usage else _openai(usage)


def _native(told: Mapping[str, Any]) -> AnswerNumbers:
    return AnswerNumbers(
        _count(told.get("tokens_evaluated")), None, _count(told.get("tokens_predicted"))
    )


def _openai(usage: Mapping[str, Any]) -> AnswerNumbers:
    """Chat and completions, and the responses with names of their own."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return AnswerNumbers(
        _count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        _count(cached),
        _count(usage.get("completion_tokens", usage.get("output_tokens"))),
    )


def _anthropic(usage: Mapping[str, Any]) -> AnswerNumbers:
    """Its input tokens are those that were not cached."""
    cached = _count(usage.get("cache_read_input_tokens")) or 0
    new = _count(usage.get("input_tokens"))
    prompt = None if new is None else new + cached
    return AnswerNumbers(prompt, cached, _count(usage.get("output_tokens")))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
