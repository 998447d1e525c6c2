"""Runs ``fakes/hub_server.py`` and reads what it was asked; repositories for it to serve."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants
from made_gguf import INT32, LLAMA, STRING, array, gguf, pair, text, u16

from supervisor.adapters.hub_http import Hub, Patience
from supervisor.adapters.sparse_model import sparse_model

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "planning"))

from header import tokenizer
from shapes import SHAPES, header

PROGRAM = Path(__file__).parent / "fakes" / "hub_server.py"
STARTS_WITHIN_S = 20
ENDS_WITHIN_S = 10
REPO = "owner/Big-70B-GGUF"
LARGE_FILE = "Big-70B-Q4_K_M.gguf"
SMALL = "owner/Small-GGUF"
SPLIT = "owner/Split-GGUF"
QUICK = Patience(connect_s=2, silence_s=2, range_s=20, tries=3, first_pause_s=0.01)


@dataclass
class HubStandIn:
    """A running stand-in for the hub; ``requests`` grows while it is asked."""

    endpoint: str
    requests: list[dict[str, object]] = field(default_factory=list)

    def hub(self, patience: Patience = QUICK) -> Hub:
        return Hub(patience, self.endpoint)

    def of(self, server: str) -> list[dict[str, object]]:
        return [request for request in self.requests if request["server"] == server]

    @property
    def stored_bytes(self) -> int:
        """What the store sent, of all files."""
        return sum(int(str(request["sent"])) for request in self.of("store"))


@contextlib.contextmanager
def hub_stand_in(folder: Path, *flags: str) -> Iterator[HubStandIn]:
    """Serve ``folder/OWNER/REPO`` until the block ends; then ``requests`` is complete."""
    argv = [sys.executable, str(PROGRAM), str(folder), *flags]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        too_late = threading.Timer(STARTS_WITHIN_S, child.kill)
        too_late.start()
        address = child.stdout.readline().strip()
        too_late.cancel()
        assert address.startswith("http://"), "the stand-in did not start"
        made = HubStandIn(address)
        reader = threading.Thread(target=_read, args=(child.stdout, made), daemon=True)
        reader.start()
        try:
            yield made
        finally:
            child.stdin.close()
            try:
                child.wait(ENDS_WITHIN_S)
            finally:
                child.kill()
                reader.join(ENDS_WITHIN_S)


def _read(lines: Iterator[str], made: HubStandIn) -> None:
    for line in lines:
        with contextlib.suppress(ValueError):  # a line that the end cut
            made.requests.append(json.loads(line))


@contextlib.contextmanager
def no_account(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """No token, proxy or connection of whoever runs the tests; ``folder`` has no token either."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    close_session()
    try:
        yield
    finally:
        close_session()


def write_repositories(folder: Path) -> None:
    """A model of 40 GB with a real vocabulary, small ones, a split one, and none."""
    for repo in (REPO, SMALL, SPLIT, "owner/Empty"):
        (folder / repo).mkdir(parents=True)
    dense = next(shape for shape in SHAPES if "70B" in shape.name)
    large = sparse_model([header(dense, tokenizer(128_256))], folder / REPO)
    large.rename(folder / REPO / LARGE_FILE)
    (folder / REPO / "README.md").write_text("a model")
    (folder / REPO / "mmproj-Big-70B-f16.gguf").write_bytes(b"GGUF, but no model")
    for quant in ("Q2_K", "Q4_0", "Q8_0"):
        (folder / SMALL / f"Small-{quant}.gguf").write_bytes(small())
    for number in (1, 2, 3):
        (folder / SPLIT / part_name(number)).write_bytes(split_part(number))
    (folder / "owner/Empty" / "README.md").write_text("nothing here")


def small(data_bytes: int = 66) -> bytes:
    return gguf([*LLAMA, pair("general.name", STRING, text("Small"))], data_bytes=data_bytes)


def part_name(number: int) -> str:
    return f"Split-Q4_K_M-0000{number}-of-00003.gguf"


def split_part(number: int) -> bytes:
    """Made so that the first part alone has a vocabulary, of five megabytes."""
    words = array("tokenizer.ggml.tokens", STRING, 500_000, text("xx") * 500_000)
    pairs = [
        u16("split.no", number - 1),
        u16("split.count", 3),
        pair("split.tensors.count", INT32, (6).to_bytes(4, "little")),
    ]
    first = [*LLAMA, words] if number == 1 else []
    tensors = [(f"{name}{number}", (8,), 0, at) for name, at in (("a", 0), ("b", 32))]
    return gguf([*first, *pairs], tensors, data_bytes=64)


@pytest.fixture(autouse=True)
def nobodys_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """For every test of a module that imports it."""
    with no_account(monkeypatch, tmp_path):
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all repositories."""
    folder = tmp_path_factory.mktemp("hub")
    write_repositories(folder)
    return folder
