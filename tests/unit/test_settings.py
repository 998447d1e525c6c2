"""Settings: one pure function from a TOML text and an environment, and the example file."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from supervisor.errors import BadSettings
from supervisor.settings import Settings, load

EXAMPLE = Path(__file__).parents[2] / "supervisor.example.toml"
FOLDER = Path("/data")
WITHOUT_DEFAULT = {"data_folder", "engine_folder"}
"""Their examples are not their defaults."""


def loaded(toml_text: str = "", environ: dict[str, str] | None = None) -> Settings:
    return load(toml_text, environ or {}, default_folder=FOLDER)


def test_nothing_given_means_the_defaults() -> None:
    settings = loaded()
    assert settings == Settings(data_folder=FOLDER)
    assert (settings.host, settings.port, settings.join_port) == ("127.0.0.1", 8100, 8101)


def test_the_environment_wins_over_the_file_and_the_file_over_the_default() -> None:
    file = 'port = 8200\nhost = "10.0.0.1"\ndata_folder = "/file"'
    settings = loaded(file, {"SUPERVISOR_PORT": "8300", "PORT": "1", "HOME": "/root"})
    assert (settings.port, settings.host, settings.stall_s) == (8300, "10.0.0.1", 120.0)
    assert settings.data_folder == Path("/file")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("port", "0", 0),
        ("local_agent", "false", False),
        ("stall_s", "0.5", 0.5),
        ("engine_folder", "/opt/x", Path("/opt/x")),
        ("log_level", "debug", "debug"),
        ("model_folders", "/a:/b", (Path("/a"), Path("/b"))),
        ("model_folders", "/a", (Path("/a"),)),
        ("model_folders", ":", ()),
        ("model_folders", "", ()),
        ("host", "a:b", "a:b"),
    ],
)
def test_the_environment_is_read_by_the_type_of_the_key(
    name: str, text: str, expected: object
) -> None:
    assert getattr(loaded(environ={f"SUPERVISOR_{name.upper()}": text}), name) == expected


def test_a_list_in_the_file_is_a_list() -> None:
    assert loaded('model_folders = ["/a", "/b c"]').model_folders == (Path("/a"), Path("/b c"))


@pytest.mark.parametrize("name", ["SUPERVISOR_URL", "SUPERVISOR_KEY", "SUPERVISOR_JOIN_CODE"])
def test_variables_of_the_command_line_are_no_settings(name: str) -> None:
    assert loaded(environ={name: "x"}) == loaded()


@pytest.mark.parametrize(
    ("toml_text", "environ", "says"),
    [
        ("prot = 1", {}, "unknown setting 'prot'; did you mean 'port'?"),
        ("", {"SUPERVISOR_STAL_S": "1"}, "unknown setting 'stal_s'; did you mean 'stall_s'?"),
        ("qqqqq = 1", {}, "unknown setting 'qqqqq'; see supervisor.example.toml"),
        ("[server]\nport = 1", {}, "unknown setting 'server'"),
        ("port = 70000", {}, "setting port = 70000: input should be less than or equal to 65535"),
        ("port = 'x'", {}, "setting port = 'x': input should be a valid integer"),
        ("", {"SUPERVISOR_PORT": ""}, "setting port = ''"),
        ("stall_s = 0", {}, "setting stall_s = 0: input should be greater than 0"),
        ("stall_s = -1.0", {}, "setting stall_s = -1.0"),
        ("stall_s = nan", {}, "setting stall_s = nan"),
        ("retry_limit = -1", {}, "setting retry_limit = -1"),
        ("local_agent = 'maybe'", {}, "setting local_agent = 'maybe'"),
        ("log_format = 'xml'", {}, "setting log_format = 'xml': input should be 'text'"),
        ("port = ", {}, "the settings file is not TOML"),
        ("port = 1\nport = 2", {}, "the settings file is not TOML"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    toml_text: str, environ: dict[str, str], says: str
) -> None:
    with pytest.raises(BadSettings, match=re.escape(says)):
        loaded(toml_text, environ)


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValidationError):
        loaded().port = 1  # type: ignore[misc]


def example_values() -> dict[str, object]:
    """The example file with its keys uncommented."""
    lines = EXAMPLE.read_text().splitlines()
    keys = [line.removeprefix("# ") for line in lines if re.match(r"# [a-z_]+ = ", line)]
    assert all(line.startswith("#") or not line for line in lines), "every line is a comment"
    return tomllib.loads("\n".join(keys))


def test_the_example_documents_every_key_and_no_other() -> None:
    assert list(example_values()) == list(Settings.model_fields)


def test_the_example_shows_the_defaults() -> None:
    for name, value in example_values().items():
        default = Settings.model_fields[name].default
        if name in WITHOUT_DEFAULT:
            assert default in (None, PydanticUndefined)
        else:
            assert (tuple(value) if isinstance(value, list) else value) == default, name


def test_the_example_can_be_used_as_it_is() -> None:
    assert loaded(EXAMPLE.read_text()) == loaded()
    lines = [f"{name} = {value!r}" for name, value in example_values().items()]
    toml_text = "\n".join(lines).replace("True", "true").replace("False", "false")
    assert loaded(toml_text).port == 8100


def test_every_key_is_explained_in_the_lines_above_it() -> None:
    before = ""
    for line in EXAMPLE.read_text().splitlines():
        assert not (re.match(r"# [a-z_]+ = ", line) and not before), line
        before = line
