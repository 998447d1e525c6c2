"""REST API of devices: what there is, and what the operator decides about it."""

from fastapi import APIRouter, Response
from pydantic import Field

from supervisor.core.entities import Device, FrozenModel
from supervisor.core.wires import AUTOMATIC
from supervisor.service.reconciler import Reconciler
from supervisor.service.registry import Registry


class DeviceChange(FrozenModel):
    """What is not given stays as it is."""

    name: str | None = Field(
        default=None, description="1 to 40 letters, digits, and any of - _ .; no other device's"
    )
    excluded: bool | None = Field(default=None, description="no plan uses it; what runs goes on")
    wire: str | None = Field(
        default=None, max_length=64, description="address for tensors; auto or empty: the fastest"
    )


def create_devices_router(registry: Registry, reconciler: Reconciler) -> APIRouter:
    """Routes under ``/api/devices``, where a device goes by its name or its id."""
    router = APIRouter(prefix="/api")

    @router.get("/devices")
    async def devices() -> list[Device]:
        return registry.devices()

    @router.patch("/devices/{device}")
    async def change(device: str, wanted: DeviceChange) -> Device:
        found = registry.find(device)
        if wanted.name is not None:
            await reconciler.rename_device(found.id, wanted.name)
        if wanted.excluded is not None:
            await registry.exclude(found.id, excluded=wanted.excluded)
        if wanted.wire is not None:
            await registry.choose_wire(found.id, "" if wanted.wire == AUTOMATIC else wanted.wire)
        return registry.device(found.id)

    @router.post("/devices/{device}/drain")
    async def drain(device: str) -> Device:
        return await reconciler.drain(device)

    @router.delete("/devices/{device}", status_code=204)
    async def remove(device: str) -> Response:
        await registry.remove(registry.find(device).id)
        return Response(status_code=204)

    return router
