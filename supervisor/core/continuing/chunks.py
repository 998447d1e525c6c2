"""OpenAI's chunks: the events of chat completions and of completions."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Final

from supervisor.core.continuing.base import Told, Transcript
from supervisor.core.continuing.outcomes import Phase

_DONE: Final = b"data: [DONE]"


class Chunks(Transcript):
    """An answer in chunks, each with some text of one choice, and a mark after the last one."""

    _id: str | None = None
    _has_usage = False

    def _take_bare(self, event: bytes) -> bytes:
        if event.startswith(_DONE):
            self.is_complete = True
        return event

    @abstractmethod
    def _hear(self, choice: Mapping[str, Any]) -> bool:
        """Take the text of a choice into account; put what the client gets of it in its place.

        Returns:
            Whether anything is left for the client.
        """

    def _note(self, told: Told) -> None:
        if self._id is None:
            self._id = told.get("id")
        choices = told.get("choices")
        if choices:
            choice = choices[0]
            self._hear(choice)
            self._note_finish(choice)
        elif "error" in told:
            self.is_complete = True
        if "usage" in told:
            self._is_ending = self._has_usage = True
            self._take_usage(told["usage"])

    def _note_finish(self, choice: Mapping[str, Any]) -> None:
        reason = choice.get("finish_reason")
        if reason is not None:
            self._is_ending = True
            self._is_by_limit = reason == "length"

    def _take_usage(self, usage: Mapping[str, Any]) -> None:
        details = usage.get("prompt_tokens_details") or {}
        self._take_prompt(usage["prompt_tokens"], details.get("cached_tokens"))
        self._take_total(usage["completion_tokens"])

    def _fitted(self, told: Told) -> bytes:
        if self._id is not None:
            told["id"] = self._id
        else:
            self._id = told.get("id")
        if "usage" in told:
            if self._phase is Phase.CLOSING and self._has_usage:
                return b""  # it was sent before the cut
            told["usage"] = self._usage(told["usage"])
        choices = told.get("choices")
        if not choices:
            self._is_ending = True
            return self._made(told)
        choice = choices[0]
        if choice.get("finish_reason") is not None:
            return self._fitted_end(told, choice)
        if self._phase is Phase.CLOSING or not self._hear(choice):
            return b""
        return self._made(told)

    def _fitted_end(self, told: Told, choice: dict[str, Any]) -> bytes:
        if self._phase is Phase.CLOSING:
            if self._is_ending:
                return b""  # it was sent before the cut
            choice["finish_reason"] = "length"
        self._note_finish(choice)
        return self._made(told)

    def _usage(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """That of the whole answer."""
        self._has_usage = True
        total = self._total(usage["completion_tokens"])
        self._take_usage(usage)
        prompt = self._prompt(usage["prompt_tokens"])
        fitted = {
            **usage,
            "prompt_tokens": prompt,
            "completion_tokens": total,
            "total_tokens": prompt + total,
        }
        if self._cached_tokens is not None:
            fitted["prompt_tokens_details"] = {"cached_tokens": self._cached_tokens}
        return fitted
