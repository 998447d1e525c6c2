"""The key between gateway and llama-server: made once, readable by us, never shown."""

import stat
from pathlib import Path

import pytest

from agents.environment import for_engine
from agents.errors import FolderNotWritable
from supervisor.adapters.llama_server import load_or_make_engine_key
from supervisor.core.masking import Private, mask


def test_a_key_is_made_once_for_our_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "engine.key"
    key = load_or_make_engine_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == key
    assert load_or_make_engine_key(path) == key, "llama-servers that run know it"
    assert load_or_make_engine_key(tmp_path / "other") != key


def test_it_is_one_line_that_llama_server_takes_for_a_key(tmp_path: Path) -> None:
    key = load_or_make_engine_key(tmp_path / "engine.key")
    assert key == key.strip()
    assert not set(key) & set("#, \n")
    assert len(key) > 40
    assert key[-4:] == load_or_make_engine_key(tmp_path / "other")[-4:], "these go into its log"


def test_it_is_hidden_wherever_it_might_show_up(tmp_path: Path) -> None:
    key = load_or_make_engine_key(tmp_path / "engine.key")
    assert mask(f"the key is {key}, and more", Private()) == "the key is ***, and more"


def test_a_file_that_others_could_read_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "engine.key"
    path.write_text("sk-kept\n")
    path.chmod(0o644)
    assert load_or_make_engine_key(path) == "sk-kept"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_file_is_replaced_since_no_key_lets_everybody_in(tmp_path: Path) -> None:
    path = tmp_path / "engine.key"
    path.write_text("\n")
    assert load_or_make_engine_key(path).startswith("sk-")


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    with pytest.raises(FolderNotWritable, match=r"engine\.key"):
        load_or_make_engine_key(tmp_path / "nowhere" / "engine.key")


def test_no_other_key_opens_llama_server() -> None:
    """It would take each of them; the user's may be for something else."""
    inherited = {"LLAMA_API_KEY": "sk-user", "LLAMA_ARG_PORT": "1", "PATH": "/bin"}
    assert for_engine(inherited, {"GGML_NO_BACKTRACE": "1"}) == {
        "PATH": "/bin",
        "GGML_NO_BACKTRACE": "1",
    }
