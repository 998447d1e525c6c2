"""Anthropic's messages: blocks of reasoning, text and tools, each opened, filled and closed.

llama-server takes no more than Anthropic's own members here, so it cannot be told not to repeat
what an answer has to begin with. The repetition is taken out.
"""

from collections.abc import Mapping
from typing import Any

from supervisor.core.continuing.base import Told, Transcript
from supervisor.core.continuing.events import made_event
from supervisor.core.continuing.outcomes import Phase
from supervisor.core.continuing.prefill import Prefill, extended, last_assistant, text_of
from supervisor.core.gateway_routes import Api


class Messages(Transcript):
    """One streamed message."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(Api.MESSAGES, body, _prefill(body))
        self._has_start = False
        self._has_delta = False
        """The event that tells how the answer ended was sent."""
        self._blocks: list[str] = []
        """Types of the blocks that were opened."""
        self._open: list[int] = []
        self._signed: set[int] = set()
        self._block_of: dict[int, int] = {}
        """Blocks as the client knows them, by the numbers that this engine gives them."""

    def _note(self, told: Told) -> None:
        match told["type"]:
            case "content_block_delta":
                self._hear(told)
            case "content_block_start":
                self._open_block(told["content_block"]["type"])
            case "content_block_stop":
                self._is_ending = True
                self._open.remove(told["index"])
            case "message_start":
                self._has_start = True
                self._note_usage(told["message"]["usage"])
            case "message_delta":
                self._is_ending = self._has_delta = True
                self._take_total(told["usage"]["output_tokens"])
            case "message_stop" | "error":
                self.is_complete = True

    def _note_usage(self, usage: Mapping[str, int]) -> None:
        cached = usage["cache_read_input_tokens"]
        self._take_prompt(usage["input_tokens"] + cached, cached)

    def _open_block(self, kind: str) -> int:
        if kind == "tool_use":
            self._say_tool("")
        index = len(self._blocks)
        self._blocks.append(kind)
        self._open.append(index)
        return index

    def _hear(self, told: Told) -> bool:
        """Take a part of a block into account.

        Returns:
            Whether anything is left for the client.
        """
        delta = told["delta"]
        match delta["type"]:
            case "text_delta":
                delta["text"] = self._say(self._content, delta["text"])
                return bool(delta["text"])
            case "thinking_delta":
                delta["thinking"] = self._say(self._reasoning, delta["thinking"])
                return bool(delta["thinking"])
            case "input_json_delta":
                self._say_tool(delta["partial_json"])
            case "signature_delta":
                self._is_ending = True
                is_first = told["index"] not in self._signed
                self._signed.add(told["index"])
                return is_first
        return True

    # -- after a cut ---------------------------------------------------------------------------

    def _fitted(self, told: Told) -> bytes:
        kind = told["type"]
        if kind == "message_start":
            return self._fitted_start(told)
        if kind == "message_delta":
            return self._fitted_delta(told)
        if kind in ("message_stop", "ping"):
            self.is_complete = kind == "message_stop"
            return self._made(told, kind)
        if self._phase is Phase.CLOSING:
            return b""
        is_opening = kind == "content_block_start"
        return self._fitted_opening(told) if is_opening else self._fitted_part(told)

    def _fitted_start(self, told: Told) -> bytes:
        if self._has_start or self.has_begun or self._is_ending:
            return b""
        self._note(told)
        return self._made(told, "message_start")

    def _fitted_opening(self, told: Told) -> bytes:
        kind, index = told["content_block"]["type"], told["index"]
        if kind in ("text", "thinking") and kind in self._blocks:
            self._block_of[index] = self._blocks.index(kind)
            return b""
        told["index"] = self._block_of[index] = self._open_block(kind)
        return self._made(told, "content_block_start")

    def _fitted_part(self, told: Told) -> bytes:
        index = self._block_of.get(told["index"], -1)
        if told["type"] == "content_block_stop":
            return self._close(index)
        told["index"] = index
        if index not in self._open or not self._hear(told):
            return b""
        return self._made(told, "content_block_delta")

    def _close(self, index: int) -> bytes:
        """End a block, unless that was done; reasoning with the signature that it has to have."""
        if index not in self._open:
            return b""
        self._is_ending = True
        self._open.remove(index)
        signature = b""
        if self._blocks[index] == "thinking" and index not in self._signed:
            self._signed.add(index)
            delta = {"type": "signature_delta", "signature": ""}
            told = {"type": "content_block_delta", "index": index, "delta": delta}
            signature = made_event(told, "content_block_delta")
        stop = {"type": "content_block_stop", "index": index}
        return signature + made_event(stop, "content_block_stop")

    def _fitted_delta(self, told: Told) -> bytes:
        """End what this engine had no reason to end, and the answer."""
        if self._has_delta:
            return b""
        ends = b"".join(self._close(index) for index in tuple(self._open))
        total = self._total(told["usage"]["output_tokens"])
        if self._phase is Phase.CLOSING:
            told["delta"] = {"stop_reason": self._stop_reason(), "stop_sequence": None}
        self._note(told)
        told["usage"] = {**told["usage"], "output_tokens": total}
        return ends + self._made(told, "message_delta")

    def _stop_reason(self) -> str:
        if self._is_by_limit:
            return "max_tokens"
        return "tool_use" if self._has_tool_call else "end_turn"

    def _go_on(self) -> None:
        self._block_of = {}
        self._reasoning.go_on(is_echoed=True, is_over=bool(self._content.whole))
        self._content.go_on(is_echoed=True, is_over=False)

    def _rest(self) -> dict[str, Any]:
        messages = list(self._body["messages"])
        content: Any = []
        if self._prefill is not None:
            content = messages.pop().get("content")
        if self._reasoning.parts:
            content = _with_reasoning(content, self._reasoning.new)
        if self._content.parts:
            content = extended(content, self._content.new)
        return {**self._asked, "messages": [*messages, {"role": "assistant", "content": content}]}


def _with_reasoning(content: Any, new: str) -> list[Any]:
    blocks = list(content) if isinstance(content, list) else []  # else it is empty
    for at in reversed(range(len(blocks))):
        if blocks[at].get("type") == "thinking":
            blocks[at] = {**blocks[at], "thinking": blocks[at].get("thinking", "") + new}
            return blocks
    return [{"type": "thinking", "thinking": new, "signature": ""}, *blocks]


def _prefill(body: Mapping[str, Any]) -> Prefill | None:
    last = last_assistant(body.get("messages"))
    if last is None:
        return None
    content = last.get("content")
    blocks = content if isinstance(content, list) else []
    reasoning = "".join(
        str(block.get("thinking", ""))
        for block in blocks
        if isinstance(block, Mapping) and block.get("type") == "thinking"
    )
    return Prefill(reasoning, text_of(content), is_echoed=True)
