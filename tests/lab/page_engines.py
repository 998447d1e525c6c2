"""Engines on the shelf of the invented home, one that comes, and a change from one to another."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

from agents.contract import EngineFacts
from lab.page_care import ARCHIVE_BYTES, NEWER, RELEASE, VARIANTS
from lab.page_records import stamp
from supervisor.core.engine_builds import StoredArchive
from supervisor.core.engine_change import ChangePhase, DeviceChange, EngineChange
from supervisor.service.engine_installing import BuildView, InstalledBuild, InstallProgress

Json = dict[str, Any]

SIZES: Final = {
    "android-arm64": ARCHIVE_BYTES,
    "macos-arm64": 61_341_696,
    "ubuntu-vulkan-x64": 118_489_088,
    "ubuntu-x64": 84_410_368,
}
PACKED_BYTES: Final = 47_185_920
RATE: Final = 11_300_000
STEPS: Final = 5


def archive(build: str, variant: str, size_bytes: int, kind: str, day: str) -> StoredArchive:
    return StoredArchive(
        build=build,
        variant=variant,
        archive=f"llama-{build}-bin-{variant}.tar.gz",
        sha256=sha256(f"{build} {variant}".encode()).hexdigest(),
        size_bytes=size_bytes,
        kind=kind,
        date=f"{day}T08:12:00+00:00",
        platform=next((name for name, own in VARIANTS.items() if own == variant), "linux"),
        machine="arm64" if variant.endswith("arm64") else "x86_64",
    )


def release(build: str, commit: str, day: str) -> BuildView:
    """A release with everything that the home needs, in use nowhere."""
    archives = [archive(build, name, size, "release", day) for name, size in SIZES.items()]
    return BuildView(build=build, commit=commit, is_release=True, runs_here=True,
                     on_main_host=False, devices=(), archives=tuple(archives))  # fmt: skip


def shelf(engine: EngineFacts, devices: Sequence[Json]) -> list[BuildView]:
    """What is kept: two releases if the home runs one, and its own programs."""
    users = sorted(
        each["name"] for each in devices if each["facts"] and _runs(each["facts"]["engine"], engine)
    )
    packed = archive(engine.build, "linux-x86_64", PACKED_BYTES, "packed", "2026-03-02")
    own = BuildView(build=engine.build, is_release=False, runs_here=True, on_main_host=True,
                    devices=tuple(users), archives=(packed,))  # fmt: skip
    if not engine.release:
        return [own]
    used = release(RELEASE, engine.build, "2026-03-29")
    return [
        release(NEWER, "5d2e8f1", "2026-05-03"),
        used.model_copy(update={"on_main_host": True, "devices": tuple(users)}),
    ]


def _runs(other: Json | None, engine: EngineFacts) -> bool:
    return other is not None and other["build"] == engine.build


def installing() -> Iterator[InstallProgress]:
    """All of a release, one archive after the other."""
    for name, size in SIZES.items():
        file = f"llama-{NEWER}-bin-{name}.tar.gz"
        for step in range(STEPS + 1):
            done = size * step // STEPS
            yield InstallProgress(
                step="fetching", build=NEWER, archive=file, done_bytes=done, total_bytes=size,
                bytes_per_s=RATE, eta_s=(size - done) / RATE,
            )  # fmt: skip
        yield InstallProgress(step="proving", build=NEWER, archive=file)


def installed() -> InstalledBuild:
    archives = release(NEWER, "", "2026-05-04").archives
    note = f"{NEWER} has nothing for kitchen-phone, which is android on armv7l"
    return InstalledBuild(build=NEWER, fetched=archives[:2], present=("ubuntu-x64",), notes=(note,))


def changing(now: datetime, before: str, names: Sequence[str], running: Sequence[str],
             build: str = NEWER, *, fails: bool = False) -> Iterator[EngineChange]:  # fmt: skip
    """Every phase of a change; one that fails goes back."""
    change = EngineChange(
        build_before=before, build=build, started_at=stamp(now), devices=_at(names, "waiting"),
        deployments=dict.fromkeys(running, "ready"),
    )  # fmt: skip
    yield change
    part = int(ARCHIVE_BYTES * 0.62)
    fetching = {"done_bytes": part, "total_bytes": ARCHIVE_BYTES}
    states = ("ready", "proving", "fetching", "waiting")
    mixed = tuple(
        DeviceChange(device=name, state=state, **(fetching if state == "fetching" else {}))
        for index, name in enumerate(names)
        for state in [states[index % len(states)]]
    )
    yield change.model_copy(update={"devices": mixed})
    change = change.model_copy(update={"devices": _at(names, "ready")})
    stopped = dict.fromkeys(running, "stopped")
    yield change.model_copy(update={"phase": ChangePhase.STOPPING})
    change = change.model_copy(update={"phase": ChangePhase.SWITCHING, "deployments": stopped})
    yield change
    change = change.model_copy(update={"devices": _at(names, "changed")})
    starting = dict.fromkeys(running, "starting")
    change = change.model_copy(update={"phase": ChangePhase.LAUNCHING, "deployments": starting})
    yield change
    ready = dict.fromkeys(running, "ready")
    over: Json = {"ended_at": stamp(now), "deployments": ready}
    if fails:
        reason = (
            f"llama.cpp {build} was given up and {before} is used again: deployment qwen-14b does "
            "not run with it: llama-server ended with status 1"
        )
        change = change.model_copy(update={"phase": ChangePhase.GOING_BACK, "reason": reason})
        yield change
        over |= {"phase": ChangePhase.FAILED, "error_code": "engine_change_failed"}
        over |= {"devices": _at(names, "changed")}
    else:
        over |= {"phase": ChangePhase.DONE}
    yield change.model_copy(update=over)


def _at(names: Sequence[str], state: str) -> tuple[DeviceChange, ...]:
    return tuple(DeviceChange(device=name, state=state) for name in names)
