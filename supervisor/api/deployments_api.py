"""REST API of deployments: launch, change, stop, start and remove them. Logs are in ``rest``."""

from fastapi import APIRouter, Response

from supervisor.core.entities import Deployment, DeploymentSpec
from supervisor.service.reconciler import Reconciler


def create_deployments_router(reconciler: Reconciler) -> APIRouter:
    """Routes under ``/api/deployments``."""
    router = APIRouter(prefix="/api")

    @router.get("/deployments")
    async def deployments() -> list[Deployment]:
        return reconciler.all()

    @router.post("/deployments", status_code=201)
    async def launch(spec: DeploymentSpec) -> Deployment:
        return await reconciler.create(spec)

    @router.get("/deployments/{name}")
    async def deployment(name: str) -> Deployment:
        return reconciler.get(name)

    @router.put("/deployments/{name}")
    async def replace(name: str, spec: DeploymentSpec) -> Deployment:
        return await reconciler.replace(name, spec)

    @router.delete("/deployments/{name}", status_code=204)
    async def remove(name: str) -> Response:
        await reconciler.remove(name)
        return Response(status_code=204)

    @router.post("/deployments/{name}/stop")
    async def stop(name: str, now: bool = False) -> Deployment:
        return await reconciler.stop(name, now=now)

    @router.post("/deployments/{name}/start")
    async def start(name: str) -> Deployment:
        return await reconciler.start(name)

    @router.post("/deployments/{name}/restart")
    async def restart(name: str) -> Deployment:
        return await reconciler.restart(name)

    return router
