"""REST API of sign-in: show a key once, and have a session in a cookie from then on."""

from typing import Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from supervisor.api.auth import cookie_name, is_own_page
from supervisor.core.callers import CALLER, LOCAL, Caller, Scope
from supervisor.core.entities import FrozenModel
from supervisor.errors import KeyRequired, OriginRefused, ScopeMissing
from supervisor.service.keyring import KeyRing
from supervisor.service.sessions import LIFETIME_S, Sessions, WrongTries

_STRICT: Final[Literal["strict"]] = "strict"


class SessionRequest(FrozenModel):
    """Sign-in of the dashboard."""

    key: str = Field(max_length=512)


class SessionView(FrozenModel):
    """Who asks, and what that one may do."""

    caller: str = Field(description='name of the key; "local" without one, on the main host')
    scopes: list[Scope]
    is_keyless: bool = Field(description="nobody signed in, and nobody needs to")


def create_session_router(keyring: KeyRing, sessions: Sessions) -> APIRouter:
    """Routes under ``/api/session``."""
    router = APIRouter(prefix="/api/session")
    wrong_tries = WrongTries()

    @router.get("")
    async def who(request: Request) -> SessionView:
        caller: Caller = request.scope[CALLER]
        scopes = [scope for scope in Scope if caller.may(scope)]
        is_keyless = caller.name == LOCAL.name
        return SessionView(caller=caller.name, scopes=scopes, is_keyless=is_keyless)

    @router.post("", status_code=204)
    async def sign_in(shown: SessionRequest, request: Request) -> Response:
        _refuse_other_pages(request)
        address = request.client.host if request.client else ""
        wrong_tries.check(address)
        caller = keyring.caller(shown.key)
        if caller is None:
            wrong_tries.note(address)
            raise KeyRequired("that is not the key; 'supervisor key' on the main host prints it")
        if not caller.may(Scope.READ):
            raise ScopeMissing(f"key {caller.name} is good for the gateway only, not for this page")
        response = Response(status_code=204)
        # Not "Secure": the page is served over HTTP, and a browser would throw such a cookie away.
        response.set_cookie(
            cookie_name(request.headers),
            sessions.begin(caller.name),
            max_age=LIFETIME_S,
            path="/",
            httponly=True,
            samesite=_STRICT,
        )
        return response

    @router.delete("", status_code=204)
    async def sign_out(request: Request) -> Response:
        _refuse_other_pages(request)
        response = Response(status_code=204)
        name = cookie_name(request.headers)
        response.delete_cookie(name, path="/", httponly=True, samesite=_STRICT)
        return response

    return router


def _refuse_other_pages(request: Request) -> None:
    """Another site's page could sign its visitor in as somebody else, or out, or use up the tries.

    Raises:
        OriginRefused: This is such a page.
    """
    if not is_own_page(request.headers):
        raise OriginRefused("pages of other sites can sign nobody in or out")
