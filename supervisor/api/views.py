"""What the REST API answers and takes, where that is no entity."""

from typing import Annotated, Literal

from pydantic import Field

from agents.contract import EngineFacts
from supervisor.core.entities import Deployment, Device, FrozenModel, Plan, PullView
from supervisor.core.planning import WhatIf
from supervisor.core.request_record import RequestRecord
from supervisor.service.request_log import LaneCount

RowNumber = Annotated[int, Field(ge=0, lt=2**63)]
"""Of a row of the store, which has no other numbers."""

MostHours = Annotated[float, Field(gt=0, le=24 * 366 * 100)]
"""Beyond, there is no calendar."""


Platform = Literal["termux", "macos", "linux"]
"""Each has a line of its own to join with."""


class JoinLine(FrozenModel):
    """What to type, or to scan and paste, on a device of one platform."""

    platform: Platform
    command: str
    qr: str = Field(description="the command as a QR code: a data URI of image/svg+xml")


class JoinCodeView(FrozenModel):
    """A join code and the lines that use it."""

    code: str
    command: str
    termux_command: str
    expires_at: str
    lines: tuple[JoinLine, ...]


class LogChunk(FrozenModel):
    """A piece of a log; ``offset`` is where to go on."""

    process: str
    file: str
    offset: int
    text: str


class ShellCommand(FrozenModel):
    """One command of a launch and the host to run it on."""

    host: str
    command: str


class PlanView(FrozenModel):
    """A plan, what would change it, and the commands it comes to; their ports are examples."""

    plan: Plan
    what_ifs: tuple[WhatIf, ...]
    commands: tuple[ShellCommand, ...]


class Snapshot(FrozenModel):
    """Everything that the dashboard shows."""

    version: str
    main_host: str
    url: str
    time: str
    engine: EngineFacts | None
    problem: str = Field(default="", description="of the supervisor itself: nothing can be stored")
    devices: list[Device]
    deployments: list[Deployment]
    pulls: list[PullView] = Field(description="of models from the hub, the newest last")
    traffic: list[LaneCount] = Field(description="a deployment without a row has none")
    requests: list[RequestRecord] = Field(description="the newest, newest first")
