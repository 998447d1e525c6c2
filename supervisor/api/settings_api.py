"""REST API of the settings in force: what each is, where it came from, and what it means."""

from typing import Any

from fastapi import APIRouter
from pydantic import Field

from supervisor.core.entities import FrozenModel
from supervisor.settings import Settings, Source


class SettingView(FrozenModel):
    """One setting. Values are as JSON has them; a secret is shown as asterisks."""

    name: str
    value: Any
    default: Any
    source: Source
    description: str


class SettingsView(FrozenModel):
    """All settings, in the order of ``supervisor.example.toml``."""

    path: str = Field(description="of the settings file, which need not exist")
    settings: list[SettingView]


def settings_view(settings: Settings) -> SettingsView:
    """The settings in force, as the page shows them."""
    fields = type(settings).model_fields
    values = settings.model_dump(mode="json")
    # As the values are: folders as texts, secrets masked.
    defaults = type(settings).model_construct(**{name: settings.default(name) for name in fields})
    shown = defaults.model_dump(mode="json", warnings=False)
    return SettingsView(
        path=str(settings.path or ""),
        settings=[
            SettingView(
                name=name,
                value=values[name],
                default=shown[name],
                source=settings.source(name),
                description=field.description or "",
            )
            for name, field in fields.items()
        ],
    )


def create_settings_router(settings: Settings) -> APIRouter:
    """``GET /api/settings``; nothing is changed here: a supervisor reads them when it starts."""
    router = APIRouter(prefix="/api/settings")
    view = settings_view(settings)

    @router.get("")
    async def shown() -> SettingsView:
        return view

    return router
