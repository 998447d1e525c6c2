"""Completions, OpenAI's and llama-server's own: the answer so far is put after the prompt.

Source:
    llama.cpp: ``tools/server/server-common.cpp`` (``tokenize_input_subprompt``).
"""

from collections.abc import Mapping
from typing import Any

from supervisor.core.continuing.base import Told, Transcript
from supervisor.core.continuing.chunks import Chunks
from supervisor.core.continuing.exactness import answers_to
from supervisor.core.continuing.outcomes import Phase
from supervisor.core.gateway_routes import Api


def extended_prompt(prompt: Any, text: str) -> Any:
    """A prompt with more text at its end.

    Raises:
        ValueError: It is none, or several.
    """
    if isinstance(prompt, str):
        return prompt + text
    if isinstance(prompt, Mapping):
        return {**prompt, "prompt_string": extended_prompt(prompt.get("prompt_string"), text)}
    if isinstance(prompt, list) and any(isinstance(part, int) for part in prompt):
        # Numbers of tokens, perhaps with texts among them.
        if isinstance(prompt[-1], str):
            return [*prompt[:-1], prompt[-1] + text]
        return [*prompt, text]
    if isinstance(prompt, list) and len(prompt) == 1:
        return [extended_prompt(prompt[0], text)]
    raise ValueError("no prompt, or several")


class Completion(Chunks):
    """One streamed completion of OpenAI's API."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(Api.COMPLETIONS, body)

    def _hear(self, choice: Mapping[str, Any]) -> bool:
        text = choice["text"]
        if text:
            self._say(self._content, text)
        # After a cut, tokens that show nothing would be told twice.
        return bool(text)

    def _rest(self) -> dict[str, Any]:
        return {**self._asked, "prompt": extended_prompt(self._body["prompt"], self._content.new)}


class Native(Transcript):
    """One streamed completion of llama-server's own API."""

    def __init__(self, path: str, body: Mapping[str, Any]) -> None:
        super().__init__(Api.NATIVE, body)
        self._is_infill = path == "/infill"
        self._told_tokens = 0
        """The highest count that the client was told."""
        self._awaited = answers_to(body)
        self._before = ""
        """Of the answer, in the prompt of this engine."""

    def _note(self, told: Told) -> None:
        if "error" in told:
            self.is_complete = True
            return
        if told.get("stop") is not False:
            self._note_end(told)
            return
        self._take_prompt(told["tokens_evaluated"], None)
        tokens = told["tokens_predicted"]
        self._hear(told["content"], tokens)
        self._told_tokens = max(self._told_tokens, self._tokens_before + tokens)

    def _hear(self, text: str, tokens: int) -> None:
        if not self._is_several:
            self._tokens = tokens
        if text:
            self._say(self._content, text)
            self._tokens_sent = self._tokens
        self._heard = ""  # counted

    def _note_end(self, told: Told) -> None:
        self._awaited -= 1
        self.is_complete = self._awaited <= 0
        self._is_ending = True
        self._take_prompt(told.get("tokens_evaluated"), None)
        if "tokens_predicted" in told:
            self._take_total(told["tokens_predicted"])

    def _fitted(self, told: Told) -> bytes:
        if told.get("stop") is not False:
            self._fit_end(told)
            return self._made(told)
        tokens = self._tokens_before + told["tokens_predicted"]
        if self._phase is Phase.CLOSING or not (told["content"] or tokens > self._told_tokens):
            return b""
        self._note(told)
        told["tokens_predicted"] = tokens
        told["tokens_evaluated"] = self._prompt_tokens
        return self._made(told)

    def _fit_end(self, told: Told) -> None:
        total = self._total(told.get("tokens_predicted", 0))
        self._note_end(told)
        shown: dict[str, Any] = {"tokens_predicted": total, "tokens_evaluated": self._prompt_tokens}
        if self._phase is Phase.CLOSING:
            shown |= {"stop_type": "limit", "stopping_word": ""}
            shown["tokens_cached"] = (self._prompt_tokens or 0) + total - 1
        elif isinstance(told.get("prompt"), str):
            shown["prompt"] = told["prompt"].removesuffix(self._before)
        if "\n" in self._content.new:
            shown["has_new_line"] = True
        if self._budget.tokens is not None:
            shown |= {"n_predict": self._budget.tokens, "max_tokens": self._budget.tokens}
        for fields in (told, told.get("generation_settings") or {}):
            fields.update({key: value for key, value in shown.items() if key in fields})

    def _go_on(self) -> None:
        super()._go_on()
        self._before = self._content.new

    def _why_not(self) -> str:
        if self._is_infill:
            return "it fills a gap, and nothing can be put before its end"
        return super()._why_not()

    def _rest(self) -> dict[str, Any]:
        return {**self._asked, "prompt": extended_prompt(self._body["prompt"], self._content.new)}
