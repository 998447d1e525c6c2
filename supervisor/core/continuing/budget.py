"""How many tokens an answer may have, and how many of them are left.

Source:
    llama.cpp: ``tools/server/server-schema.cpp`` (the first of the names that is not null counts),
    ``tools/server/server-chat.cpp`` (those of the other APIs).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

from supervisor.core.gateway_routes import Api

_NAMES: Final = ("n_predict", "max_completion_tokens", "max_tokens")
_NAMES_OF: Final = {
    Api.MESSAGES: ("max_tokens",),
    Api.RESPONSES: ("n_predict", "max_completion_tokens", "max_output_tokens", "max_tokens"),
}
_MESSAGES_TOKENS: Final = 4096
"""Of Anthropic's messages, where the request does not say."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The limit of one request."""

    name: str
    """Of the member of the body that sets it."""
    tokens: int | None
    """``None``: as many as the context holds."""

    @classmethod
    def of(cls, api: Api, body: Mapping[str, Any]) -> "Budget":
        """What a request says."""
        names = _NAMES_OF.get(api, _NAMES)
        for name in names:
            value = body.get(name)
            if isinstance(value, int | float) and isfinite(value):
                # Even for 0 the engine generates one token.
                return cls(name, max(1, int(value)) if value >= 0 else None)
        if api is Api.MESSAGES and names[0] not in body:
            return cls(names[0], _MESSAGES_TOKENS)
        return cls(names[0], None)

    def capped(self, tokens: int) -> int:
        """An estimate of tokens, which cannot be more than there may be."""
        return tokens if self.tokens is None else min(tokens, self.tokens)

    def is_used_up(self, tokens: int) -> bool:
        """Whether nothing may follow after so many tokens."""
        return self.tokens is not None and tokens >= self.tokens

    def after(self, tokens: int) -> dict[str, int]:
        """What to ask for after so many tokens, to be put into a body."""
        return {} if self.tokens is None else {self.name: self.tokens - tokens}

    def least(self) -> dict[str, int]:
        """What to ask for where only the end of an answer is wanted."""
        return {self.name: 1}
