"""Which quantisation of a model to run: what fits, how fast, and the recommendation in words."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import Field

from supervisor.core.entities import ByteCount, FrozenModel, Plan
from supervisor.core.explain_words import listed, rate
from supervisor.core.model_reference import LEAST_BITS, RepoModel
from supervisor.core.planning import HOST
from supervisor.core.units import gib

USUAL_CTX_TOKENS: Final = 8192
USUAL_MIN_SPEED: Final = 5.0
"""Tokens per second; about as fast as people read."""


class ModelFit(FrozenModel):
    """Whether a model fits these devices with a context, and how fast it would be."""

    ctx_tokens: int = Field(ge=1)
    fits: bool
    tokens_per_s: float | None = Field(default=None, description="None: not known")
    is_guess: bool = Field(default=False, description="some device or link was never measured")
    devices: tuple[str, ...] = Field(default=(), description="that would hold layers, in order")
    kv_type: str = ""
    is_checked: bool = Field(default=False, description="the engine itself confirms its memory")
    is_estimate: bool = Field(default=False, description="from its parameters, not its header")
    missing_bytes: ByteCount | None = Field(
        default=None, description="what a further device would have to offer; None: unknown"
    )
    smaller_ctx_tokens: int | None = Field(default=None, description="with which it would fit")
    smaller_kv_type: str = Field(default="", description="with which it would fit, with that")
    error_code: str = ""
    reason: str = Field(default="", description="why it does not fit, or what it takes to fit")


class Suggestion(FrozenModel):
    """A quantisation of a model that may be run."""

    reference: str = Field(description="what the model of a deployment may be")
    repo: str
    label: str = Field(description="its quantisation, or its file's name where that tells more")
    size_bytes: ByteCount
    fit: ModelFit
    id: str = Field(default="", description="in the catalogue; empty: not from there")
    licence: str = ""
    about: str = ""
    is_recommended: bool = False
    reason: str = Field(default="", description="in words, with the numbers")


class Suggestions(FrozenModel):
    """The answer: of a repository every quantisation, of a task the best of each model."""

    asked: str = Field(description="repository, task or catalogue id; empty: anything")
    ctx_tokens: int | None = Field(description="that were asked for; None: see each fit")
    min_tokens_per_s: float
    suggestions: tuple[Suggestion, ...] = Field(description="a repository's largest first")
    words: str = Field(description="the recommendation, or what would have to change")
    command: str = Field(default="", description="what to run next; empty: nothing fits")
    notes: tuple[str, ...] = Field(default=(), description="what was left out, and why")


def usual_ctx(ctx_train_tokens: int | None) -> int:
    """The context to plan with if none is wanted: 8192, or less if it was trained for less."""
    return max(256, min(USUAL_CTX_TOKENS, ctx_train_tokens or USUAL_CTX_TOKENS))


def fit_of(plan: Plan, *, is_estimate: bool = False) -> ModelFit:
    """What a plan says about a model."""
    devices = [HOST] if plan.host.layers else []
    devices += dict.fromkeys(shard.device for shard in plan.shards)
    found = plan.prediction
    return ModelFit(
        ctx_tokens=plan.ctx_tokens,
        fits=True,
        tokens_per_s=found.decode_tokens_per_s / found.users if found else None,
        is_guess=found is None or found.is_guess,
        devices=tuple(devices),
        kv_type=plan.kv_type,
        is_checked=plan.memory_from == "engine",
        is_estimate=is_estimate,
    )


def no_fit(
    ctx_tokens: int,
    sentence: str,
    code: str,
    shortfall: Mapping[str, Any] | None = None,
    *,
    is_estimate: bool = False,
) -> ModelFit:
    """A model that cannot be run, and why.

    Args:
        ctx_tokens: That were wanted.
        sentence: The whole reason.
        code: Of the error.
        shortfall: A ``NoFit`` as plain JSON, if memory is what is missing.
        is_estimate: It was not planned from its header.
    """
    found = dict(shortfall or {})
    nearest = found.get("nearest") or {}
    return ModelFit(
        ctx_tokens=ctx_tokens,
        fits=False,
        is_estimate=is_estimate,
        missing_bytes=found.get("missing_bytes"),
        smaller_ctx_tokens=nearest.get("ctx_tokens"),
        smaller_kv_type=nearest.get("kv_type", ""),
        error_code=code,
        reason=sentence,
    )


def bits_of(label: str) -> int:
    """Bits per weight that a quantisation's name tells; 0 if it tells none."""
    return RepoModel(stem=label, parts=()).bits


def is_fine(label: str) -> bool:
    """Four bits per weight or more; a name that tells none is given the benefit of the doubt."""
    bits = bits_of(label)
    return bits == 0 or bits >= LEAST_BITS


def recommended(found: Sequence[Suggestion], min_tokens_per_s: float) -> Suggestion | None:
    """The largest that fits and is fast enough; ``None`` if none fits.

    Known speeds come before unknown ones. Where all are too slow, the fastest is best, and those
    of less than four bits count only if nothing finer fits.
    """
    fits = [s for s in found if s.fit.fits]
    fast = [s for s in fits if _is_fast(s, min_tokens_per_s)]
    unknown = [s for s in fits if s.fit.tokens_per_s is None]
    if good := fast or unknown:
        return max(good, key=lambda s: (s.size_bytes, _speed(s), _reversed(s)))
    pool = [s for s in fits if is_fine(s.label)] or fits
    return max(pool, key=lambda s: (_speed(s), s.size_bytes, _reversed(s)), default=None)


def judged(found: Sequence[Suggestion], min_tokens_per_s: float) -> tuple[Suggestion, ...]:
    """The same, each with its reason in words, the recommended one marked."""
    chosen = recommended(found, min_tokens_per_s)
    return tuple(
        one.model_copy(
            update={
                "is_recommended": one is chosen,
                "reason": in_words(one, found, min_tokens_per_s) if one is chosen else said(one),
            }
        )
        for one in found
    )


def said(one: Suggestion) -> str:
    """``Q4_K_M: 4.6 GiB, 8,192 tokens fit, about 12.0 tokens per second over desk and pixel``."""
    fit, about = one.fit, "about " if one.fit.is_estimate else ""
    begin = f"{one.label}: {about}{gib(one.size_bytes)}"
    if not fit.fits:
        if fit.missing_bytes:
            return f"{begin}, would need {gib(fit.missing_bytes)} more{_nearest(fit)}"
        return f"{begin}, cannot be run here: {fit.reason}"
    cache = f" with a {fit.kv_type} cache" if fit.kv_type not in ("", "f16") else ""
    where = f" over {listed(fit.devices)}" if fit.devices else ""
    return f"{begin}, {fit.ctx_tokens:,} tokens fit{cache}, {_paced(fit)}{where}"


def in_words(chosen: Suggestion, found: Sequence[Suggestion], min_tokens_per_s: float) -> str:
    """Why this one, and what speaks against the next larger of its repository."""
    parts = [said(chosen)]
    if not _is_fast(chosen, min_tokens_per_s) and chosen.fit.tokens_per_s is not None:
        parts.append(
            f"that is slower than the {min_tokens_per_s:g} tokens per second that were wanted"
            + _faster(chosen, found)
        )
    if not is_fine(chosen.label):
        parts.append(
            f"it is stored with less than {LEAST_BITS} bits per weight, so answers suffer; a"
            " smaller model may give better ones"
        )
    larger = [s for s in found if s.repo == chosen.repo and s.size_bytes > chosen.size_bytes]
    if larger:
        parts.append(_against(min(larger, key=lambda s: (s.size_bytes, s.reference))))
    if chosen.fit.is_guess and chosen.fit.tokens_per_s is not None:
        parts.append("speeds are guesses until 'supervisor measure' was run")
    return "; ".join(parts)


def nothing_fits(found: Sequence[Suggestion]) -> str:
    """What would have to change for the smallest to fit."""
    if not found:
        return "There is nothing to choose from."
    least = min(found, key=lambda s: s.size_bytes)
    fit = least.fit
    if not fit.missing_bytes:
        return f"Nothing can be run here. The smallest, {said(least)}"
    shorter = (
        f" It would fit with {_settings(fit)}."
        if fit.smaller_ctx_tokens or fit.smaller_kv_type
        else " A shorter context alone does not help."
    )
    return (
        f"Nothing fits with {fit.ctx_tokens:,} tokens of context. The smallest, {least.label} of"
        f" {gib(least.size_bytes)}, would fit with another device that has"
        f" {gib(fit.missing_bytes)} to spare.{shorter}"
    )


def next_command(chosen: Suggestion) -> str:
    """What launches it."""
    return f"supervisor launch {shlex.quote(chosen.reference)} --ctx {chosen.fit.ctx_tokens}"


def best_first(found: Sequence[Suggestion], min_tokens_per_s: float) -> list[Suggestion]:
    """Of several models, what fits and is fast enough first; else in the order given."""

    def worth(one: Suggestion) -> int:
        if not one.fit.fits:
            return 4
        is_slow = not _is_fast(one, min_tokens_per_s)
        return 2 * is_slow + (not is_fine(one.label))

    return sorted(found, key=worth)  # which keeps the order of equals


def _is_fast(one: Suggestion, min_tokens_per_s: float) -> bool:
    return one.fit.tokens_per_s is not None and one.fit.tokens_per_s >= min_tokens_per_s


def _speed(one: Suggestion) -> float:
    return one.fit.tokens_per_s or 0.0


def _reversed(one: Suggestion) -> tuple[int, ...]:
    """So that of equals the first name in the alphabet wins."""
    return tuple(-ord(letter) for letter in one.reference)


def _faster(chosen: Suggestion, found: Sequence[Suggestion]) -> str:
    """The end of a sentence that says that all are too slow."""
    faster = [s for s in found if s.fit.fits and _speed(s) > _speed(chosen)]
    if not faster:
        return ", and nothing else that fits is faster"
    best = max(faster, key=_speed)
    if best.repo == chosen.repo:
        return f"; only what is stored with less than {LEAST_BITS} bits per weight is faster"
    return f"; the fastest, {best.id or best.repo}, would give {_paced(best.fit)}"


def _against(larger: Suggestion) -> str:
    fit = larger.fit
    if fit.fits and fit.tokens_per_s is None:
        return f"the speed of {larger.label} is not known"
    if fit.fits:
        return f"{larger.label} of {gib(larger.size_bytes)} would give {_paced(fit)}"
    if fit.missing_bytes:
        return f"{larger.label} would need {gib(fit.missing_bytes)} more"
    return f"{larger.label} cannot be run here"


def _paced(fit: ModelFit) -> str:
    if fit.tokens_per_s is None:
        return "at a speed that is not known"
    return f"about {rate(fit.tokens_per_s)} tokens per second"


def _nearest(fit: ModelFit) -> str:
    return f", or {_settings(fit)}" if fit.smaller_ctx_tokens or fit.smaller_kv_type else ""


def _settings(fit: ModelFit) -> str:
    words = []
    if fit.smaller_ctx_tokens and fit.smaller_ctx_tokens < fit.ctx_tokens:
        words.append(f"a context of {fit.smaller_ctx_tokens:,} tokens")
    if fit.smaller_kv_type not in ("", "f16"):
        words.append(f"a {fit.smaller_kv_type} cache")
    return " and ".join(words) or "smaller steps while reading prompts"
