"""The routes of the library, of pulls and of suggestions, answered from the scene of a world."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lab.page_models import fit, holdings, of_repo, of_task, pull
from lab.page_record_routes import Handler, body_of, event_stream
from supervisor.core.entities import PushView
from supervisor.core.holdings import HoldingView
from supervisor.core.library import LibraryModel
from supervisor.core.library_views import (
    ModelPlaces,
    PartPlace,
    Removal,
    VerifiedFile,
    VerifiedModel,
    VerifyProgress,
)
from supervisor.core.model_settings import ModelSettings
from supervisor.errors import ModelInUse, ModelMissing, PullUnknown

if TYPE_CHECKING:
    from lab.page_world import World

Json = dict[str, Any]
WORK_STEPS: Final = 10
HELD_AT: Final = 4
"""The step of work on a model after which it waits, if the world holds it back."""


def _found(world: "World", name: str) -> LibraryModel:
    for each in world.scene.library:
        if name in (each.path, each.reference):
            return each
    raise ModelMissing(f"{name} is not on this host; 'supervisor models' lists those that are")


def _model(world: "World", request: Request) -> LibraryModel:
    return _found(world, request.query_params.get("model", ""))


async def _models(world: "World", _: Request) -> Response:
    return JSONResponse([each.model_dump(mode="json") for each in world.scene.library])


async def _remove(world: "World", request: Request) -> Response:
    model = _found(world, request.query_params["path"])
    users = [each for each in world.scene.deployments if each["spec"]["model"] == model.path]
    for each in users:
        if each["state"] not in ("stopped", "failed"):
            raise ModelInUse(f"{model.name} is in use by deployment {each['id']}; stop it first "
                             f"with 'supervisor stop {each['id']}'")  # fmt: skip
    is_dry = request.query_params.get("dry_run") == "true"
    found = Removal(path=model.path, name=model.name, deletes=model.parts or (model.path,),
                    freed_bytes=model.size_bytes, is_done=not is_dry,
                    deployments=tuple(each["id"] for each in users))  # fmt: skip
    if not is_dry:
        world.scene.library.remove(model)
    return JSONResponse(found.model_dump(mode="json"))


async def _fit(world: "World", request: Request) -> Response:
    model = _model(world, request)
    found = fit(model.size_bytes, int(request.query_params["ctx_tokens"]))
    return JSONResponse(found.model_dump(mode="json"))


async def _where(world: "World", request: Request) -> Response:
    model = _model(world, request)
    content = "../../blobs/7b064f5842bf9532" if model.source == "hub" else ""
    parts = [
        PartPlace(path=path, size_bytes=model.size_bytes, disk_bytes=model.size_bytes,
                  content=content)
        for path in model.parts or (model.path,)
    ]  # fmt: skip
    found = ModelPlaces(path=model.path, name=model.name, source=model.source, parts=tuple(parts))
    return JSONResponse(found.model_dump(mode="json"))


async def _holdings(world: "World", request: Request) -> Response:
    from lab.page_world import sse

    model = _model(world, request)

    async def steps() -> AsyncIterator[bytes]:
        for number in range(WORK_STEPS):
            done = model.size_bytes * number // WORK_STEPS
            yield sse("progress", {"done_bytes": done, "total_bytes": model.size_bytes})
            await _paced(world, number)
        found = holdings(world.scene.devices, model.size_bytes)
        yield sse("result", [each.model_dump(mode="json") for each in found])

    return event_stream(steps())


async def _settings(world: "World", request: Request) -> Response:
    name = request.query_params["model"]
    if request.method == "PUT":
        kept = ModelSettings(model=name, values=await body_of(request))
        world.model_settings[name] = kept.values
        return JSONResponse(kept.model_dump(mode="json"))
    if request.method == "DELETE":
        world.model_settings.pop(name, None)
        return Response(status_code=204)
    kept = ModelSettings(model=name, values=world.model_settings.get(name, {}))
    return JSONResponse([kept.model_dump(mode="json")])


async def _verify(world: "World", request: Request) -> Response:
    from lab.page_world import sse

    model = _model(world, request)

    async def steps() -> AsyncIterator[bytes]:
        for number in range(WORK_STEPS):
            done = model.size_bytes * number // WORK_STEPS
            step = VerifyProgress(path=model.path, done_bytes=done, total_bytes=model.size_bytes)
            yield sse("progress", step.model_dump(mode="json"))
            await _paced(world, number)
        file = VerifiedFile(path=model.path, verdict="good", detail="its SHA-256 is the hub's")
        found = VerifiedModel(path=model.path, name=model.name, verdict="good", files=(file,))
        yield sse("result", [found.model_dump(mode="json")])

    return event_stream(steps())


async def _push(world: "World", request: Request) -> Response:
    from lab.page_world import sse

    model = _found(world, (await body_of(request))["model"])
    rows = [each for each in holdings(world.scene.devices, model.size_bytes) if each.needed_bytes]

    async def steps() -> AsyncIterator[bytes]:
        for number in range(1, WORK_STEPS + 1):
            yield sse("progress", [_pushed(row, number / WORK_STEPS) for row in rows])
            await _paced(world, number)
        yield sse("result", [_pushed(row, 1.0) for row in rows])

    return event_stream(steps())


def _pushed(row: HoldingView, part: float) -> Json:
    lacks = row.needed_bytes - row.needed_held_bytes
    sent = int(lacks * part)
    left_s = None if sent == lacks else round((lacks - sent) / 21e6, 1)
    view = PushView(device=row.device, state="seeding" if left_s else "done", sent_bytes=sent,
                    total_bytes=row.needed_bytes, done_bytes=row.needed_held_bytes + sent,
                    bytes_per_s=21_000_000, eta_s=left_s)  # fmt: skip
    return view.model_dump(mode="json")


async def _paced(world: "World", number: int) -> None:
    await asyncio.sleep(world.engine_step_s)
    if number == HELD_AT:
        await world.goes_on.wait()


async def _suggest(world: "World", request: Request) -> Response:
    from lab.page_routes import reach_hub
    from lab.page_world import sse

    asked, ctx = request.query_params.get("q", ""), int(request.query_params["ctx_tokens"])
    is_repo = "/" in asked
    if is_repo:
        reach_hub(world)
    found = of_repo(asked, ctx) if is_repo else of_task(asked, ctx)

    async def steps() -> AsyncIterator[bytes]:
        for number, each in enumerate(found.suggestions):
            step = {"step": f"looking at {each.label}", "done": number}
            yield sse("progress", {**step, "total": len(found.suggestions)})
            await _paced(world, number)
        yield sse("result", found.model_dump(mode="json"))

    return event_stream(steps())


# -- pulls -------------------------------------------------------------------------------------


def _pull(world: "World", request: Request) -> Json:
    number = request.path_params["id"]
    for each in world.scene.pulls:
        if each["id"] == number:
            return each
    raise PullUnknown(f"there is no pull {number}")


async def _pulls(world: "World", _: Request) -> Response:
    return JSONResponse(world.scene.pulls)


async def _begin(world: "World", request: Request) -> Response:
    reference = (await body_of(request))["reference"]
    made = pull(len(world.scene.pulls) + 1, reference, 5.03, 0, bytes_per_s=0)
    world.scene.pulls.append(made.model_dump(mode="json"))
    world.send("pull", world.scene.pulls[-1])
    return JSONResponse(world.scene.pulls[-1], 201)


def _changed(state: str) -> Handler:
    async def change(world: "World", request: Request) -> Response:
        found = _pull(world, request)
        found.update(state=state, bytes_per_s=0, eta_s=None, detail="", error_code="")
        world.send("pull", found)
        return JSONResponse(found)

    return change


async def _drop(world: "World", request: Request) -> Response:
    found = _pull(world, request)
    world.scene.pulls.remove(found)
    world.send("pull_removed", {"id": found["id"]})
    return Response(status_code=204)


_PULLS: Final = "/api/models/pulls"
MODEL_ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/api/models", _models),
    ("DELETE", "/api/models", _remove),
    ("GET", "/api/models/fit", _fit),
    ("GET", "/api/models/where", _where),
    ("GET", "/api/models/holdings/stream", _holdings),
    ("GET", "/api/models/settings", _settings),
    ("PUT", "/api/models/settings", _settings),
    ("DELETE", "/api/models/settings", _settings),
    ("GET", "/api/models/suggest", _suggest),
    ("POST", "/api/models/verify", _verify),
    ("POST", "/api/models/push", _push),
    ("GET", _PULLS, _pulls),
    ("POST", _PULLS, _begin),
    ("POST", f"{_PULLS}/{{id}}/pause", _changed("paused")),
    ("POST", f"{_PULLS}/{{id}}/resume", _changed("fetching")),
    ("DELETE", f"{_PULLS}/{{id}}", _drop),
)
