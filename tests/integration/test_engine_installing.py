"""Builds of llama.cpp, from a stand-in of the release site to the shelf."""

import asyncio
import shutil
import signal
from pathlib import Path

import httpx
import pytest
from cluster import eventually
from release_site import (
    ANDROID,
    OWN_VARIANT,
    PIECE_BYTES,
    ReleaseSiteStandIn,
    archive_name,
)
from shelf_host import (
    BUILD,
    PHONE,
    QUICK,
    Host,
    command,
    environment,
    host,
    own_archive,
    ran,
    site,
    told_json,
)

from agents.contract import DeviceFacts, EngineFacts
from agents.errors import (
    DiskFull,
    EngineDigestWrong,
)
from supervisor.adapters import release_site as site_adapter
from supervisor.adapters.engine_shelf import EngineShelf
from supervisor.adapters.release_site import Patience, ReleaseSite
from supervisor.errors import BadSettings, ReleaseSiteUnreachable, ReleaseUnknown

__all__ = ["host", "own_archive", "site"]


# -- from the release site to the shelf --------------------------------------------------------


async def test_the_newest_build_is_installed_listed_and_removed_by_commands(
    tmp_path: Path, site: ReleaseSiteStandIn, engine: EngineFacts
) -> None:
    installed = await told_json(tmp_path, site, "install", "--variant", OWN_VARIANT)
    assert installed["build"] == BUILD
    assert [stored["variant"] for stored in installed["fetched"]] == [OWN_VARIANT]
    assert installed["fetched"][0]["commit"] == engine.build
    assert installed["fetched"][0]["is_verified"] is True
    again = await told_json(tmp_path, site, "install", BUILD, "--variant", ANDROID)
    assert [stored["archive"] for stored in again["fetched"]] == [archive_name(BUILD, ANDROID)]
    listed = await told_json(tmp_path, site, "list")
    view = listed["builds"][0]
    assert (view["build"], view["runs_here"], view["is_release"]) == (BUILD, True, True)
    assert sorted(s["variant"] for s in view["archives"]) == sorted([OWN_VARIANT, ANDROID])
    unpacked = next(p for p in listed["programs"] if p["release"] == BUILD)
    assert unpacked["has_rpc"] is True
    assert unpacked["variant"] == OWN_VARIANT
    assert Path(unpacked["folder"]).is_relative_to(tmp_path / "engines" / f"{BUILD}-{OWN_VARIANT}")
    assert all(not asked.authorization for asked in site.requests)
    # These programs are the first that a supervisor of this folder would take.
    refused = await ran(tmp_path, site, "remove", BUILD)
    assert refused.returncode == 1
    assert "the main host" in refused.stderr
    shutil.rmtree(tmp_path / "engines")
    removed = await told_json(tmp_path, site, "remove", "10516")
    assert len(removed["archives"]) == 2
    assert list((tmp_path / "engine-archives").iterdir()) == []
    unknown = await ran(tmp_path, site, "remove", BUILD)
    assert unknown.returncode == 1
    assert "not on the shelf" in unknown.stderr


async def test_what_devices_and_main_host_need_is_fetched_once(host: Host) -> None:
    host.devices = [PHONE, PHONE, DeviceFacts("id", "old", "linux", machine="mips")]
    installed = await host.install()
    assert [stored.variant for stored in installed.fetched] == [OWN_VARIANT, ANDROID]
    assert len(installed.notes) == 1
    assert "nothing for old (linux, mips)" in installed.notes[0]
    assert host.shelf.offer(BUILD, PHONE).archive == archive_name(BUILD, ANDROID)
    folder = host.shelf.folder(BUILD)
    assert folder is not None
    assert (folder / "llama-server").is_file()
    sent = host.site.stored_bytes
    again = await host.install()
    assert again.fetched == ()
    assert set(again.present) == {OWN_VARIANT, ANDROID}
    assert host.site.stored_bytes == sent
    steps = [progress.step for progress in host.told]
    assert steps.count("proving") == 2
    assert host.told[0].total_bytes > 0


async def test_a_cut_download_goes_on_where_it_ended(host: Host, own_archive: bytes) -> None:
    host.site.faults.cut_after, host.site.faults.cuts = len(own_archive) // 3, 2
    await host.install()
    twice = host.site.stored_bytes - len(own_archive)
    assert twice <= len(own_archive) // 100 + PIECE_BYTES
    assert len(host.site.ranges) == 3
    assert host.site.ranges[0] == ""


async def test_a_download_goes_on_for_as_long_as_bytes_come(host: Host, own_archive: bytes) -> None:
    host.site.faults.cut_after = len(own_archive) // 12  # far more cuts than tries
    await host.install()
    assert len(host.site.ranges) >= 12


async def test_a_server_that_falls_silent_is_asked_for_the_rest(
    host: Host, own_archive: bytes
) -> None:
    faults = host.site.faults
    faults.cut_after, faults.cuts, faults.silent = 100_000, 1, True
    impatient = Patience(silence_s=1, first_pause_s=0.01)
    source = ReleaseSite(host.site.url, patience=impatient)
    asset = (await source.release(None)).assets[0]
    host.shelf.begin()
    fetched = await source.fetch(asset, host.shelf.incoming, lambda *_: None)
    assert fetched.path.read_bytes() == own_archive
    assert host.site.ranges == ["", "bytes=100000-"]


async def test_a_server_without_ranges_sends_all_again(host: Host, own_archive: bytes) -> None:
    host.site.faults.has_ranges = False
    host.site.faults.cut_after, host.site.faults.cuts = len(own_archive) // 3, 1
    await host.install()
    assert host.site.stored_bytes >= len(own_archive) + len(own_archive) // 3
    assert host.site.ranges[1] != ""


async def fetch_while_it_changes(host: Host) -> bytes:
    """The first answer is of another file, and is cut."""
    faults, folder = host.site.faults, host.shelf.incoming
    faults.wrong_byte, faults.cut_after, faults.cuts = True, 100_000, 1
    source = ReleaseSite(host.site.url, patience=QUICK)
    asset = (await source.release(None)).assets[0]
    folder.mkdir(parents=True)

    def mended(done_bytes: int, _: int) -> None:
        faults.wrong_byte = faults.wrong_byte and done_bytes == 0

    return (await source.fetch(asset, folder, mended)).path.read_bytes()


async def test_a_file_that_changed_on_the_way_is_not_joined_to_the_new_one(
    host: Host, own_archive: bytes
) -> None:
    assert await fetch_while_it_changes(host) == own_archive
    assert host.site.ranges == ["", "bytes=100000-"]
    assert host.site.stored_bytes == 100_000 + len(own_archive)


async def test_without_a_name_for_the_content_its_digest_tells_that_it_changed(host: Host) -> None:
    host.site.faults.has_etag = False
    with pytest.raises(EngineDigestWrong):
        await fetch_while_it_changes(host)
    assert host.left() == []


async def test_a_killed_installation_resumes(
    tmp_path: Path, site: ReleaseSiteStandIn, own_archive: bytes
) -> None:
    site.faults.pause_s = 0.01
    child = await asyncio.create_subprocess_exec(
        *command(tmp_path, site, "install"),
        env=environment(site),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    part = tmp_path / "engine-archives" / f"{archive_name(BUILD, OWN_VARIANT)}.part"

    async def has_some() -> bool:
        return part.exists() and part.stat().st_size > len(own_archive) // 4

    try:
        await eventually(has_some, within_s=60, what="a quarter of the archive is there")
    finally:
        child.send_signal(signal.SIGKILL)
        await child.wait()
    kept = part.stat().st_size
    assert 0 < kept < len(own_archive)
    assert EngineShelf(tmp_path, {}).builds() == ()
    site.faults.pause_s = 0
    site.requests.clear()
    await told_json(tmp_path, site, "install")
    assert site.ranges == [f"bytes={kept}-"]
    assert site.stored_bytes == len(own_archive) - kept
    assert not part.exists()


async def test_a_cancelled_installation_keeps_what_came(host: Host) -> None:
    host.site.faults.pause_s = 0.02
    task = asyncio.create_task(host.install())

    async def has_begun() -> bool:
        return any(0 < told.done_bytes < told.total_bytes for told in host.told)

    await eventually(has_begun, within_s=30, what="bytes come")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert host.shelf.builds() == ()
    assert any(name.endswith(".part") for name in host.left())
    with pytest.raises(ReleaseUnknown):
        host.installer.remove("*")
    host.site.faults.pause_s = 0
    await host.install()
    assert host.site.ranges[-1].startswith("bytes=")


async def test_a_wrong_digest_is_refused_and_nothing_is_left(host: Host) -> None:
    host.site.faults.wrong_byte = True
    said = await host.refused(EngineDigestWrong)
    assert archive_name(BUILD, OWN_VARIANT) in said


async def test_a_release_without_digests_is_taken_and_said(host: Host) -> None:
    host.site.faults.has_digests = False
    installed = await host.install(None, ANDROID)
    assert installed.fetched[0].is_verified is False
    assert installed.fetched[0].sha256 in installed.notes[0]


# -- what the release site says ----------------------------------------------------------------


async def test_a_build_that_does_not_exist_is_said(host: Host) -> None:
    with pytest.raises(ReleaseUnknown, match="b77777"):
        await host.install("b77777")
    with pytest.raises(ReleaseUnknown, match="no archive 'ubuntu-none'"):
        await host.install(None, "ubuntu-none")


async def test_a_limit_is_said_with_when_to_come_again(host: Host) -> None:
    host.site.faults.status, host.site.faults.headers = 403, {"retry-after": "600"}
    with pytest.raises(ReleaseSiteUnreachable, match=r"HTTP 403.*in 600 s.*GITHUB_TOKEN"):
        await host.install()
    assert len(host.site.requests) == 1
    host.site.faults.headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "99999999999"}
    with pytest.raises(ReleaseSiteUnreachable, match="limits how often"):
        await host.install()


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_site_is_asked_again(host: Host, status: int) -> None:
    host.site.faults.status, host.site.faults.refusals = status, 1
    installed = await host.install(None, ANDROID)
    assert installed.build == BUILD


async def test_an_archive_that_is_not_there_yet_is_said(host: Host) -> None:
    host.site.faults.store_status = 404
    with pytest.raises(ReleaseUnknown, match="in the making"):
        await host.install()


async def test_a_site_that_is_none_or_not_there_is_said(tmp_path: Path) -> None:
    nobody = ReleaseSite("http://127.0.0.1:9", patience=QUICK)
    with pytest.raises(ReleaseSiteUnreachable, match="engine_site"):
        await nobody.release(None)
    for address in ("http://example.org/x", "ftp://127.0.0.1", "file:///etc", "", "https://"):
        with pytest.raises(BadSettings, match="https"):
            ReleaseSite(address)


async def test_redirects_lead_to_no_plain_http_elsewhere(host: Host) -> None:
    host.site.store = "http://192.0.2.1:9"
    with pytest.raises(BadSettings, match=r"192\.0\.2\.1"):
        await host.install()


async def test_the_token_is_for_one_host_alone(host: Host) -> None:
    source = ReleaseSite(host.site.url, "ghp_secret", QUICK)
    assert "ghp_secret" not in repr(source)
    await source.release(None)
    assert [asked.authorization for asked in host.site.requests] == [""]
    async with source._client() as client:
        (before,) = client.event_hooks["request"]
        for url, expected in {
            "https://api.github.com/repos": "Bearer ghp_secret",
            "https://github.com/repos": None,
            "https://api.github.com.example.org/repos": None,
        }.items():
            request = httpx.Request("GET", url, headers={"authorization": "of a redirect"})
            await before(request)
            assert request.headers.get("authorization") == expected


async def test_room_on_the_disk_is_looked_at_first(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_adapter, "SPARE_BYTES", 1 << 62)
    with pytest.raises(DiskFull, match="head-room"):
        await host.install()
    assert host.site.stored_bytes == 0
