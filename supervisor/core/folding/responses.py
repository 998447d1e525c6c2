"""OpenAI's responses: the last event has all items of the answer."""

from collections.abc import Mapping
from typing import Any

from supervisor.core.folding.base import Fold, Told


class Responses(Fold):
    """One response."""

    def __init__(self) -> None:
        super().__init__()
        self._response: Told = {}

    def _take(self, told: Told) -> None:
        if told["type"] != "response.completed":
            return
        self._response = told["response"]
        self.is_complete = True
        # What is no text, such as the marks of an empty reasoning, the whole answer shows as it is.
        if not self._response["output"] and self._response["usage"]["output_tokens"]:
            self.is_exact = False

    def _whole(self) -> Told:
        response = self._response
        return {
            "completed_at": response["created_at"],
            "created_at": response["created_at"],
            "id": response["id"],
            "model": response["model"],
            "object": "response",
            "output": [_item(item) for item in response["output"]],
            "status": "completed",
            "usage": response["usage"],
        }


def _item(item: Mapping[str, Any]) -> Told:
    """An item as a whole answer has it."""
    match item["type"]:
        case "reasoning":
            return {**item, "status": "completed"}
        case "message":
            order = ("content", "id", "role", "status", "type")
            return {name: item[name] for name in order}
    return dict(item)
