"""A data folder whose shelf is filled from the stand-in of the release site."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from release_site import (
    ANDROID,
    OTHER_VARIANT,
    OWN_VARIANT,
    ReleaseSiteStandIn,
    engine_archive,
    made_archive,
    release_site,
)

from agents import engine as engines
from agents.contract import DeviceFacts, EngineFacts
from agents.errors import (
    ProjectError,
)
from supervisor.adapters.engine_shelf import EngineShelf
from supervisor.adapters.release_site import Patience, ReleaseSite
from supervisor.service.engine_installing import (
    EngineInstaller,
    InstalledBuild,
    InstallProgress,
)

BUILD = "b10516"
QUICK = Patience(connect_s=5, silence_s=5, tries=3, questions=2, first_pause_s=0.01)
PHONE = DeviceFacts("id", "pixel", "android", machine="aarch64")


@pytest.fixture(scope="module")
def own_archive(engine: EngineFacts, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return engine_archive(engine, BUILD, tmp_path_factory.mktemp("archive"))


@pytest.fixture
def site(own_archive: bytes) -> Iterator[ReleaseSiteStandIn]:
    with release_site() as standing_in:
        variants = {name: made_archive(BUILD, name) for name in (ANDROID, OTHER_VARIANT)}
        standing_in.add(BUILD, {OWN_VARIANT: own_archive, **variants})
        yield standing_in


@dataclass
class Host:
    """A data folder, and what fills its shelf."""

    folder: Path
    site: ReleaseSiteStandIn
    devices: list[DeviceFacts] = field(default_factory=list)
    main: EngineFacts | None = None
    told: list[InstallProgress] = field(default_factory=list)

    @property
    def shelf(self) -> EngineShelf:
        return EngineShelf(self.folder, engines.inherited())

    @property
    def installer(self) -> EngineInstaller:
        source = ReleaseSite(self.site.url, patience=QUICK)
        return EngineInstaller(source, self.shelf, lambda: self.devices, lambda: self.main)

    async def install(self, build: str | None = None, *variants: str) -> InstalledBuild:
        return await self.installer.install(build, variants, self.told.append)

    async def refused(self, kind: type[ProjectError], *variants: str) -> str:
        """Why an installation is refused; nothing of it may be left."""
        with pytest.raises(kind) as caught:
            await self.install(None, *variants)
        assert self.shelf.builds() == ()
        assert self.left() == []
        return str(caught.value)

    def left(self) -> list[str]:
        folders = (self.folder / "engine-archives", self.folder / "engines")
        return [str(p.relative_to(self.folder)) for f in folders for p in f.rglob("*")]


@pytest.fixture
def host(tmp_path: Path, site: ReleaseSiteStandIn) -> Host:
    return Host(tmp_path / "data", site)


def command(folder: Path, site: ReleaseSiteStandIn, *arguments: str) -> list[str]:
    program = [sys.executable, "-m", "supervisor", "engine", *arguments]
    return [*program, "--data", str(folder), "--json"]


def environment(site: ReleaseSiteStandIn) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if n != "SUPERVISOR_URL"}
    return {**kept, "SUPERVISOR_ENGINE_SITE": site.url, "GITHUB_TOKEN": "ghp_secret"}


async def ran(
    folder: Path, site: ReleaseSiteStandIn, *arguments: str
) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        command(folder, site, *arguments),
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(site),
        check=False,
    )


async def told_json(folder: Path, site: ReleaseSiteStandIn, *arguments: str) -> Any:
    done = await ran(folder, site, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
