"""REST API of bug reports: one archive to download."""

from fastapi import APIRouter, Response

from supervisor.api.views import RowNumber
from supervisor.core.entities import LaunchId
from supervisor.service.reporting import Report, Reporter


class Archive(Response):
    """Says its type also in the OpenAPI document."""

    media_type = "application/gzip"


def create_report_router(reporter: Reporter) -> APIRouter:
    """Routes under ``/api`` that make reports."""
    router = APIRouter(prefix="/api")

    @router.get("/report", response_class=Archive)
    async def report() -> Response:
        return _download(await reporter.report())

    @router.get("/launches/{launch_id}/report", response_class=Archive)
    async def report_of_launch(launch_id: RowNumber) -> Response:
        return _download(await reporter.report(LaunchId(launch_id)))

    return router


def _download(report: Report) -> Response:
    headers = {"content-disposition": f'attachment; filename="{report.name}"'}
    return Archive(report.data, headers=headers)
