"""Commands about llama.cpp: the programs of this host, and the builds on the main host's shelf.

They go through the supervisor that runs; without one they work on its data folder.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from agents import datafolder
from agents import engine as engines
from agents.contract import EngineFacts
from supervisor.cli import engine_use, output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Config, Data, Key, Url, load_settings
from supervisor.core.units import gib
from supervisor.errors import SupervisorRunning
from supervisor.settings import Settings

if TYPE_CHECKING:
    from supervisor.service.engine_installing import EngineInstaller

engine_app = typer.Typer(
    no_args_is_help=True, help="The llama.cpp programs of this host, and builds for all devices."
)

engine_app.command("use")(engine_use.use)

Show = Callable[[dict[str, Any]], None]

_ALONE = (
    "no supervisor runs here, so only what this host needs was looked at; --variant names what"
    " other devices need"
)


class Builds(Protocol):
    """The shelf, wherever it is."""

    def all(self) -> list[dict[str, Any]]: ...

    def install(self, build: str | None, variants: list[str], show: Show) -> dict[str, Any]: ...

    def remove(self, build: str) -> list[str]: ...


@engine_app.command("list")
def list_engines(
    folder: Annotated[Path | None, typer.Option("--engine", help="look here only")] = None,
    url: Url = None,
    key: Key = None,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show the llama.cpp programs of this host, and the builds for devices."""
    found = asyncio.run(_inspected(folder, load_settings(config, data).data_folder / "engines"))
    if not as_json:
        _print_programs(found)  # also when no supervisor answers
    builds = _builds(url, key, data, config).all()
    if as_json:
        output.print_json({"programs": [asdict(each) for each in found], "builds": builds})
    elif builds:
        output.console.print()
        _print_builds(builds)


@engine_app.command()
def install(
    build: Annotated[
        str | None, typer.Argument(help="such as b10516; left out: the newest release")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="such as ubuntu-vulkan-x64; left out: what the devices need"),
    ] = None,
    url: Url = None,
    key: Key = None,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a build of llama.cpp for all devices, and prove it. Interrupted, it resumes."""
    builds = _builds(url, key, data, config)
    with _new_progress() as progress:
        progress.disable = as_json
        result = builds.install(build, variant or [], _Bars(progress).show)
    if as_json:
        output.print_json(result)
        return
    for stored in result["fetched"]:
        digest = "" if stored["is_verified"] else f", SHA-256 {stored['sha256']}"
        size = gib(stored["size_bytes"])
        output.console.print(f"{escape(stored['archive'])}: fetched and proven ({size}{digest})")
    for name in result["present"]:
        output.console.print(f"{escape(name)} of {escape(result['build'])} was here already")
    for note in result["notes"]:
        output.errors.print(f"[yellow]note:[/] {escape(note)}")


@engine_app.command()
def remove(
    build: Annotated[str, typer.Argument(help="such as b10516")],
    url: Url = None,
    key: Key = None,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove a build that nobody runs from the main host."""
    gone = _builds(url, key, data, config).remove(build)
    if as_json:
        output.print_json({"archives": gone})
        return
    for archive in gone:
        output.console.print(f"{escape(archive)}: removed")


# -- where the shelf is ----------------------------------------------------------------------


def _builds(url: str | None, key: str | None, data: Path | None, config: Path | None) -> Builds:
    """Of the supervisor that was named or runs with this data folder, or of the folder itself."""
    if url or os.environ.get("SUPERVISOR_URL"):
        return _Remote(Client(url, key))
    chosen = load_settings(config, data)
    folder = chosen.data_folder
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        run = json.loads((folder / "run.json").read_text())
        if run["host"] == gethostname() and _is_alive(int(run["pid"])):
            own_key = key or (folder / "api.key").read_text().strip()
            return _Remote(Client(str(run["url"]), own_key))
    return _Local(chosen)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@dataclass(frozen=True, slots=True)
class _Remote:
    """Of a supervisor that runs."""

    client: Client

    def all(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get("/api/engine-builds")
        return found

    def install(self, build: str | None, variants: list[str], show: Show) -> dict[str, Any]:
        installed: dict[str, Any] = self.client.worked(
            "POST",
            "/api/engine-builds",
            show,
            ended="the supervisor ended while it installed; start it and install again: what was"
            " fetched is kept",
            body={"build": build, "variants": variants},
        )
        return installed

    def remove(self, build: str) -> list[str]:
        gone: dict[str, list[str]] = self.client.delete(f"/api/engine-builds/{quote(build)}")
        return gone["archives"]


@dataclass(frozen=True, slots=True)
class _Local:
    """Of a data folder that no supervisor uses now."""

    settings: Settings

    def all(self) -> list[dict[str, Any]]:
        return [view.model_dump(mode="json") for view in self._installer().builds()]

    def install(self, build: str | None, variants: list[str], show: Show) -> dict[str, Any]:
        async def work() -> dict[str, Any]:
            async with self._held():
                result = await self._installer().install(
                    build, variants, lambda progress: show(progress.model_dump(mode="json"))
                )
            return result.model_dump(mode="json")

        result = asyncio.run(work())
        return result if variants else {**result, "notes": [*result["notes"], _ALONE]}

    def remove(self, build: str) -> list[str]:
        async def work() -> list[str]:
            async with self._held():
                return list(self._installer().remove(build))

        return asyncio.run(work())

    def _held(self) -> contextlib.AbstractAsyncContextManager[None]:
        folder = self.settings.data_folder
        taken = SupervisorRunning(f"another program changes {folder}; try again when it has ended")
        return datafolder.held(folder, "supervisor.lock", taken=taken)

    def _installer(self) -> "EngineInstaller":
        from supervisor.adapters.engine_shelf import EngineShelf
        from supervisor.adapters.release_site import TOKEN_VARIABLE, ReleaseSite
        from supervisor.service.engine_installing import EngineInstaller

        inherited, folder = engines.inherited(), self.settings.data_folder
        found = engines.discover(
            inherited, explicit=self.settings.engine_folder, own_engines=folder / "engines"
        )
        return EngineInstaller(
            ReleaseSite(self.settings.engine_site, inherited.get(TOKEN_VARIABLE, "")),
            EngineShelf(folder, inherited),
            list,
            lambda: next(iter(found), None),
        )


# -- what is shown ---------------------------------------------------------------------------


async def _inspected(folder: Path | None, own: Path) -> list[EngineFacts]:
    inherited = engines.inherited()
    found = engines.discover(inherited, explicit=folder, own_engines=own)
    return [await engines.inspect(each, inherited) for each in found]


def _print_programs(found: list[EngineFacts]) -> None:
    made = output.table("Engines", "folder", "found by", "version", "build", "RPC", "problem")
    for engine in found:
        rpc = engine.rpc_protocol if engine.has_rpc else "no"
        release = f" ({engine.release})" if engine.release else ""
        made.add_row(
            escape(engine.folder),
            engine.source,
            engine.version,
            f"{engine.build}{escape(release)}",
            rpc,
            escape(engine.problem),
        )
    output.console.print(made)
    if not found:
        output.console.print(
            "none found; 'supervisor engine install' fetches llama.cpp, or set LLAMA_CPP_BIN"
        )


def _print_builds(builds: list[dict[str, Any]]) -> None:
    made = output.table("Builds for devices", "build", "commit", "for", "size", "run by")
    for view in builds:
        users = [*(["main host"] if view["on_main_host"] else []), *view["devices"]]
        made.add_row(
            escape(view["build"]),
            escape(view["commit"][:10] or "?"),
            escape(", ".join(stored["variant"] for stored in view["archives"])),
            gib(sum(stored["size_bytes"] for stored in view["archives"])),
            escape(", ".join(users) or "-"),
        )
    output.console.print(made)


def _new_progress() -> Progress:
    """Bars on standard error, so that standard output stays clean."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=output.errors,
        transient=True,
    )


class _Bars:
    """A bar for each archive."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, body: dict[str, Any]) -> None:
        name = body["archive"]
        if body["step"] == "waiting":
            self._progress.console.print("another installation goes on; this one waits for its end")
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(escape(name), total=None)
        task = self._tasks[name]
        if body["step"] == "proving":
            self._progress.update(task, description=f"{escape(name)}: proving")
        else:
            self._progress.update(
                task, completed=body["done_bytes"], total=body["total_bytes"] or None
            )
