"""Names of releases and archives, and which of them suit which device."""

import platform
from pathlib import Path
from typing import Any

import pytest
from release_site import load_command, mach_o, made_program

from agents.contract import DeviceFacts, EngineFacts
from supervisor.core import engine_builds
from supervisor.core.engine_builds import (
    StoredArchive,
    checked_build,
    machine_word,
    named,
    needed,
    newest_first,
    offered,
    read_release,
    read_variant,
    suits,
)
from supervisor.core.program_files import read_program
from supervisor.errors import ReleaseSiteUnreachable, ReleaseUnknown

SITE = "https://releases"
NAMES = (
    "llama-b10516-bin-android-arm64.tar.gz",
    "llama-b10516-bin-macos-arm64.tar.gz",
    "llama-b10516-bin-macos-x64.tar.gz",
    "llama-b10516-bin-ubuntu-arm64.tar.gz",
    "llama-b10516-bin-ubuntu-cuda-13.3-x64.tar.gz",
    "llama-b10516-bin-ubuntu-cuda-12.8-x64.tar.gz",
    "llama-b10516-bin-ubuntu-openvino-2026.2.1-x64.tar.gz",
    "llama-b10516-bin-ubuntu-rocm-7.14-x64.tar.gz",
    "llama-b10516-bin-ubuntu-s390x.tar.gz",
    "llama-b10516-bin-ubuntu-sycl-fp16-x64.tar.gz",
    "llama-b10516-bin-ubuntu-vulkan-arm64.tar.gz",
    "llama-b10516-bin-ubuntu-vulkan-x64.tar.gz",
    "llama-b10516-bin-ubuntu-x64.tar.gz",
)
NO_ENGINES = (
    "cudart-llama-bin-win-cuda-12.4-x64.zip",
    "llama-b10516-bin-win-cpu-x64.zip",
    "llama-b10516-bin-310p-openEuler-x86.tar.gz",
    "llama-b10516-ui.tar.gz",
    "llama-b10516-xcframework.zip",
    "llama-b10515-bin-ubuntu-x64.tar.gz",
    "../llama-b10516-bin-ubuntu-x64.tar.gz",
    "SHA256SUMS",
)


def asset(called: str, **more: Any) -> dict[str, Any]:
    url = f"{SITE}/{called}"
    return {"name": called, "size": 7, "browser_download_url": url, "digest": None} | more


def release(*names: str) -> engine_builds.Release:
    return read_release({"tag_name": "b10516", "assets": [asset(name) for name in names]}, SITE)


def device(platform: str, machine: str, *accelerators: str) -> DeviceFacts:
    return DeviceFacts("id", "pixel", platform, machine=machine, accelerators=list(accelerators))


def test_every_engine_of_a_release_is_found_and_nothing_else() -> None:
    found = release(*NO_ENGINES, *NAMES)
    assert [a.name for a in found.assets] == list(NAMES)
    assert found.runtimes == ()


def test_older_releases_named_their_archives_otherwise() -> None:
    names = ("llama-b6801-bin-ubuntu-x64.zip", "llama-b6801-ubuntu-cuda-12-x64.zip")
    body = {"tag_name": "b6801", "assets": [asset(name) for name in names]}
    found = read_release(body, SITE)
    assert [a.variant.name for a in found.assets] == ["ubuntu-x64", "ubuntu-cuda-12-x64"]


def test_the_libraries_of_cuda_are_told_from_its_engine() -> None:
    variant = "ubuntu-cuda-12.8-x64"
    names = (f"cudart-llama-b10516-bin-{variant}.tar.gz", f"llama-b10516-bin-{variant}.tar.gz")
    found = release(*names)
    assert [a.name for a in found.runtimes] == [names[0]]
    assert [a.name for a in found.assets] == [names[1]]
    assert found.runtimes[0].variant == found.assets[0].variant


def test_a_digest_is_only_taken_as_sha256() -> None:
    wanted = "AB" * 32
    for digest, sha256 in {
        f"sha256:{wanted}": wanted.lower(),
        f"sha256:{wanted[:-1]}": "",
        f"sha512:{wanted}": "",
        wanted: "",
        None: "",
        7: "",
    }.items():
        body = {"tag_name": "b10516", "assets": [asset(NAMES[0], digest=digest)]}
        assert read_release(body, SITE).assets[0].sha256 == sha256


@pytest.mark.parametrize(
    "broken",
    [
        {"size": 0},
        {"size": "7"},
        {"size": None},
        {"browser_download_url": None},
        {"browser_download_url": "file:///etc/passwd"},
        {"state": "starter"},
        {"name": 3},
    ],
)
def test_a_file_that_cannot_be_fetched_is_left_out(broken: dict[str, Any]) -> None:
    body = {"tag_name": "b10516", "assets": [asset(NAMES[0], **broken), "text", None]}
    assert read_release(body, SITE).assets == ()


@pytest.mark.parametrize(
    "body", [None, [], "x", {}, {"tag_name": "v1", "assets": []}, {"tag_name": "b1"}]
)
def test_what_is_no_release_is_said_to_come_from_elsewhere(body: Any) -> None:
    with pytest.raises(ReleaseSiteUnreachable, match="engine_site"):
        read_release(body, SITE)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (device("android", "aarch64"), ["android-arm64"]),
        (device("macos", "arm64", "metal"), ["macos-arm64"]),
        (device("macos", "x86_64"), ["macos-x64"]),
        (device("linux", "x86_64"), ["ubuntu-x64"]),
        (device("linux", "aarch64", "vulkan"), ["ubuntu-vulkan-arm64", "ubuntu-arm64"]),
        (
            device("linux", "AMD64", "vulkan", "cuda"),
            ["ubuntu-cuda-12.8-x64", "ubuntu-cuda-13.3-x64", "ubuntu-vulkan-x64", "ubuntu-x64"],
        ),
        (device("linux", "riscv64"), []),
        (device("android", "armv7l"), []),
        (device("windows", "AMD64"), []),
    ],
)
def test_the_best_variant_is_first_and_the_plain_one_last(
    facts: DeviceFacts, expected: list[str]
) -> None:
    variants = [asset.variant for asset in release(*NAMES).assets]
    assert [variant.name for variant in suits(reversed(variants), facts)] == expected


def test_nothing_for_a_platform_is_a_sentence_that_says_what_there_is() -> None:
    with pytest.raises(ReleaseUnknown) as caught:
        needed(release(*NAMES), device("android", "armv7l"))
    for word in ("b10516", "pixel (android, armv7l)", "android-arm64", "GGML_RPC"):
        assert word in str(caught.value)
    with pytest.raises(ReleaseUnknown, match=r"no archive 'ubuntu-arm'; it has .*ubuntu-arm64"):
        named(release(*NAMES), "ubuntu-arm")


@pytest.mark.parametrize(
    ("given", "build"), [("b10516", "b10516"), ("10516", "b10516"), (" B9 ", "b9")]
)
def test_a_release_may_be_named_by_its_number(given: str, build: str) -> None:
    assert checked_build(given) == build


@pytest.mark.parametrize("given", ["", "latest", "b", "b-1", "../b1", "b1/x", "b" * 99, "0c1e570"])
def test_what_is_no_name_of_a_release_is_refused(given: str) -> None:
    with pytest.raises(ReleaseUnknown, match="called like b10516"):
        checked_build(given)


def test_builds_are_ordered_by_number_and_others_by_date() -> None:
    dates = {"0c1e570": "2026-01-01", "fffffff": "2026-02-01"}
    builds = ("b9999", "0c1e570", "b10516", "fffffff", "b9999")
    assert newest_first(builds, dates) == ("b10516", "b9999", "fffffff", "0c1e570")


def test_unknown_words_are_no_variant() -> None:
    for name in ("ui", "win-cpu-x64", "ubuntu-x86", "ubuntu", "ubuntu/x64", ""):
        assert read_variant(name) is None, name
    found = read_variant("android-arm64-snapdragon")
    assert found is not None
    assert (found.platform, found.machine, found.backend) == ("android", "arm64", "snapdragon")
    assert suits([found], device("android", "aarch64", "snapdragon")) == []


def stored(build: str, variant: str, kind: str = "release", **more: Any) -> StoredArchive:
    facts = {"platform": "linux", "machine": "x64"} | more
    return StoredArchive(build, variant, f"{build}-{variant}", "", 1, kind, "2026", **facts)


def test_the_shelf_offers_what_suits_best() -> None:
    shelf = [stored("b2", "ubuntu-x64"), stored("b2", "ubuntu-vulkan-x64"), stored("b1", "x")]
    facts = device("linux", "x86_64", "vulkan")
    assert offered("b2", shelf, facts).variant == "ubuntu-vulkan-x64"
    assert offered("b2", shelf, device("linux", "x86_64")).variant == "ubuntu-x64"
    assert offered("b2", shelf, facts).offer.archive == "b2-ubuntu-vulkan-x64"


def test_packed_programs_are_offered_to_the_same_platform_and_machine_alone() -> None:
    shelf = [stored("0c1e570", "packed-linux-x64", "packed", machine="x86_64")]
    assert offered("0c1e570", shelf, device("linux", "amd64")).kind == "packed"
    for facts in (device("linux", "aarch64"), device("android", "x86_64")):
        with pytest.raises(ReleaseUnknown, match="packed-linux-x64, so there is nothing for pixel"):
            offered("0c1e570", shelf, facts)


def test_a_build_that_the_shelf_lacks_is_said_with_the_command_that_fetches_it() -> None:
    shelf = [stored("b2", "ubuntu-x64")]
    with pytest.raises(ReleaseUnknown, match=r"only as ubuntu-x64.*engine install b2'"):
        offered("b2", shelf, device("macos", "arm64"))
    with pytest.raises(ReleaseUnknown, match=r"was not installed.*engine install b3'"):
        offered("b3", shelf, device("linux", "x86_64"))


# -- headers of programs -----------------------------------------------------------------------


def test_machine_and_loader_of_a_program_are_read() -> None:
    for variant, machine, loader in (
        ("android-arm64", "arm64", "/system/bin/linker64"),
        ("ubuntu-x64", "x64", "/lib64/ld-linux.so.2"),
        ("ubuntu-s390x", "s390x", "/lib64/ld-linux.so.2"),
    ):
        header = read_program(made_program(variant))
        assert header is not None
        assert (header.format, header.machines) == ("elf", (machine,))
        assert header.interpreter == loader


def test_the_libraries_of_the_real_engine_are_read(engine: EngineFacts) -> None:
    header = read_program(Path(engine.rpc_server).read_bytes())
    assert header is not None
    assert header.machines == (machine_word(platform.machine()),)
    assert any(name.startswith("libggml") for name in header.needed)
    assert any("$ORIGIN" in run_path.text for run_path in header.run_paths)


def test_the_libraries_of_a_macs_program_are_read() -> None:
    library = load_command(0xC, "@rpath/libggml.dylib", 24)
    run_path = load_command(0x8000001C, "@loader_path", 12)
    arm64 = mach_o(0x0100000C, library, run_path)
    header = read_program(arm64)
    assert header is not None
    assert (header.format, header.machines) == ("macho", ("arm64",))
    assert header.needed == ("@rpath/libggml.dylib",)
    assert [found.text for found in header.run_paths] == ["@loader_path"]
    both = bytes.fromhex("cafebabe 00000002")
    for offset in (4096, 8192):
        both += b"".join(number.to_bytes(4, "big") for number in (0, 0, offset, 4096, 12))
    both = both.ljust(4096, b"\0") + arm64.ljust(4096, b"\0") + mach_o(0x01000007)
    for_both = read_program(both)
    assert for_both is not None
    assert for_both.machines == ("arm64", "x64")


def test_what_is_no_program_is_none(engine: EngineFacts) -> None:
    whole = Path(engine.rpc_server).read_bytes()
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF", whole[:100], b"\xcf\xfa\xed\xfe" + bytes(9)):
        assert read_program(content) is None
    assert read_program(bytes.fromhex("cafebabe 00000041") + bytes(64)) is None  # a Java class
