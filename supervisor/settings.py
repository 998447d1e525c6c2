"""One frozen settings object, built by a pure function from a TOML text and the environment."""

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, PrivateAttr, ValidationError
from pydantic_core import PydanticUndefined

from agents.contract import JOIN_PORT
from supervisor.core.entities import FrozenModel, Seconds
from supervisor.core.keys import KeylessLoopback
from supervisor.core.rdma import RdmaSetting
from supervisor.errors import BadSettings

PREFIX = "SUPERVISOR_"
CLIENT_VARIABLES = ("SUPERVISOR_URL", "SUPERVISOR_KEY", "SUPERVISOR_JOIN_CODE")
"""Read by the command line as a client or an agent; they configure no supervisor."""

Origin = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9+.-]*://[^/\s]+)$")]
"""As browsers send it, such as ``https://chat.example``; ``*`` is any."""

_LISTS: Final = {"model_folders": ":", "cors_origins": r"[,\s]"}
"""What separates the parts of a list in an environment variable; an origin has colons itself."""


Source = Literal["default", "file", "environment", "option"]
"""Where a value came from. An option is one of the command line."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where settings came from, which makes no difference between two of them."""

    path: Path | None = field(default=None, compare=False)
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False)
    """Of each setting that somebody gave."""
    default_folder: Path | None = field(default=None, compare=False)


class Settings(FrozenModel):
    """Every setting with its default. ``supervisor.example.toml`` documents the same keys.

    A secret would be a ``SecretStr``, which is shown to nobody.
    """

    data_folder: Path = Field(description="database, keys, logs; one supervisor per folder")
    host: str = Field("127.0.0.1", description="address of dashboard, REST and /v1")
    port: int = Field(8100, ge=0, le=65535, description="port of dashboard, REST and /v1; 0: any")
    join_host: str = Field(
        "", description="address for agents; empty: every private one, the default route's first"
    )
    join_port: int = Field(JOIN_PORT, ge=0, le=65535, description="TLS port for agents; 0: any")
    join_hours: float = Field(24.0, gt=0, description="how long a join code is good for")
    local_agent: bool = Field(True, description="serve the main host's own device too")
    rdma: RdmaSetting = Field(
        "auto", description="with transport direct: where both ends can, never, or always"
    )
    engine_folder: Path | None = Field(None, description="folder of the llama.cpp programs")
    engine_site: str = Field(
        "https://api.github.com/repos/ggml-org/llama.cpp",
        description="where releases of llama.cpp are fetched from; https, or this host itself",
    )
    model_folders: tuple[Path, ...] = Field((), description="folders whose models are offered")
    host_layers: bool = Field(True, description="the main host's own processor may hold layers")
    head_room_mib: int = Field(0, ge=0, description="kept free on every device, at least")
    backend_sampling: bool = Field(False, description="devices may pick tokens (experimental)")
    log_format: Literal["text", "json"] = Field("text", description="of our own log lines")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the lowest that is shown of our own log lines"
    )
    keyless_loopback: KeylessLoopback = Field(
        "all", description="what is open to this host without a key: all, /v1 only, or nothing"
    )
    cors_origins: tuple[Origin, ...] = Field(
        (), description="sites whose pages may call /v1; empty: none but our own"
    )
    connections_limit: int = Field(
        2000, ge=1, description="open connections of clients; half of it for one other host"
    )
    client_stall_s: Seconds = Field(
        60.0, gt=0, description="a client that reads nothing for this long is cut off"
    )
    prompt_cache_mib: int = Field(
        8192, ge=0, description="the most for prompts of earlier conversations, if all is local"
    )

    heartbeat_s: Seconds = Field(5.0, gt=0, description="between heartbeats of an agent")
    late_after_s: Seconds = Field(10.0, description="a device this silent gets no new work")
    stale_after_s: Seconds = Field(30.0, description="a device this silent is lost")

    measure_idle: bool = Field(True, description="measure idle devices that need it")
    measure_idle_after_s: Seconds = Field(20.0, description="ready and idle for this long")
    measure_idle_load: float = Field(
        0.5, ge=0, description="not while more programs than this want to run, per core"
    )
    measure_keeps_days: float = Field(30.0, gt=0, description="how long a measurement counts")

    worker_ready_s: Seconds = Field(20.0, gt=0, description="for an rpc-server to answer HELLO")
    link_silence_s: Seconds = Field(
        5.0, ge=0.5, le=600, description="a worker this silent is lost, if three round trips"
    )
    spread_peers: bool = Field(True, description="devices may give each other weights")
    spread_limit_mib_s: float = Field(
        0.0, ge=0, description="MiB/s that the main host, or a device, sends for pushes; 0: any"
    )
    link_window_mib: int = Field(64, ge=4, le=256, description="memory of a link, per end")
    verify_s: Seconds = Field(5.0, gt=0, description="for one probe from the main host")
    connect_s: Seconds = Field(90.0, gt=0, description="for llama-server to open its port")
    stall_s: Seconds = Field(120.0, gt=0, description="a load without progress for this long fails")
    first_token_s: Seconds = Field(120.0, gt=0, description="for the completion that proves READY")
    health_first_s: Seconds = Field(0.25, gt=0, description="first pause between /health polls")
    health_longest_s: Seconds = Field(10.0, gt=0, description="longest pause between /health polls")
    health_timeout_s: Seconds = Field(5.0, gt=0, description="of one /health poll")
    grace_s: Seconds = Field(10.0, gt=0, description="from SIGTERM to SIGKILL of llama-server")

    queue_limit: int = Field(512, ge=0, description="requests that may wait for a deployment")
    queue_wait_s: Seconds = Field(
        300.0, description="a request waits at most so long, unless it or its key says otherwise"
    )
    keep_alive_s: Seconds = Field(
        10.0, gt=0, description="between comments to streaming clients that wait"
    )
    body_limit_mib: int = Field(64, ge=1, le=4096, description="the largest request")
    bodies_limit_mib: int = Field(256, ge=1, description="all requests together")
    on_demand_models: bool = Field(
        False, description="a request may launch any model that 'supervisor models' lists"
    )
    on_demand_ttl_s: Seconds = Field(
        900.0, gt=0, description="and without requests for this long it is stopped again"
    )

    drain_s: Seconds = Field(30.0, description="for running requests to end before a stop")
    lease_s: Seconds = Field(
        300.0, gt=0, description="an agent that hears nothing of us this long stops its rpc-server"
    )

    frozen_after_s: Seconds = Field(
        3.0, gt=0, description="a process that is stopped, or owes an answer and does nothing"
    )
    hang_factor: float = Field(
        5.0, ge=1, description="times the expected duration of a step until it counts as hung"
    )
    hang_least_s: Seconds = Field(20.0, gt=0, description="but never before this long")
    canary_after_s: Seconds = Field(
        300.0, gt=0, description="idle and unproven for this long: one token is asked for"
    )

    retry_first_s: Seconds = Field(1.0, description="longest pause before the first repair")
    retry_longest_s: Seconds = Field(300.0, description="longest pause between repairs")
    retry_limit: int = Field(8, ge=0, description="repairs in a row before giving up")
    ready_earned_s: Seconds = Field(300.0, description="READY for this long forgives failures")
    flaps: int = Field(3, ge=1, description="losses of a device in flap_window_s set it aside")
    flap_window_s: Seconds = Field(600.0, gt=0, description="in which losses of a device count")
    aside_first_s: Seconds = Field(60.0, description="how long a device is set aside at first")
    aside_longest_s: Seconds = Field(3600.0, description="and at most, doubled each time")
    rejoin: Literal["idle", "now", "never"] = Field(
        "idle", description="when to relaunch for a device that came back or joined"
    )
    rejoin_gain: float = Field(
        1.2, ge=1, description="predicted speed over present speed that is worth a relaunch"
    )

    _provenance: Provenance = PrivateAttr(default_factory=Provenance)

    @property
    def path(self) -> Path | None:
        """Of the settings file, which need not exist; None: nobody looked for one."""
        return self._provenance.path

    def source(self, name: str) -> Source:
        """Where the value of this setting came from."""
        return self._provenance.sources.get(name, "default")

    def default(self, name: str) -> Any:
        """What this setting would be if nobody had given it."""
        default = type(self).model_fields[name].default
        return self._provenance.default_folder if default is PydanticUndefined else default


def load(
    toml_text: str,
    environ: Mapping[str, str],
    *,
    default_folder: Path,
    path: Path | None = None,
    options: Collection[str] = (),
) -> Settings:
    """Merge defaults, file and environment (``SUPERVISOR_PORT=8200``), the later ones winning.

    Args:
        toml_text: Of the settings file; empty if there is none.
        environ: Other variables than ours are left alone.
        default_folder: The data folder, unless one is given.
        path: Of the settings file, to be told to whoever asks.
        options: Settings in ``environ`` that were options of the command line.

    Raises:
        BadSettings: A key is unknown (with the nearest known one) or a value is impossible.
    """
    try:
        values: dict[str, Any] = tomllib.loads(toml_text)
    except tomllib.TOMLDecodeError as exc:
        raise BadSettings(f"the settings file is not TOML: {exc}") from exc
    sources: dict[str, Source] = dict.fromkeys(values, "file")
    for variable, text in environ.items():
        if variable.startswith(PREFIX) and variable not in CLIENT_VARIABLES:
            name = variable.removeprefix(PREFIX).lower()
            values[name] = _from_text(name, text)
            sources[name] = "option" if name in options else "environment"
    for key in values:
        if key not in Settings.model_fields:
            raise BadSettings(f"unknown setting {key!r}{_suggestion(key)}")
    try:
        settings = Settings.model_validate({"data_folder": default_folder, **values})
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        given = first.get("input")
        raise BadSettings(f"setting {where} = {given!r}: {first['msg'].lower()}") from exc
    settings._provenance = Provenance(path, sources, default_folder)
    return settings


def _from_text(name: str, text: str) -> object:
    """Lists come as ``a:b``, like PATH; pydantic reads numbers and booleans from text itself."""
    separators = _LISTS.get(name)
    return [part for part in re.split(separators, text) if part] if separators else text


def _suggestion(key: str) -> str:
    close = difflib.get_close_matches(key, Settings.model_fields, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{hint or '; see supervisor.example.toml'}"
