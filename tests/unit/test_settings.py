"""Settings: one pure function from a TOML text and an environment, and the example file."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_core import PydanticUndefined

from supervisor.api.settings_api import SettingView, settings_view
from supervisor.cli.options import load_settings
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


# -- what is told of them --------------------------------------------------------------------------


def shown(settings: Settings) -> dict[str, SettingView]:
    return {setting.name: setting for setting in settings_view(settings).settings}


def test_every_setting_is_described() -> None:
    for name, setting in shown(loaded()).items():
        assert setting.description, name
        assert setting.description[-1] != "."
        assert setting.source == "default"


def test_every_setting_is_shown_with_its_default_in_the_order_of_the_example() -> None:
    found = shown(loaded())
    assert list(found) == list(example_values())
    assert all(setting.value == setting.default for setting in found.values())
    assert (found["port"].value, found["data_folder"].default) == (8100, "/data")
    assert (found["engine_folder"].value, found["cors_origins"].value) == (None, [])


def test_where_a_value_came_from_is_told(tmp_path: Path) -> None:
    path = tmp_path / "supervisor.toml"
    settings = load(
        'port = 8200\nhost = "10.0.0.1"\nstall_s = 120.0',
        {"SUPERVISOR_PORT": "8300", "SUPERVISOR_JOIN_PORT": "1", "SUPERVISOR_LOG_LEVEL": "debug"},
        default_folder=FOLDER,
        path=path,
        options=("join_port",),
    )
    found = shown(settings)
    told = {n: (s.value, s.default, s.source) for n, s in found.items() if s.source != "default"}
    assert told == {
        "host": ("10.0.0.1", "127.0.0.1", "file"),
        "port": (8300, 8100, "environment"),
        "join_port": (1, 8101, "option"),
        "log_level": ("debug", "info", "environment"),
        "stall_s": (120.0, 120.0, "file"),
    }
    assert settings_view(settings).path == str(path)


def test_where_a_value_came_from_makes_no_difference() -> None:
    assert loaded("port = 8100") == loaded(environ={"SUPERVISOR_PORT": "8100"}) == loaded()
    assert loaded("port = 8101") != loaded()


def test_options_of_a_command_are_told_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPERVISOR_PORT", "8300")
    monkeypatch.setenv("SUPERVISOR_JOIN_PORT", "8301")
    (tmp_path / "supervisor.toml").write_text("drain_s = 1.0")
    found = shown(load_settings(None, tmp_path, join_port=0, host=None, local_agent=False))
    told = {n: (s.value, s.source) for n, s in found.items() if s.source != "default"}
    assert told == {
        "data_folder": (str(tmp_path), "option"),
        "port": (8300, "environment"),
        "join_port": (0, "option"),
        "local_agent": (False, "option"),
        "drain_s": (1.0, "file"),
    }
    assert found["data_folder"].default != str(tmp_path)
    assert settings_view(load_settings(None, tmp_path)).path == str(tmp_path / "supervisor.toml")


def test_a_secret_would_be_masked() -> None:
    class WithSecret(Settings):
        hub_token: SecretStr = Field(SecretStr("hf_default"), description="a secret")

    settings = WithSecret(data_folder=FOLDER, hub_token=SecretStr("hf_mine"))
    assert "hf_" not in settings_view(settings).model_dump_json()
    assert shown(settings)["hub_token"].value == "**********"
