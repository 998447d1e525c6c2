"""REST API of keys: who has one, make one, revoke one."""

from fastapi import APIRouter, Response

from supervisor.core.entities import FrozenModel
from supervisor.core.keys import ApiKey, KeyWanted
from supervisor.service.keyring import KeyRing


class NewKey(FrozenModel):
    """A key and its text, which is shown this once."""

    key: ApiKey
    text: str


def create_keys_router(keyring: KeyRing) -> APIRouter:
    """Routes under ``/api/keys``."""
    router = APIRouter(prefix="/api/keys")

    @router.get("")
    async def keys() -> list[ApiKey]:
        return keyring.all()

    @router.post("", status_code=201)
    async def create(wanted: KeyWanted, response: Response) -> NewKey:
        key, text = keyring.create(wanted)
        response.headers["Cache-Control"] = "no-store"
        return NewKey(key=key, text=text)

    @router.delete("/{name}", status_code=204)
    async def revoke(name: str) -> Response:
        keyring.revoke(name)
        return Response(status_code=204)

    return router
