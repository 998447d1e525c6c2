"""What the use cases work with: the outside world, passed in by the composition root."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.contract import EngineFacts
from supervisor.ports import (
    EngineStarter,
    ModelReader,
    ServerClient,
    StorePort,
    WorkerProbe,
)
from supervisor.service.registry import Registry
from supervisor.settings import Settings


@dataclass(frozen=True, slots=True)
class MainHost:
    """What a launch needs to know of the host it runs on."""

    name: str
    boot_id: str
    engine: EngineFacts | None
    known_flags: frozenset[str]
    inherited: Mapping[str, str]
    folder: Path


@dataclass(frozen=True, slots=True)
class Tools:
    """The outside world, passed in by the composition root."""

    settings: Settings
    registry: Registry
    store: StorePort
    read_model: ModelReader
    probe: WorkerProbe
    start_engine: EngineStarter
    connect_engine: Callable[[int], ServerClient]
    main_host: MainHost
