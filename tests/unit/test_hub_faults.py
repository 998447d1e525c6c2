"""The hub on bad days: what is forbidden, refused, cut, slow or wrong, from a stand-in for it."""

import logging
from pathlib import Path

import pytest
from hub_stand_in import (
    LARGE_FILE,
    QUICK,
    REPO,
    SMALL,
    files,
    hub_stand_in,
    nobodys_account,
)

from supervisor.adapters.hub import read_remote
from supervisor.adapters.hub_http import Hub, Patience
from supervisor.adapters.models import read_model, read_remote_model
from supervisor.errors import HubUnreachable, ModelForbidden, ModelMissing

__all__ = ["files", "nobodys_account"]

pytestmark = pytest.mark.timeout(90)

MB = 1_000_000
MIB = 1 << 20


# Access


def test_the_token_goes_to_the_hub_and_not_to_its_store(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_stand_in(files, "--token", "hf_secret") as made:
        read_remote(SMALL, tmp_path, made.hub())
    assert {request["authorization"] for request in made.of("hub")} == {"Bearer hf_secret"}
    assert {request["authorization"] for request in made.of("store")} == {""}


@pytest.mark.parametrize("token", ["", "hf_other"])
def test_a_gated_model_is_explained_with_its_link(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with (
        hub_stand_in(files, "--token", "hf_secret") as made,
        pytest.raises(ModelForbidden) as caught,
    ):
        read_remote(SMALL, tmp_path, made.hub())
    message = str(caught.value)
    assert f"may only be read by those who accepted its terms (Access to model {SMALL}" in message
    assert f"accept them at {made.endpoint}/{SMALL}" in message
    assert "hf_" not in message


@pytest.mark.parametrize(
    ("flags", "error", "says"),
    [
        (("--status", "403"), ModelForbidden, "does not let this account read"),
        (
            ("--status", "401", "--header", "X-Error-Message=Invalid credentials in Auth"),
            ModelForbidden,
            "check the token",
        ),
        (("--status", "404"), ModelMissing, "does not exist, or is private"),
        (("--status", "418"), HubUnreachable, "HTTP 418"),
        (("--store-status", "404"), ModelMissing, "does not have Small-Q4_0.gguf any more"),
        (("--store-status", "403"), ModelForbidden, "HTTP 403"),
        (("--sign-in-page",), HubUnreachable, "whether this network wants you to sign in"),
        (("--wrong-size", "7"), HubUnreachable, "bytes in the hub's list, and"),
        (("--wrong-size", "7", "--no-ranges"), HubUnreachable, "bytes in the hub's list, and"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_refusal_is_not_repeated_and_says_why(
    files: Path, tmp_path: Path, flags: tuple[str, ...], error: type[Exception], says: str
) -> None:
    with hub_stand_in(files, *flags) as made, pytest.raises(error) as caught:
        read_remote(SMALL, tmp_path, made.hub())
    assert says in str(caught.value)
    assert len(made.of("store")) <= 1
    assert len(made.of("hub")) <= 2


# Bad days


@pytest.mark.parametrize(
    "flags",
    [
        ("--status", "503"),
        ("--status", "500"),
        ("--store-status", "502"),
        ("--status", "429", "--header", "Retry-After=0"),
        ("--cut-after", "64"),
        ("--short-by", "0", "--cut-after", "1"),
    ],
    ids=" ".join,
)
def test_a_passing_fault_is_outlived(files: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    with hub_stand_in(files, *flags, "--times", "2") as made:
        model = read_remote(SMALL, tmp_path, made.hub())
    assert model.header.name == "Small"


def test_what_a_cut_connection_brought_is_not_fetched_again(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files, "--cut-after", str(MIB), "--times", "2") as made:
        read_remote(REPO, tmp_path, made.hub())
    starts = [int(str(r["range"]).removeprefix("bytes=").split("-")[0]) for r in made.of("store")]
    assert starts == [0, MIB, 2 * MIB, 4 * MIB]
    assert made.stored_bytes == 12 * MIB


@pytest.mark.parametrize(
    ("flags", "says", "requests"),
    [
        (("--status", "503"), "is overloaded or limits us (HTTP 503); 3 tries", 3),
        (("--store-status", "500"), "HTTP 500", 3),
        (("--cut-after", "64"), "cannot be reached", 3),
        (("--short-by", "100"), "try again later", 3),
        (("--status", "429", "--header", "Retry-After=3600"), "asks to wait 3600 s", 1),
        (("--status", "429", "--header", 'RateLimit="api";r=0;t=90'), "asks to wait 90 s", 1),
        (
            ("--status", "503", "--header", "Retry-After=Fri, 31 Dec 2049 23:59:59 GMT"),
            "asks to wait",
            1,
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_lasting_fault_is_given_up_after_some_tries(
    files: Path, tmp_path: Path, flags: tuple[str, ...], says: str, requests: int
) -> None:
    reference = REPO if "--cut-after" in flags else SMALL
    with hub_stand_in(files, *flags) as made, pytest.raises(HubUnreachable) as caught:
        read_remote(reference, tmp_path, made.hub())
    assert says in str(caught.value)
    kind = "store" if "--status" not in flags else "hub"
    assert len(made.of(kind)) == requests


@pytest.mark.parametrize("header", ["Retry-After=1", 'RateLimit="api";r=0;t=1'])
def test_the_pause_that_the_hub_asks_for_is_kept(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, header: str
) -> None:
    caplog.set_level(logging.WARNING, "supervisor.adapters.hub_http")
    with hub_stand_in(files, "--status", "429", "--times", "1", "--header", header) as made:
        read_remote(SMALL, tmp_path, made.hub())
    (record,) = [r for r in caplog.records if r.message == "hub.retry_scheduled"]
    assert vars(record)["delay_s"] >= 1


def test_a_store_without_ranges_is_not_read_to_the_end(files: Path, tmp_path: Path) -> None:
    with hub_stand_in(files, "--no-ranges") as made:
        model = read_remote_model(REPO, tmp_path, made.hub())
    assert model.shape == read_model(str(files / REPO / LARGE_FILE)).shape
    assert [request["range"] for request in made.of("store")] != []
    assert made.stored_bytes < 64 * MB  # what is on its way when we hang up, included


def test_a_store_that_drips_is_given_up(files: Path, tmp_path: Path) -> None:
    slow = Patience(connect_s=2, silence_s=2, range_s=0.5, tries=2, first_pause_s=0.01)
    with hub_stand_in(files, "--drip-s", "0.05") as made, pytest.raises(HubUnreachable) as caught:
        read_remote(REPO, tmp_path, made.hub(slow))
    assert "of 4194304 bytes" in str(caught.value)
    assert "in 0.5 s; try again over a faster connection" in str(caught.value)


def test_a_silent_hub_is_given_up(files: Path, tmp_path: Path) -> None:
    short = Patience(connect_s=1, silence_s=0.3, range_s=1, tries=2, first_pause_s=0.01)
    with hub_stand_in(files, "--silent") as made, pytest.raises(HubUnreachable, match="timed out"):
        read_remote(SMALL, tmp_path, made.hub(short))


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://127.0.0.1:9", "cannot be reached"),
        ("hub.example", "HF_ENDPOINT is 'hub.example', which is no http address"),
        ("http://[", "which is no http address"),
        ("http://hub.example:port", "which is no http address"),
    ],
)
def test_a_hub_that_is_not_there_is_named(tmp_path: Path, endpoint: str, says: str) -> None:
    with pytest.raises(HubUnreachable) as caught:
        read_remote(SMALL, tmp_path, Hub(QUICK, endpoint))
    assert says in str(caught.value)
