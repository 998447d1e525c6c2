"""The command that makes one archive for a bug report."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from agents.errors import FolderNotWritable
from supervisor.cli import output
from supervisor.cli.client import Client, default_folder
from supervisor.cli.options import AsJson, Key, Url
from supervisor.errors import SupervisorUnreachable


def make_report(
    launch: Annotated[
        int | None, typer.Argument(help="number of the launch; else the latest")
    ] = None,
    file: Annotated[Path | None, typer.Option("-o", "--output", help="where to write it")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Write one archive for a bug report: record, plan, events, logs, versions; secrets masked."""
    path = "/api/report" if launch is None else f"/api/launches/{launch}/report"
    try:
        name, data = Client(url, key).download(path)
    except SupervisorUnreachable as exc:
        logs = default_folder() / "logs"
        raise SupervisorUnreachable(f"{exc}; the logs themselves are in {logs}") from exc
    target = file or Path(Path(name).name)
    try:
        target.write_bytes(data)
    except OSError as exc:
        raise FolderNotWritable(
            f"cannot write the report to {target}: {exc.strerror}; name another file with -o"
        ) from exc
    if as_json:
        output.print_json({"file": str(target), "bytes": len(data)})
        return
    output.console.print(f"wrote {escape(str(target))} ({len(data) / 2**20:.1f} MiB)")
    output.console.print("secrets are masked; look into it before you publish it")
