"""OpenAI's responses: items of reasoning, message and tool calls, and at the end all of them again.

Source:
    llama.cpp: ``tools/server/server-task.cpp`` (``to_json_oaicompat_resp_stream``),
    ``server-chat.cpp`` (``server_chat_convert_responses_to_chatcmpl``).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from supervisor.core.continuing.base import Told, Transcript
from supervisor.core.continuing.events import made_event
from supervisor.core.continuing.outcomes import Phase
from supervisor.core.continuing.prefill import Prefill, extended, last_assistant, text_of
from supervisor.core.gateway_routes import Api

_RESPONSE, _MESSAGE, _REASONING = "resp", "msg", "rs"
"""What ids begin with."""

_BEGINNINGS: Final = ("response.created", "response.in_progress")
_LAST: Final = ("response.completed", "response.failed", "response.incomplete", "error")


class Responses(Transcript):
    """One streamed response."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(Api.RESPONSES, body, _prefill(body))
        self._ids: dict[str, str] = {}
        """The first of each kind."""
        self._sent: set[tuple[str, str]] = set()
        """Events that come once: their kind, and the id of what they are about."""

    def _note(self, told: Told) -> None:
        kind = told.get("type")
        if kind == "response.output_text.delta":
            told["delta"] = self._say(self._content, told["delta"])
        elif kind == "response.reasoning_text.delta":
            told["delta"] = self._say(self._reasoning, told["delta"])
        elif kind is None:
            self.is_complete = "error" in told
        else:
            self._note_other(kind, told)

    def _note_other(self, kind: str, told: Told) -> None:
        if not kind.endswith(".delta"):
            self._sent.add((kind, self._subject(told)))
        if kind.endswith(".done"):
            self._is_ending = True
        elif kind in _LAST:
            self._is_ending = self.is_complete = True
            if usage := told.get("response", {}).get("usage"):
                self._note_usage(usage)
        elif kind == "response.function_call_arguments.delta":
            self._say_tool(told["delta"])
        elif told.get("item", {}).get("type") == "function_call":
            self._say_tool("")

    def _note_usage(self, usage: Mapping[str, Any]) -> None:
        details = usage.get("input_tokens_details") or {}
        self._take_prompt(usage["input_tokens"], details.get("cached_tokens"))
        self._take_total(usage["output_tokens"])

    def _subject(self, told: Told) -> str:
        """The id of what an event is about, as the client knows it; put into its place."""
        holder, name = told, "item_id"
        for part in ("item", "response"):
            if part in told:
                holder, name = told[part], "id"
        if name not in holder:
            return ""
        holder[name] = self._first_id(holder[name])
        return str(holder[name])

    def _first_id(self, own: str) -> str:
        kind = own.partition("_")[0]
        return self._ids.setdefault(kind, own) if kind in (_RESPONSE, _MESSAGE, _REASONING) else own

    # -- after a cut ---------------------------------------------------------------------------

    def _fitted(self, told: Told) -> bytes:
        kind = told["type"]
        subject = self._subject(told)
        if kind == "response.completed":
            return self._fitted_last(told)
        if kind in _BEGINNINGS:
            is_late = self.has_begun or self._is_ending or (kind, subject) in self._sent
        else:
            is_late = self._phase is Phase.CLOSING or (kind, subject) in self._sent
        if is_late:
            return b""
        self._note(told)
        if told.get("delta") == "":
            return b""
        if kind.endswith(".done"):
            self._mend(told)
        return self._made(told, kind)

    def _mend(self, told: Told) -> None:
        """Put the whole text into an event that ends a part of the answer."""
        if "text" in told:
            told["text"] = self._whole(_MESSAGE, told["text"])
        if "part" in told:
            told["part"]["text"] = self._whole(_MESSAGE, told["part"]["text"])
        if "item" in told:
            self._mend_item(told["item"])

    def _mend_item(self, item: dict[str, Any]) -> None:
        item["id"] = self._first_id(item["id"])
        kind = {"message": _MESSAGE, "reasoning": _REASONING}.get(item["type"])
        if kind is not None:
            item["content"][0]["text"] = self._whole(kind, item["content"][0]["text"])

    def _whole(self, kind: str, told: str) -> str:
        """A text as it was sent, and what the engine tells at its end only."""
        content, reasoning = self._content.told, self._reasoning.told
        ours = content if kind == _MESSAGE else reasoning
        is_last = kind == _MESSAGE or not content
        return told if is_last and told.startswith(ours) else ours

    def _fitted_last(self, told: Told) -> bytes:
        response = told["response"]
        ends = b""
        if self._phase is Phase.CLOSING:
            items = list(self._own_items())
            ends = b"".join(self._own_ends(items))
            response["output"] = items
        else:
            for item in response["output"]:
                self._mend_item(item)
        response["usage"] = self._usage(response["usage"])
        self._is_ending = self.is_complete = True
        return ends + self._made(told, "response.completed")

    def _usage(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        total = self._total(usage["output_tokens"])
        self._note_usage(usage)
        prompt = self._prompt(usage["input_tokens"])
        fitted = {
            **usage,
            "input_tokens": prompt,
            "output_tokens": total,
            "total_tokens": prompt + total,
        }
        if self._cached_tokens is not None:
            fitted["input_tokens_details"] = {"cached_tokens": self._cached_tokens}
        return fitted

    def _own_items(self) -> Iterator[dict[str, Any]]:
        """The output as the client has it, where the engine tells another one."""
        if text := self._reasoning.told:
            yield {
                "id": self._own_id(_REASONING),
                "summary": [],
                "type": "reasoning",
                "content": [{"text": text, "type": "reasoning_text"}],
                "encrypted_content": "",
            }
        if text := self._content.told:
            part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
            yield {
                "type": "message",
                "status": "completed",
                "id": self._own_id(_MESSAGE),
                "content": [part],
                "role": "assistant",
            }

    def _own_ends(self, items: list[dict[str, Any]]) -> Iterator[bytes]:
        """The events that end these items, without those that were sent."""
        for item in items:
            events: list[dict[str, Any]] = [{"type": "response.output_item.done", "item": item}]
            if item["type"] == "message":
                about, part = {"item_id": item["id"]}, item["content"][0]
                events = [
                    {"type": "response.output_text.done", **about, "text": part["text"]},
                    {"type": "response.content_part.done", **about, "part": part},
                    *events,
                ]
            for told in events:
                if (told["type"], item["id"]) not in self._sent:
                    yield made_event(told, told["type"])

    def _own_id(self, kind: str) -> str:
        first = self._ids.get(_RESPONSE, "")
        return self._ids.setdefault(kind, f"{kind}_{first.partition('_')[2]}")

    def _can_close(self) -> bool:
        return super()._can_close() and not self._has_tool_call

    def _rest(self) -> dict[str, Any]:
        body = {key: value for key, value in self._asked.items() if key != "echo"}
        items = _items(self._body["input"])
        if self._reasoning.parts:
            _extend(items, "reasoning", self._reasoning.new)
        if self._content.parts:
            _extend(items, "message", self._content.new)
        where = "content" if self._content.whole else "reasoning_content"
        return {
            **body,
            "input": items,
            "add_generation_prompt": False,
            "continue_final_message": where,
        }


def _items(given: Any) -> list[Any]:
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given)


def _kind(item: Any) -> str:
    """What an item of the assistant is; empty: it is not the assistant's."""
    if not isinstance(item, Mapping):
        return ""
    if item.get("type") == "reasoning":
        return "reasoning"
    return "message" if last_assistant([item]) is not None else ""


def _extend(items: list[Any], kind: str, new: str) -> None:
    """Put more text after the items of the assistant at the end of the input."""
    for at in reversed(range(len(items))):
        if not _kind(items[at]):
            break
        if _kind(items[at]) == kind:
            part_type = "output_text" if kind == "message" else "reasoning_text"
            content = _extended(items[at].get("content"), new, part_type)
            items[at] = {**items[at], "content": content}
            return
    if kind == "reasoning":
        part = {"type": "reasoning_text", "text": new}
        items.append({"type": "reasoning", "summary": [], "content": [part]})
    else:
        part = {"type": "output_text", "text": new}
        items.append({"type": "message", "role": "assistant", "content": [part]})


def _extended(content: Any, new: str, part_type: str) -> Any:
    if part_type == "reasoning_text" and isinstance(content, list) and content:
        # The engine reads the first part only.
        return [{**content[0], "text": content[0].get("text", "") + new}, *content[1:]]
    return extended(content, new, part_type)


def _prefill(body: Mapping[str, Any]) -> Prefill | None:
    """The items of the assistant at the end of the input."""
    given = body.get("input")
    reasoning = content = ""
    found = False
    for item in reversed(given if isinstance(given, list) else []):
        kind = _kind(item)
        if not kind:
            break
        found = True
        if kind == "message":
            content = content or text_of(item.get("content"))
        elif isinstance(item.get("content"), list) and item["content"]:
            reasoning = str(item["content"][0].get("text", ""))
    if not found:
        return None
    is_asked = body.get("continue_final_message") in (True, "content", "reasoning_content")
    return Prefill(reasoning, content, is_echoed=not is_asked or body.get("echo") is True)
