"""The catalogue of models that comes with this program."""

from functools import cache
from importlib import resources

from supervisor.core.catalogue import CatalogueModel, parse_catalogue


@cache
def read_catalogue() -> tuple[CatalogueModel, ...]:
    """All its models, the most capable first.

    Raises:
        BadSettings: The file is damaged.
    """
    text = resources.files("supervisor").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return parse_catalogue(text)
