"""``GET /doctor`` of the agent: its device as it finds it itself."""

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from agents.doctor.examination import Doctor


def doctor_routes(doctor: Doctor) -> list[Route]:
    """The one route. It may take as long as the examination's deadline."""

    async def get_doctor(_: Request) -> Response:
        return JSONResponse([asdict(finding) for finding in await doctor.findings()])

    return [Route("/doctor", get_doctor)]
