"""What is kept for a model: values that its launches take unless they say otherwise."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field, ValidationError

from supervisor.core.entities import DeploymentSpec, FrozenModel
from supervisor.errors import BadRequest

NOT_KEPT: Final = frozenset({"model", "name"})
"""They tell one deployment from another."""

MOST_VALUE_CHARS: Final = 80

_INSTEAD: Final = {
    "chat_template": ("chat_template_file",),
    "chat_template_file": ("chat_template",),
    "devices": ("order", "split", "pin_output"),
    "order": ("devices", "split", "pin_output"),
}
"""What a caller's value of each leaves nothing of: they would contradict each other."""

_CALLED: Final = {
    "ctx_tokens": "context",
    "min_ctx_tokens": "smallest context",
    "kv_type": "KV cache",
    "ubatch": "prompt tokens at once",
    "mmproj": "projector",
    "lora": "adapters",
    "ttl_s": "seconds without a request until it is stopped",
    "override_kv": "overridden metadata",
    "engine_options": "further options",
}


class ModelSettings(FrozenModel):
    """The settings of one model."""

    model: str = Field(
        description="its reference, of the hub or of Ollama, or its first file's path"
    )
    values: dict[str, Any] = Field(
        default_factory=dict, description="fields of a deployment's spec, as JSON has them"
    )


def checked(model: str, values: Mapping[str, Any]) -> ModelSettings:
    """Settings whose values a spec can have; those that are null are left out.

    Raises:
        BadRequest: With the field and what is wrong with it.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if refused := sorted(NOT_KEPT.intersection(given)):
        raise BadRequest(f"{refused[0]} belongs to one deployment and is not kept for a model")
    try:
        spec = DeploymentSpec.model_validate({"model": model, **given})
    except ValidationError as exc:
        where, why = _first(exc)
        raise BadRequest(f"{where} cannot be kept for a model: {why}") from None
    kept = spec.model_dump(mode="json", include=set(given), exclude_none=True)
    return ModelSettings(model=model, values={name: kept[name] for name in given})


def merged(spec: DeploymentSpec, settings: ModelSettings) -> DeploymentSpec:
    """A spec with the kept values where the caller gave none; null and empty lists are none.

    Raises:
        BadRequest: What was kept, perhaps by another version, is not possible.
    """
    given = {
        name: value
        for name, value in spec.model_dump(mode="json", exclude_unset=True).items()
        if value is not None and value != []
    }
    unwanted = {each for name in given for each in _INSTEAD.get(name, ())}
    kept = {name: value for name, value in settings.values.items() if name not in unwanted}
    try:
        return DeploymentSpec.model_validate({**kept, **given})
    except ValidationError as exc:
        where, why = _first(exc)
        raise BadRequest(
            f"{where} is kept for {settings.model} and not possible: {why}; forget it with "
            "'supervisor models settings MODEL --unset'"
        ) from None


def remarks(spec: DeploymentSpec, settings: ModelSettings) -> tuple[str, ...]:
    """Which values of a spec are what is kept for its model, in sentences."""
    values = spec.model_dump(mode="json", include=set(settings.values), exclude_none=True)
    return tuple(
        f"{_capital(_CALLED.get(name, name.replace('_', ' ')))} {_shown(value)}: your setting for"
        " this model."
        for name, value in settings.values.items()
        if values.get(name) == value
    )


def _first(exc: ValidationError) -> tuple[str, str]:
    """Where the first mistake is, and what it is."""
    first = exc.errors()[0]
    return ascii(".".join(map(str, first["loc"])))[1:-1][:MOST_VALUE_CHARS], first["msg"]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        pairs = (f"{name} {_shown(each)}" for name, each in value.items() if each is not None)
        text = ", ".join(pairs)
    elif isinstance(value, list):
        text = ", ".join(map(_shown, value))
    else:
        text = str(value)
    text = text if len(text) <= MOST_VALUE_CHARS else f"{text[:MOST_VALUE_CHARS]}…"
    return text or "none"
