"""Which requests have answers that cannot be continued exactly."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

_GRAMMAR: Final = "a grammar or JSON schema holds for it as a whole"
_TOOL: Final = "it has to be a tool call"
_PROBABILITIES: Final = "it comes with the probabilities of its tokens"
_SEVERAL: Final = "several answers were asked for at once"
_INDENT: Final = "its lines have to be indented"


def why_inexact(body: Mapping[str, Any]) -> str:
    """Why an answer to this cannot be continued once it has begun; empty: it can.

    All APIs are asked alike: llama-server takes the members of its own in nearly all of them.
    """
    return next(_reasons(body), "")


def answers_to(body: Mapping[str, Any]) -> int:
    """How many answers one request asks for."""
    count = next((body[name] for name in ("n_cmpl", "n") if body.get(name) is not None), 1)
    prompt = body.get("prompt")
    is_list = isinstance(prompt, list) and not any(isinstance(part, int) for part in prompt)
    prompts = len(prompt) if isinstance(prompt, list) and is_list else 1
    return prompts * (count if isinstance(count, int) else 1)


def _reasons(body: Mapping[str, Any]) -> Iterator[str]:
    if answers_to(body) > 1:
        yield _SEVERAL
    if body.get("grammar") or body.get("json_schema") is not None or _has_json_format(body):
        yield _GRAMMAR
    if _needs_tool(body.get("tool_choice")):
        yield _TOOL
    if any(body.get(name) for name in ("logprobs", "top_logprobs", "n_probs")):
        yield _PROBABILITIES
    if body.get("n_indent"):
        yield _INDENT


def _has_json_format(body: Mapping[str, Any]) -> bool:
    text = body.get("text")
    formats = (body.get("response_format"), text.get("format") if isinstance(text, dict) else None)
    return any(isinstance(f, dict) and f.get("type", "text") != "text" for f in formats)


def _needs_tool(choice: object) -> bool:
    if isinstance(choice, Mapping):
        return choice.get("type") not in ("auto", "none")
    return choice not in (None, "auto", "none")
