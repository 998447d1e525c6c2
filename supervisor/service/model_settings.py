"""Keeps settings of models, and finds those of the model that somebody launches."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from supervisor.core.entities import DeploymentSpec
from supervisor.core.model_reference import parse_reference
from supervisor.core.model_settings import ModelSettings, checked, merged, remarks
from supervisor.errors import ModelMissing
from supervisor.ports import StorePort
from supervisor.service.model_options import launch_options
from supervisor.service.tools import Tools

_SHOWN_CHARS: Final = 200


class ModelSettingsBook:
    """Settings by model, under its reference if it has one, else under its real path.

    So they stay when a newer version of the file is fetched, and what was kept for a reference
    counts for the file that was fetched of it.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._store: StorePort = tools.store

    def all(self) -> list[ModelSettings]:
        """Of all models, by their keys. Blocks, as all of this does.

        Raises:
            StoreUnusable
        """
        return self._store.model_settings()

    def get(self, model: str) -> ModelSettings:
        """Of a model by any of its names; without values if nothing is kept for it."""
        kept = self.all()
        if not kept:
            return ModelSettings(model=key_of(model))
        keys = self._keys(model)
        return next(iter(_among(kept, keys)), ModelSettings(model=keys[0]))

    def put(self, model: str, values: Mapping[str, Any]) -> ModelSettings:
        """Keep values for a model in place of those before, whatever name they were kept under.

        Raises:
            ModelMissing: It is no file here and no reference.
            BadRequest, EngineOptionRefused, OptionFileUnusable: A value is not possible.
        """
        keys = self._keys(model)
        before = _among(self.all(), keys)
        settings = checked(keys[0], values)
        if settings.values:
            if not (before or any(_is_file(key) for key in keys) or parse_reference(keys[0])):
                raise ModelMissing(
                    f"{model[:_SHOWN_CHARS]} is neither a model on the main host nor a reference "
                    "such as OWNER/REPO:QUANT; give the path of its first .gguf file"
                )
            launch_options(merged(DeploymentSpec(model=keys[0]), settings), "", self._tools)
            self._store.save_model_settings(settings)
        self._forget(each for each in before if not settings.values or each.model != keys[0])
        return settings

    def forget(self, model: str) -> None:
        """Keep nothing for a model any more."""
        self._forget(_among(self.all(), self._keys(model)))

    def _forget(self, kept: Iterable[ModelSettings]) -> None:
        for settings in kept:
            self._store.delete_model_settings(settings.model)

    def merged(self, spec: DeploymentSpec) -> DeploymentSpec:
        """A spec with what is kept for its model, where the caller said nothing."""
        settings = self.get(spec.model)
        return merged(spec, settings) if settings.values else spec

    def remarks(self, spec: DeploymentSpec) -> tuple[str, ...]:
        """Which values of a spec are kept ones, in sentences."""
        return remarks(spec, self.get(spec.model))

    def _keys(self, model: str) -> tuple[str, ...]:
        """What its settings may be kept under, the best first."""
        key, names_of = key_of(model), self._tools.names_of
        path, *references = (names_of(model) or names_of(key) if names_of else ()) or (key,)
        return tuple(dict.fromkeys((*references, key_of(path), key)))


def _among(kept: Iterable[ModelSettings], keys: Sequence[str]) -> list[ModelSettings]:
    """Those that are kept under one of the keys, in their order."""
    by_key = {_folded(settings.model): settings for settings in kept}
    return [by_key[key] for key in dict.fromkeys(map(_folded, keys)) if key in by_key]


def _folded(key: str) -> str:
    """References are the same in capitals or not; paths need not be."""
    return key if Path(key).is_absolute() else key.casefold()


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # such as a name that is too long
        return False


def key_of(model: str) -> str:
    """What a model is called here: its file's real path, or its reference as it is written."""
    try:
        path = Path(model).expanduser()
        return str(path.resolve()) if path.exists() else model.strip()
    except (RuntimeError, OSError, ValueError):  # such as "~nobody/model.gguf"
        return model.strip()
