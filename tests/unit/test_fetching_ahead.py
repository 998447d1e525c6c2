"""One file over several connections."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from hub_stand_in import QUICK, hub_stand_in, nobodys_account
from test_pulling import BIG, BIG_BYTES, fetched, incomplete, repositories, served

from supervisor.adapters.hub import resolve
from supervisor.fetching import ahead, blob
from supervisor.fetching.line import Line

__all__ = ["nobodys_account", "repositories"]

pytestmark = pytest.mark.timeout(90)


@pytest.mark.parametrize(
    "flags", [(), ("--cut-after", "2000", "--times", "40"), ("--no-ranges",)], ids=" ".join
)
def test_several_connections_bring_a_large_file_in_order(
    flags: tuple[str, ...], repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (repositories / BIG / "Big-Q4_K_M.gguf").read_bytes()
    monkeypatch.setattr(ahead, "LEAST_BYTES", 1000)
    with hub_stand_in(repositories, *flags) as made:
        parts = resolve(BIG, made.hub())
        places = blob.Places.of(tmp_path, BIG, parts[0].etag)
        places.blob.parent.mkdir(parents=True)
        places.incomplete.write_bytes(whole[: BIG_BYTES // 2])
        assert fetched(made, tmp_path, parts).read_bytes() == whole
    asked = {str(request["range"]) for request in made.of("store")}
    begun, window_bytes = BIG_BYTES // 2, BIG_BYTES // 500
    for at in (begun, begun + window_bytes):
        assert f"bytes={at}-{at + window_bytes - 1}" in asked
    most = BIG_BYTES * 2 if "--no-ranges" in flags else BIG_BYTES * 0.55
    assert served(made) <= most


def test_of_several_connections_less_than_a_hundredth_is_lost(
    repositories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (repositories / BIG / "Big-Q4_K_M.gguf").read_bytes()
    monkeypatch.setattr(ahead, "LEAST_BYTES", 1000)
    stop = Event()
    with hub_stand_in(repositories) as made:
        parts = resolve(BIG, made.hub())
        line = Line(QUICK, made.endpoint)
        file = blob.Fetching(line, parts[0], tmp_path, stop, connections=4)

        def note() -> None:
            while file.standing.there_bytes < BIG_BYTES // 3 and not stop.wait(0.001):
                pass
            stop.set()

        with ThreadPoolExecutor() as pool:
            pool.submit(note)
            with pytest.raises(blob.Stopped):
                try:
                    file.run()
                finally:
                    stop.set()
        kept = blob.there_bytes(parts[0], tmp_path)
        assert whole.startswith(incomplete(tmp_path)[0].read_bytes())
    assert kept >= BIG_BYTES // 3 - BIG_BYTES // 100
    assert kept < BIG_BYTES
