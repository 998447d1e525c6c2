"""What may be on the shelf, and how it comes to devices."""

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from cluster import Cluster
from release_site import (
    ANDROID,
    OTHER_VARIANT,
    OWN_VARIANT,
    ReleaseSiteStandIn,
    archive_name,
    engine_archive,
    load_command,
    mach_o,
    made_archive,
    made_program,
    tar_of,
)
from shelf_host import (
    BUILD,
    PHONE,
    Host,
    host,
    own_archive,
    ran,
    site,
    told_json,
)

from agents import engine as engines
from agents.contract import DeviceFacts, EngineFacts
from agents.engine_unpack import unpack
from agents.errors import (
    EngineInUse,
    EngineNotFetched,
    EngineUnusable,
    EngineWithoutRpc,
    ProjectError,
)
from agents.join import JoinCode
from supervisor.adapters.engine_packing import files_of
from supervisor.adapters.engine_shelf import EngineShelf
from supervisor.adapters.release_site import ReleaseSite
from supervisor.errors import EngineChangeRunning, ReleaseUnknown
from supervisor.service.engine_installing import BuildView, EngineInstaller

__all__ = ["host", "own_archive", "site"]


# -- the proof -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        (("ggml-rpc-server",), EngineWithoutRpc, "holds no ggml-rpc-server"),
        (("libggml-rpc",), EngineWithoutRpc, "no RPC backend"),
        (("llama-server",), EngineUnusable, "no llama-server"),
        (("libllama.so",), EngineUnusable, "did not prove itself"),
    ],
)
async def test_an_archive_that_lacks_something_is_refused(
    host: Host,
    engine: EngineFacts,
    tmp_path: Path,
    names: tuple[str, ...],
    error: type[ProjectError],
    words: str,
) -> None:
    host.site.add(BUILD, {OWN_VARIANT: engine_archive(engine, BUILD, tmp_path, *names)})
    assert words in await host.refused(error)


@pytest.mark.parametrize(
    ("variant", "programs"),
    [(ANDROID, "ubuntu-arm64"), (ANDROID, "ubuntu-x64"), (OTHER_VARIANT, "ubuntu-x64")],
)
async def test_programs_for_another_machine_are_refused(
    host: Host, variant: str, programs: str
) -> None:
    host.site.add(BUILD, {variant: made_archive(BUILD, variant, programs=programs)})
    said = await host.refused(EngineUnusable, variant)
    assert programs.rsplit("-", maxsplit=1)[-1] in said


PROGRAM = made_program(ANDROID)


@pytest.mark.parametrize(
    "archive",
    [
        tar_of([("../outside", PROGRAM), ("llama-server", PROGRAM)]),
        tar_of([("/tmp/outside-of-the-shelf", PROGRAM), ("llama-server", PROGRAM)]),
        tar_of([("x/../../outside", PROGRAM)]),
        tar_of([("llama-server", PROGRAM)], [("out", "/etc")]),
        tar_of([("llama-server", PROGRAM)], [("out", "../../..")]),
        tar_of([("out/outside", PROGRAM)], [("out", "../..")]),
        b"no archive at all",
        tar_of([("llama-server", os.urandom(9999))])[:-2000],
    ],
    ids=["up", "absolute", "down-up", "link-away", "link-up", "through-link", "text", "cut"],
)
async def test_a_malicious_or_broken_archive_is_refused(host: Host, archive: bytes) -> None:
    host.site.add(BUILD, {ANDROID: archive})
    await host.refused(EngineNotFetched, ANDROID)
    outside = [p for p in host.folder.parent.rglob("*") if "outside" in p.name]
    assert outside == []
    assert not Path("/tmp/outside-of-the-shelf").exists()


async def test_the_libraries_of_cuda_come_with_its_engine(host: Host) -> None:
    variant = "ubuntu-cuda-12.8-s390x"
    host.site.add(BUILD, {variant: made_archive(BUILD, variant)})
    name = f"cudart-{archive_name(BUILD, variant)}"
    host.site.builds[BUILD][name] = tar_of([("cudart/libcudart.so.12", b"library")])
    installed = await host.install(None, variant)
    path = host.shelf.path(installed.fetched[0].archive)
    assert path is not None
    unpack(path, host.folder / "elsewhere", threading.Event())
    assert (host.folder / "elsewhere" / "libcudart.so.12").read_bytes() == b"library"
    assert (host.folder / "elsewhere" / "llama-server").is_file()


# -- programs of this host ---------------------------------------------------------------------


async def test_packed_programs_serve_elsewhere(
    host: Host, engine: EngineFacts, tmp_path: Path
) -> None:
    shelf = host.shelf
    assert shelf.pack(engine) == engine.build
    facts = shelf.own_facts()
    offer = shelf.offer(engine.build, facts)
    path = shelf.path(offer.archive)
    assert path is not None
    assert path.stat().st_size == offer.size_bytes
    content = path.read_bytes()
    elsewhere = tmp_path / "elsewhere"
    unpack(path, elsewhere, threading.Event())
    clean = {n: v for n, v in engines.inherited().items() if n != "LD_LIBRARY_PATH"}
    found = engines.at_folder(elsewhere / "bin", "test")
    assert found is not None
    inspected = await engines.inspect(found, clean)
    assert (inspected.problem, inspected.build) == ("", engine.build)
    assert inspected.rpc_protocol == engine.rpc_protocol
    libraries = subprocess.run(
        ["ldd", found.llama_server], capture_output=True, text=True, env=clean, check=True
    ).stdout
    ours = [line for line in libraries.splitlines() if "libggml" in line or "libllama" in line]
    assert ours
    assert all(str(elsewhere) in line for line in ours)
    with pytest.raises(ReleaseUnknown, match="nothing for pixel"):
        shelf.offer(engine.build, PHONE)
    # The same again, from the same files: not even written.
    before = path.stat().st_mtime_ns
    assert shelf.pack(engine) == engine.build
    assert path.stat().st_mtime_ns == before
    # And packed anew it has the same bytes.
    shelf.remove(engine.build)
    shelf.pack(engine)
    assert path.read_bytes() == content


async def test_a_build_tree_is_made_movable_when_it_is_packed(
    host: Host, engine: EngineFacts, tmp_path: Path
) -> None:
    """cmake writes the tree's own place into its programs, unless it is told otherwise."""
    tree = tmp_path / "tree-with-a-long-name" / "bin"
    tree.mkdir(parents=True)
    for file in files_of(engine).files:
        content = file.path.read_bytes()
        for run_path in file.header.run_paths:
            end = run_path.offset + len(run_path.text)
            place = "/nowhere" + "x" * (len(run_path.text) - 8)
            if len(run_path.text) > 20:
                content = content[: run_path.offset] + place.encode() + content[end:]
        (tree / file.path.name).write_bytes(content)
        (tree / file.path.name).chmod(0o755)
    moved = engines.at_folder(tree, "test")
    assert moved is not None
    assert (await engines.inspect(moved, engines.inherited())).problem  # it cannot run as it is
    shelf = host.shelf
    shelf.pack(EngineFacts(str(tree), "test", moved.llama_server, moved.rpc_server, build="tree"))
    path = shelf.path(shelf.offer("tree", shelf.own_facts()).archive)
    assert path is not None
    unpack(path, tmp_path / "there", threading.Event())
    found = engines.at_folder(tmp_path / "there" / "bin", "test")
    assert found is not None
    assert (await engines.inspect(found, engines.inherited())).problem == ""


async def test_programs_whose_libraries_are_missing_are_not_packed(
    host: Host, engine: EngineFacts, tmp_path: Path
) -> None:
    shutil.copy(engine.llama_server, tmp_path / "llama-server")
    alone = engines.at_folder(tmp_path, "test")
    assert alone is not None
    with pytest.raises(EngineUnusable, match="was not found"):
        host.shelf.pack(EngineFacts(str(tmp_path), "test", alone.llama_server, build="abc"))
    with pytest.raises(EngineUnusable, match="do not tell their build"):
        host.shelf.pack(EngineFacts(str(tmp_path), "test", build="../abc"))


async def test_a_macs_programs_with_places_of_their_own_are_not_packed(
    host: Host, tmp_path: Path
) -> None:
    """They are signed, so nobody can change the places where they look for libraries."""
    library = load_command(0xC, str(tmp_path / "libggml.0.dylib"), 24)
    for name, commands in {
        "llama-server": (library,),
        "ggml-rpc-server": (load_command(0xC, "@rpath/libggml.0.dylib", 24),),
        "libggml.0.dylib": (),
    }.items():
        (tmp_path / name).write_bytes(mach_o(0x0100000C, *commands))
    with pytest.raises(EngineUnusable, match=r"llama-server cannot be packed.*@loader_path"):
        host.shelf.pack(EngineFacts(str(tmp_path), "test", build="abc"))
    movable = load_command(0xC, "@loader_path/libggml.0.dylib", 24)
    with_path = load_command(0x8000001C, "@loader_path", 12)
    rpc = load_command(0xC, "@rpath/libggml.0.dylib", 24)
    (tmp_path / "llama-server").write_bytes(mach_o(0x0100000C, movable))
    (tmp_path / "ggml-rpc-server").write_bytes(mach_o(0x0100000C, rpc, with_path))
    places = [file.place for file in files_of(EngineFacts(str(tmp_path), "test")).files]
    assert sorted(places) == ["bin/ggml-rpc-server", "bin/libggml.0.dylib", "bin/llama-server"]


async def test_a_build_in_use_is_not_removed(host: Host) -> None:
    await host.install(None, ANDROID)
    phone = EngineFacts("/x", "main host", release=BUILD)
    host.devices = [DeviceFacts("id", "pixel", "android", machine="aarch64", engine=phone)]
    view: BuildView = host.installer.builds()[0]
    assert (view.devices, view.on_main_host) == (("pixel",), False)
    with pytest.raises(EngineInUse, match="pixel"):
        host.installer.remove(BUILD)
    host.devices, host.main = [], phone
    with pytest.raises(EngineInUse, match="the main host"):
        host.installer.remove(BUILD)
    host.main = None
    source = ReleaseSite(host.site.url)
    moved = EngineInstaller(source, host.shelf, list, lambda: None, lambda: True)
    with pytest.raises(EngineChangeRunning, match="moved to another build"):
        moved.remove(BUILD)
    assert host.installer.remove(BUILD) == (archive_name(BUILD, ANDROID),)
    assert host.left() == []


# -- from the shelf to a device ----------------------------------------------------------------


async def test_a_running_supervisor_installs_and_serves_to_its_devices_alone(
    cluster: Cluster, site: ReleaseSiteStandIn, engine: EngineFacts
) -> None:
    await cluster.supervisor(engine_site=site.url)
    await cluster.agent("one")
    data = cluster.folder / "supervisor"
    refused = await ran(data, site, "install", "b77777")
    assert refused.returncode == 1
    assert "b77777" in refused.stderr
    installed = await told_json(data, site, "install", "--variant", OWN_VARIANT)
    assert installed["fetched"][0]["build"] == BUILD
    builds = (await cluster.http.get("/api/engine-builds")).json()
    assert builds[0]["build"] == BUILD
    again = await for_people(cluster, "install", "--variant", OWN_VARIANT, "--variant", ANDROID)
    assert f"{OWN_VARIANT} of {BUILD} was here already" in again.stdout
    assert f"{archive_name(BUILD, ANDROID)}: fetched and proven" in again.stdout
    EngineShelf(data, engines.inherited()).pack(engine)
    listed = await for_people(cluster, "list")
    for words in ("Engines", "Builds for devices", BUILD, ANDROID, "main host, one"):
        assert words in listed.stdout, listed.stdout
    bad = await cluster.http.post("/api/engine-builds", json={"build": "../x"})
    assert bad.status_code == 422
    name = archive_name(BUILD, OWN_VARIANT)
    whole = site.builds[BUILD][name]
    join_port = await _join_port(cluster)
    url = f"https://127.0.0.1:{join_port}/engines/{name}"
    device, nobody = _context(cluster, "one"), _context(cluster)
    async with httpx.AsyncClient(verify=device, trust_env=False) as client:
        assert (await client.get(url)).content == whole
        part = await client.get(url, headers={"range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, whole[1000:2000])
        for other in ("llama-b1-bin-ubuntu-x64.tar.gz", f"{name}.json", "..%2Fapi.key"):
            assert (await client.get(url.replace(name, other))).status_code == 404
    async with httpx.AsyncClient(verify=nobody, trust_env=False) as client:
        assert (await client.get(url)).status_code == 403
    found = await cluster.device("one")
    assert found is not None
    await cluster.http.delete(f"/api/devices/{found['id']}")
    async with httpx.AsyncClient(verify=device, trust_env=False) as client:
        assert (await client.get(url)).status_code == 403


async def for_people(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a command shows in a wide terminal."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "supervisor", "engine", *arguments, "--url", cluster.url],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "250"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


async def _join_port(cluster: Cluster) -> int:
    code = JoinCode.parse(await cluster.code())
    return int(code.endpoints[0].rpartition(":")[2])


def _context(cluster: Cluster, agent: str = "") -> ssl.SSLContext:
    """As a device sees the main host: with its certificate, or with none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if agent:
        folder = cluster.folder / agent
        certificate = next(folder.rglob("agent.crt"))
        context.load_cert_chain(certificate, next(folder.rglob("agent.key")))
    return context
