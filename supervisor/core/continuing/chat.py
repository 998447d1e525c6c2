"""Chat completions: the answer so far becomes the assistant's message that is to be continued."""

from collections.abc import Mapping
from typing import Any

from supervisor.core.continuing.chunks import Chunks
from supervisor.core.continuing.outcomes import Phase
from supervisor.core.continuing.prefill import Prefill, extended, last_assistant, text_of
from supervisor.core.gateway_routes import Api


class Chat(Chunks):
    """One streamed chat completion."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(Api.CHAT, body, _prefill(body))
        self._roles: set[int] = set()
        """Choices whose first event, which tells the role, was sent."""

    def _hear(self, choice: Mapping[str, Any]) -> bool:
        delta = choice["delta"]
        is_left = False
        for name, channel in (("content", self._content), ("reasoning_content", self._reasoning)):
            if text := delta.get(name):
                delta[name] = self._say(channel, text)
                is_left = is_left or bool(delta[name])
        for call in delta.get("tool_calls") or ():
            self._say_tool(call.get("function", {}).get("arguments"))
            is_left = True
        return self._is_new_role(choice) if "role" in delta else is_left

    def _is_new_role(self, choice: Mapping[str, Any]) -> bool:
        index = choice.get("index", 0)
        is_late = self.has_begun and self._phase is not Phase.FIRST
        is_new = index not in self._roles and not is_late
        self._roles.add(index)
        return is_new

    def _why_not(self) -> str:
        if self._prefill is None and self._body.get("add_generation_prompt") is False:
            return "its prompt does not say where the answer begins"
        return super()._why_not()

    def _rest(self) -> dict[str, Any]:
        messages = list(self._body["messages"])
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        if self._prefill is not None:
            message |= messages.pop()
        if self._content.parts:
            message["content"] = extended(message["content"], self._content.new)
        if self._reasoning.parts:
            message["reasoning_content"] = self._reasoning.whole
        body = {key: value for key, value in self._asked.items() if key != "echo"}
        where = "content" if self._content.whole else "reasoning_content"
        return {
            **body,
            "messages": [*messages, message],
            "add_generation_prompt": False,
            "continue_final_message": where,
        }


def _prefill(body: Mapping[str, Any]) -> Prefill | None:
    """The last message, if the engine continues it."""
    messages = body.get("messages")
    is_asked = body.get("continue_final_message") in (True, "content", "reasoning_content")
    last = last_assistant(messages)
    if last is None and is_asked and isinstance(messages, list) and messages:
        last = messages[-1]
    if not isinstance(last, Mapping):
        return None
    is_echoed = not is_asked or body.get("echo") is True
    return Prefill(
        str(last.get("reasoning_content") or ""), text_of(last.get("content")), is_echoed
    )
