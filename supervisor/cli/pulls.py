"""Commands that fetch models from the hub: through the supervisor that runs, or else directly."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Url
from supervisor.core.entities import PullView
from supervisor.core.pulling import Job, Meter, PullPart, Step, label_of, total_bytes
from supervisor.core.units import gib
from supervisor.errors import PullEnded, PullFailed, SupervisorUnreachable

pulls_app = typer.Typer(
    invoke_without_command=True, help="Models that are being fetched from the hub."
)

Id = Annotated[str, typer.Argument(help="of the pull, as 'supervisor models pulls' shows it")]

_LEFT = "it goes on without this command; see 'supervisor models pulls'"
_ENDED = "what came is kept; run the command again to go on"
_INTERRUPTED = 130


def pull(
    reference: Annotated[str, typer.Argument(help="OWNER/REPO[:QUANT] or OWNER/REPO/FILE.gguf")],
    pause: Annotated[
        bool, typer.Option("--pause", help="Ctrl-C pauses it; else it goes on without you")
    ] = False,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model from the hub, once; what came of it before is not fetched again."""
    client = Client(url, key)
    try:
        view = client.post("/api/models/pulls", {"reference": reference})
    except SupervisorUnreachable:
        if url or os.environ.get("SUPERVISOR_URL"):
            raise
        output.errors.print("no supervisor runs here, so it is fetched by this command itself")
        ended = _shown(_directly(reference), as_json=as_json, on_interrupt=lambda _: _ENDED)
    else:
        ended = _shown(
            _followed(client, view),
            as_json=as_json,
            on_interrupt=lambda last: _interrupted(client, last, pause=pause),
        )
    if as_json:
        output.print_json(ended)
    if ended["state"] == "failed":
        raise PullFailed(ended["detail"], ended["error_code"])
    if not as_json:
        words = {"done": f"is at {ended['path']}", "paused": "is paused"}
        said = words.get(ended["state"], ended["state"])
        output.console.print(f"{escape(ended['reference'])} {escape(said)}")


@pulls_app.callback()
def pulls(
    context: typer.Context, url: Url = None, key: Key = None, as_json: AsJson = False
) -> None:
    """Show what is being fetched, or was."""
    if context.invoked_subcommand is not None:
        return
    found = Client(url, key).get("/api/models/pulls")
    if as_json:
        output.print_json(found)
        return
    made = output.table("Pulls", "id", "model", "state", "there", "of", "rate", "left", "detail")
    for view in found:
        made.add_row(
            view["id"],
            escape(f"{view['repo']}:{view['label']}"),
            output.state(view["state"]),
            gib(view["done_bytes"]),
            gib(view["total_bytes"]),
            _rate(view),
            _left(view),
            escape(view["detail"] or view["path"]),
        )
    output.console.print(made)


@pulls_app.command()
def pause(pull_id: Id, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """End a pull for now; what came is kept."""
    _change(f"/api/models/pulls/{pull_id}/pause", Client(url, key), as_json=as_json)


@pulls_app.command()
def resume(pull_id: Id, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Go on with a pull that was paused or has failed."""
    _change(f"/api/models/pulls/{pull_id}/resume", Client(url, key), as_json=as_json)


@pulls_app.command()
def remove(pull_id: Id, url: Url = None, key: Key = None) -> None:
    """Forget a pull and what came of it; a finished model stays."""
    Client(url, key).delete(f"/api/models/pulls/{pull_id}")


def _change(path: str, client: Client, *, as_json: bool) -> None:
    view = client.post(path)
    if as_json:
        output.print_json(view)
    else:
        output.console.print(f"{escape(view['reference'])} is {output.state(view['state'])}")


# -- following -------------------------------------------------------------------------------


def _shown(views: Iterator[dict[str, Any]], *, as_json: bool, on_interrupt: Any) -> dict[str, Any]:
    """Show a bar until the last view; returns that. Ctrl-C ends the showing."""
    last: dict[str, Any] = {}
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
        console=output.errors,
        transient=True,
        disable=as_json,
    )
    try:
        with progress:
            task = progress.add_task("", total=None, rate="", left="")
            told = ""
            for last in views:
                label = f"{last['repo'].rpartition('/')[2]}:{last['label']}"
                progress.update(
                    task,
                    description=f"{escape(label)} {last['state']}",
                    completed=last["done_bytes"],
                    total=last["total_bytes"] or None,
                    rate=_rate(last),
                    left=_left(last),
                )
                if last["detail"] != told and last["state"] not in ("failed", "done"):
                    told = last["detail"]
                    if told and not as_json:
                        progress.console.print(escape(told))
    except KeyboardInterrupt:
        output.errors.print(escape(on_interrupt(last)))
        raise typer.Exit(_INTERRUPTED) from None
    return last


def _followed(client: Client, view: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the supervisor says of a pull, until it is done, paused or failed."""
    yield view
    if _is_over(view):
        return
    pull_id = view["id"]
    for event, body in client.events():
        if event == "snapshot":
            found = next((each for each in body["pulls"] if each["id"] == pull_id), None)
            if found is None:
                raise PullEnded(f"the pull of {view['reference']} was removed")
        elif event == "pull_removed" and body["id"] == pull_id:
            raise PullEnded(f"the pull of {view['reference']} was removed")
        elif event == "pull" and body["id"] == pull_id:
            found = body
        else:
            continue
        yield found
        if _is_over(found):
            return
    raise SupervisorUnreachable(
        "the supervisor ended during the pull; it goes on when that is started again"
    )


def _is_over(view: dict[str, Any]) -> bool:
    return view["state"] in ("done", "failed", "paused")


def _interrupted(client: Client, last: dict[str, Any], *, pause: bool) -> str:
    if not pause or not last:
        return _LEFT
    client.post(f"/api/models/pulls/{last['id']}/pause")
    return f"paused; 'supervisor models pulls resume {last['id']}' goes on"


def _directly(reference: str) -> Iterator[dict[str, Any]]:
    """Fetch it by a process of our own."""
    import time

    from supervisor.fetching.cached import HubFiles
    from supervisor.fetching.processes import command

    files = HubFiles()
    parts = files.resolve(reference)
    done, meter, path = files.done_bytes(parts), Meter(), files.path_of(parts)
    if path is not None:
        yield _view(reference, parts, done, meter, state="done", path=str(path))
        return
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(Job(parts=parts).model_dump_json())
        with subprocess.Popen(command(job), stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    step = Step.model_validate(json.loads(line))
                    for number, done_bytes in step.done.items():
                        done[number] = done_bytes
                    if step.event == "done":
                        files.note_main(parts)
                        yield _view(reference, parts, done, meter, state="done", path=step.path)
                        return
                    if step.event == "failed":
                        raise PullFailed(step.detail, step.code)
                    if not step.is_checking:
                        meter.note(time.monotonic(), sum(done))
                    state = "checking" if step.is_checking else "fetching"
                    yield _view(reference, parts, done, meter, state=state, detail=step.detail)
            finally:
                child.terminate()
    raise PullEnded(f"what fetches {reference} ended by itself; {_ENDED}")


def _view(
    reference: str, parts: tuple[PullPart, ...], done: list[int], meter: Meter, **more: Any
) -> dict[str, Any]:
    total, there = total_bytes(parts), sum(done)
    return PullView(
        id="",
        reference=reference,
        repo=parts[0].repo,
        label=label_of(parts),
        files=len(parts),
        done_bytes=there,
        total_bytes=total,
        bytes_per_s=meter.bytes_per_s,
        eta_s=meter.eta_s(total - there),
        **more,
    ).model_dump(mode="json")


def _rate(view: dict[str, Any]) -> str:
    return f"{view['bytes_per_s'] / 1e6:.1f} MB/s" if view["bytes_per_s"] else ""


def _left(view: dict[str, Any]) -> str:
    eta_s = view["eta_s"]
    if eta_s is None:
        return ""
    minutes, seconds = divmod(round(eta_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
