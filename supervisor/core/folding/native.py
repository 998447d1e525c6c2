"""llama-server's own completions: an event for each token, and a last one with all but the text."""

from typing import Any

from supervisor.core.folding.base import Fold, Told
from supervisor.core.folding.chunks import REPLACEMENT


class Native(Fold):
    """One completion."""

    def __init__(self, *, has_stop_words: bool) -> None:
        super().__init__()
        self._has_stop_words = has_stop_words
        self._texts: list[str] = []
        self._tokens_shown = 0
        self._probabilities: list[Any] = []
        self._end: Told = {}

    def _take(self, told: Told) -> None:
        if not told["stop"]:
            self._texts.append(told["content"])
            self._tokens_shown = told["tokens_predicted"]
            self._probabilities += told.get("completion_probabilities", ())
            return
        self._end = told
        self.is_complete = True
        if told["stop_type"] == "limit":
            self._end_by_limit(told["tokens_predicted"])

    def _end_by_limit(self, tokens: int) -> None:
        if self._has_stop_words and self._texts and not self._texts[-1]:
            self.is_exact = False
        if tokens > self._tokens_shown:
            self._texts.append(REPLACEMENT)

    def _whole(self) -> Told:
        # What streaming alone makes of the settings.
        settings = {"stream": False, "reasoning_in_content": False}
        whole = {
            **self._end,
            "content": "".join(self._texts),
            "generation_settings": {**self._end["generation_settings"], **settings},
        }
        found = self._probabilities
        return whole | {"completion_probabilities": found} if found else whole
