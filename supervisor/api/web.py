"""The application on the dashboard's port: page, REST, OpenAI endpoint."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.middleware.gzip import GZipMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from supervisor import __version__
from supervisor.api import problems, rest
from supervisor.api.auth import GatewayCors, RequireKey
from supervisor.api.deployments_api import create_deployments_router
from supervisor.api.devices_api import create_devices_router
from supervisor.api.doctor_api import create_doctor_router
from supervisor.api.engine_change_api import create_engine_change_router
from supervisor.api.engines_api import create_engines_router
from supervisor.api.events_api import create_events_router
from supervisor.api.gateway_api import GatewayApp, GatewayFork
from supervisor.api.hub_api import create_hub_router
from supervisor.api.keys_api import create_keys_router
from supervisor.api.logs_api import create_logs_router
from supervisor.api.measure_api import create_measure_router
from supervisor.api.metrics_api import create_metrics_router
from supervisor.api.model_settings_api import create_model_settings_router
from supervisor.api.models_api import create_models_router
from supervisor.api.pulls_api import create_pulls_router
from supervisor.api.push_api import create_push_router
from supervisor.api.report_api import create_report_router
from supervisor.api.requests_api import create_requests_router
from supervisor.api.session_api import create_session_router
from supervisor.api.settings_api import create_settings_router
from supervisor.api.suggest_api import create_suggest_router
from supervisor.service.log_following import Logs

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


class SecurityHeaders:
    """Adds the strict headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = [(n, v) for n, v in _HEADERS if n not in present]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def create_app(services: rest.Services, page_folder: Path) -> FastAPI:
    """Everything that users and their tools talk to."""
    app = FastAPI(
        title="llama.cpp RPC supervisor",
        version=__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    app.include_router(rest.create_router(services))
    app.include_router(create_devices_router(services.registry, services.reconciler))
    app.include_router(create_deployments_router(services.reconciler))
    logs = Logs(services.reconciler, services.launches, services.registry, services.bus)
    app.include_router(create_logs_router(logs))
    app.include_router(create_measure_router(services.measurer))
    app.include_router(create_push_router(services.pusher, services.holdings))
    app.include_router(create_pulls_router(services.pulls))
    app.include_router(create_models_router(services.library, services.upkeep))
    app.include_router(create_model_settings_router(services.reconciler.model_settings))
    app.include_router(create_engines_router(services.engine_installer, services.engine_changer))
    app.include_router(create_engine_change_router(services.engine_changer))
    app.include_router(create_events_router(services.journal, services.bus))
    app.include_router(create_report_router(services.reporter))
    app.include_router(create_doctor_router(services.doctoring))
    app.include_router(create_session_router(services.keyring, services.sessions))
    app.include_router(create_settings_router(services.settings))
    app.include_router(create_hub_router(services.hub))
    app.include_router(create_suggest_router(services.suggester))
    app.include_router(create_keys_router(services.keyring))
    app.include_router(create_requests_router(services.request_log))
    app.include_router(create_metrics_router(services.metrics))
    # Modules as they are written, comments and all: a third of their size is sent.
    app.mount("/assets", GZipMiddleware(StaticFiles(directory=page_folder)), name="assets")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(page_folder / "index.html")

    settings = services.settings
    # The first is the innermost.
    app.add_middleware(GatewayFork, gateway=GatewayApp(services.gateway, services.settings))
    app.add_middleware(
        RequireKey,
        keyring=services.keyring,
        sessions=services.sessions,
        keyless=settings.keyless_loopback,
        cors_origins=settings.cors_origins,
    )
    if settings.cors_origins:
        app.add_middleware(GatewayCors, origins=settings.cors_origins)
    app.add_middleware(SecurityHeaders)
    return app
