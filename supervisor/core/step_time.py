"""How long a step of llama-server may take before anything of it can be seen to move."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from supervisor.core.entities import Plan
from supervisor.core.slots import SlotState

_GUESS_FACTOR: Final = 4.0
_DECAY: Final = 0.99
"""Of the longest step, with every movement."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the plan predicts."""

    token_s: float
    """One token for each busy slot."""
    prompt_token_s: float
    ubatch_tokens: int
    most_prompt_tokens: int
    is_guess: bool = False


@dataclass(frozen=True, slots=True)
class Longest:
    """The longest time between two movements lately, of each phase."""

    decode_s: float = 0.0
    prompt_s: float = 0.0


def expected(plan: Plan) -> Expected:
    """Without a prediction: a careful guess."""
    seen = plan.prediction
    if seen is None or min(seen.decode_tokens_per_s, seen.prefill_tokens_per_s) <= 0:
        return Expected(1.0, 0.1, plan.ubatch, plan.ctx_tokens, is_guess=True)
    token_s = seen.users / seen.decode_tokens_per_s  # the speed is that of all users together
    prompt_token_s = 1 / seen.prefill_tokens_per_s
    return Expected(token_s, prompt_token_s, plan.ubatch, plan.ctx_tokens, seen.is_guess)


def learned(longest: Longest, took_s: float, *, reads_prompt: bool) -> Longest:
    """With one more step; a slow one is forgotten in the end."""
    if reads_prompt:
        return replace(longest, prompt_s=max(took_s, longest.prompt_s * _DECAY))
    return replace(longest, decode_s=max(took_s, longest.decode_s * _DECAY))


def decode_s(expected: Expected, longest: Longest) -> float:
    """While every busy slot answers."""
    factor = _GUESS_FACTOR if expected.is_guess else 1.0
    return max(expected.token_s * factor, longest.decode_s)


def prompt_s(expected: Expected, longest: Longest, reading: Sequence[SlotState]) -> float:
    """While a prompt is read, by those slots if they are known.

    Workers take as many batches as there are and answer when they must. The last of a chain, or
    the only one, must at the end of the prompt, so that all of it is one step.
    """
    factor = _GUESS_FACTOR if expected.is_guess else 1.0
    is_told = bool(reading) and all(slot.prompt_tokens for slot in reading)
    taken = sum(slot.prompt_tokens for slot in reading)
    tokens = max(taken, expected.ubatch_tokens) if is_told else expected.most_prompt_tokens
    steps_s = expected.prompt_token_s * factor * tokens
    return max(steps_s, longest.prompt_s, decode_s(expected, longest))
