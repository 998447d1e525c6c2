"""Builds of llama.cpp: how releases and their archives are named, and which suit which device.

Source:
    Names as the releases b6801, b9744, b10375 and b11026 list them. Archives held their programs
    in ``build/bin`` of a zip at first, and hold them in ``llama-bNNNN`` of a tar now.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from agents.contract import DeviceFacts, EngineOffer
from supervisor.errors import ReleaseSiteUnreachable, ReleaseUnknown

RELEASES_PAGE: Final = "https://github.com/ggml-org/llama.cpp/releases"

_RELEASE: Final = re.compile(r"b(\d{1,9})")
_BUILD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._]{0,63}")
_VARIANT: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ARCHIVE: Final = re.compile(
    r"(?P<runtime>cudart-)?llama-(?P<build>b\d{1,9})-(?:bin-)?(?P<variant>[a-z0-9][a-z0-9._-]*?)"
    r"\.(?:tar\.gz|tgz|zip)"
)
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")

_SYSTEMS: Final = {"android": "android", "macos": "macos", "ubuntu": "linux", "linux": "linux"}
"""First word of a variant, and the platform that its programs run on."""
_MACHINES: Final = {
    "x64": ("x86_64", "amd64", "x64"),
    "arm64": ("aarch64", "arm64"),
    "s390x": ("s390x",),
}
"""Word of a variant, and how platforms call that machine."""
_BACKENDS: Final = ("cuda", "rocm", "sycl", "vulkan", "")
"""Best first. Programs without a word for one use the CPU, and Metal on Macs that have it."""

_NUMBERS: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Variant:
    """One archive of a release, as its name says: ``ubuntu-cuda-12.8-x64``."""

    name: str
    platform: str
    machine: str
    backend: str = ""


@dataclass(frozen=True, slots=True)
class Asset:
    """An archive that a release offers. ``sha256`` is empty where the site tells none."""

    name: str
    build: str
    variant: Variant
    size_bytes: int
    url: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """A build that the release site has, and the engines among its files."""

    build: str
    assets: tuple[Asset, ...] = ()
    runtimes: tuple[Asset, ...] = ()
    """What variants of the same name need besides: the libraries of CUDA."""


@dataclass(frozen=True, slots=True)
class StoredArchive:
    """An archive on the shelf."""

    build: str
    variant: str
    archive: str
    sha256: str
    size_bytes: int
    kind: str
    """``release``, or ``packed`` from programs of the main host."""
    date: str
    """When it came here, ISO 8601."""
    platform: str
    machine: str
    commit: str = ""
    """As its llama-server says; empty if it does not run on the main host."""
    is_verified: bool = True
    """Whether the release site told a digest to compare with."""
    fingerprint: str = ""
    """Of the files that were packed."""
    folder: str = ""
    """Where they are."""

    @property
    def offer(self) -> EngineOffer:
        return EngineOffer(self.build, self.archive, self.sha256, self.size_bytes, self.variant)


def build_number(build: str) -> int | None:
    """``10516`` of ``b10516``; None for a build that is no release."""
    match = _RELEASE.fullmatch(build)
    return int(match[1]) if match else None


def checked_build(build: str) -> str:
    """The name of a release as operators may give it: ``b10516`` or ``10516``.

    Raises:
        ReleaseUnknown: No release can have that name.
    """
    name = f"b{build}" if build.isascii() and build.isdecimal() else build.strip().lower()
    if build_number(name) is None:
        raise ReleaseUnknown(
            f"{build[:60]!r} is no name of a llama.cpp release; they are called like b10516, see"
            f" {RELEASES_PAGE}, or leave the name out for the newest"
        )
    return name


def is_build(build: str) -> bool:
    """Whether a name may stand in names of files."""
    return _BUILD.fullmatch(build) is not None


def newest_first(builds: Iterable[str], dates: Mapping[str, str]) -> tuple[str, ...]:
    """Releases by their number, then other builds by the date when they came."""
    return tuple(
        sorted(
            set(builds),
            key=lambda build: (build_number(build) or -1, dates.get(build, ""), build),
            reverse=True,
        )
    )


def read_variant(name: str) -> Variant | None:
    """None for what is none, or for a platform or machine that we do not know."""
    words = name.split("-")
    platform = _SYSTEMS.get(words[0])
    machine = next((word for word in words[1:] if word in _MACHINES), None)
    if platform is None or machine is None or _VARIANT.fullmatch(name) is None:
        return None
    others = [word for word in words[1:] if word != machine]
    return Variant(name, platform, machine, others[0] if others else "")


def machine_word(machine: str) -> str:
    """``x64`` of ``x86_64``; what no release is made for stays as it is."""
    known = (word for word, names in _MACHINES.items() if machine.lower() in names)
    return next(known, machine)


def suits(variants: Iterable[Variant], facts: DeviceFacts) -> list[Variant]:
    """Those that a device can use, the best first, the one for the plain CPU last.

    Of several versions of a backend the lowest is first: it runs with older drivers.
    """
    usable = ("", *facts.accelerators)
    fitting = [
        variant
        for variant in variants
        if variant.platform == facts.platform
        and facts.machine.lower() in _MACHINES[variant.machine]
        and variant.backend in usable
        and variant.backend in _BACKENDS
    ]
    return sorted(fitting, key=lambda v: (_BACKENDS.index(v.backend), _version(v.name), v.name))


def _version(name: str) -> list[int]:
    return [int(number) for number in _NUMBERS.findall(name)]


def read_release(body: Any, site: str) -> Release:
    """What the release site answered; files that are no engines are left out.

    Raises:
        ReleaseSiteUnreachable: This is no answer of a release site.
    """
    tag = body.get("tag_name") if isinstance(body, Mapping) else None
    files = body.get("assets") if isinstance(body, Mapping) else None
    if not isinstance(tag, str) or build_number(tag) is None or not isinstance(files, list):
        raise ReleaseSiteUnreachable(
            f"{site} answers, but not as a site of llama.cpp releases does; check the setting"
            " engine_site, and whether this network wants you to sign in first"
        )
    engines: dict[str, Asset] = {}
    runtimes: dict[str, Asset] = {}
    for file in files:
        match = _ARCHIVE.fullmatch(_text(file, "name"))
        asset = _asset(file, match) if match and match["build"] == tag else None
        if match and asset is not None:
            (runtimes if match["runtime"] else engines).setdefault(asset.variant.name, asset)
    return Release(tag, tuple(engines.values()), tuple(runtimes.values()))


def _asset(file: Mapping[str, Any], match: re.Match[str]) -> Asset | None:
    variant, size, url = read_variant(match["variant"]), file.get("size"), file.get(_URL)
    is_there = file.get("state", "uploaded") == "uploaded"
    if variant is None or not is_there or not isinstance(size, int) or size <= 0:
        return None
    if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https"):
        return None
    digest = _DIGEST.fullmatch(_text(file, "digest"))
    sha256 = digest[1].lower() if digest else ""
    return Asset(match[0], match["build"], variant, size, url, sha256)


_URL: Final = "browser_download_url"


def _text(file: Any, name: str) -> str:
    value = file.get(name) if isinstance(file, Mapping) else None
    return value if isinstance(value, str) else ""


def named(release: Release, variant: str) -> Asset:
    """The archive of a variant that somebody asked for by name.

    Raises:
        ReleaseUnknown: There is none of that name.
    """
    for asset in release.assets:
        if asset.variant.name == variant:
            return asset
    raise ReleaseUnknown(
        f"release {release.build} has no archive {variant[:60]!r}; it has {_listed(release)}"
    )


def needed(release: Release, facts: DeviceFacts) -> Asset:
    """The archive that suits a device best.

    Raises:
        ReleaseUnknown: There is none for its platform; says what there is, and what to do.
    """
    found = suits((asset.variant for asset in release.assets), facts)
    if found:
        return named(release, found[0].name)
    raise ReleaseUnknown(
        f"release {release.build} has nothing for {whom(facts)}; it has {_listed(release)}; build"
        " llama.cpp on that device with -DGGML_RPC=ON, or take another release"
    )


def _listed(release: Release) -> str:
    names = sorted(asset.variant.name for asset in release.assets)
    return ", ".join(names) or "no archives that we know"


def whom(facts: DeviceFacts) -> str:
    """``pixel (android, aarch64)``."""
    return f"{facts.name or 'this host'} ({facts.platform}, {facts.machine or 'unknown machine'})"


def offered(build: str, stored: Sequence[StoredArchive], facts: DeviceFacts) -> StoredArchive:
    """The archive on the shelf that suits a device best.

    Args:
        build: Name of a release, or the commit of programs that were packed.
        stored: All of the shelf.
        facts: Of the device.

    Raises:
        ReleaseUnknown: There is none for its platform; its sentence says what to do.
    """
    of_build = [archive for archive in stored if archive.build == build]
    for archive in of_build:
        is_same = machine_word(archive.machine) == machine_word(facts.machine)
        if archive.kind == "packed" and archive.platform == facts.platform and is_same:
            return archive
    variants = {archive.variant: read_variant(archive.variant) for archive in of_build}
    found = suits((variant for variant in variants.values() if variant is not None), facts)
    if found:
        return next(archive for archive in of_build if archive.variant == found[0].name)
    raise ReleaseUnknown(_why_not(build, of_build, facts))


def _why_not(build: str, of_build: Sequence[StoredArchive], facts: DeviceFacts) -> str:
    has = ", ".join(sorted(archive.variant for archive in of_build))
    if build_number(build) is not None:
        state = f"is here only as {has}" if has else "was not installed"
        return (
            f"build {build} {state}, which is nothing for {whom(facts)}; 'supervisor engine install"
            f" {build}' fetches what the cluster's devices need"
        )
    state = f"is here only as {has}" if has else "is not on the shelf"
    return (
        f"build {build[:60]} {state}, so there is nothing for {whom(facts)}; 'supervisor engine"
        " install' fetches a release that has all platforms, and 'supervisor engine use' moves the"
        " cluster to it"
    )
