"""REST API of bug reports: one archive to download."""

from fastapi import APIRouter, Response

from supervisor.core.entities import LaunchId
from supervisor.service.reporting import Report, Reporter


def create_report_router(reporter: Reporter) -> APIRouter:
    """Routes under ``/api`` that make reports."""
    router = APIRouter(prefix="/api")

    @router.get("/report")
    async def report() -> Response:
        return _download(await reporter.report())

    @router.get("/launches/{launch_id}/report")
    async def report_of_launch(launch_id: int) -> Response:
        return _download(await reporter.report(LaunchId(launch_id)))

    return router


def _download(report: Report) -> Response:
    headers = {"content-disposition": f'attachment; filename="{report.name}"'}
    return Response(report.data, media_type="application/gzip", headers=headers)
