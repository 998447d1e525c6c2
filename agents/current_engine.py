"""The engine that this device uses now: everybody asks here, since it may change while we run."""

import logging
from collections.abc import Mapping
from pathlib import Path

from agents import engine as engines
from agents.contract import EngineFacts, GgmlDevice

log = logging.getLogger(__name__)


class CurrentEngine:
    """What is in use, with the ggml devices that it offers; perhaps nothing."""

    def __init__(self, engine: EngineFacts | None, devices: list[GgmlDevice] | None = None) -> None:
        self._engine = engine
        self._devices = devices or []

    @property
    def engine(self) -> EngineFacts | None:
        return self._engine

    @property
    def devices(self) -> list[GgmlDevice]:
        return list(self._devices)

    @property
    def is_explicit(self) -> bool:
        """Whether somebody on this device chose it, so that the main host must not replace it."""
        return self._engine is not None and self._engine.is_fixed

    def take(self, engine: EngineFacts, devices: list[GgmlDevice]) -> None:
        """From now on that is in use."""
        self._engine, self._devices = engine, devices


async def choose(
    inherited: Mapping[str, str], *, explicit: Path | None, own_engines: Path
) -> CurrentEngine:
    """The first engine that can serve; else the first one, with its problem; else nothing.

    Raises:
        EngineMissing: ``explicit`` was given and holds no llama.cpp program.
    """
    first = None
    for candidate in engines.discover(inherited, explicit=explicit, own_engines=own_engines):
        inspected = await engines.inspect(candidate, inherited)
        if not inspected.problem:
            return CurrentEngine(inspected, await offered(inspected, inherited))
        log.warning("engine.unusable", extra={"reason": inspected.problem})
        first = first or inspected
    return CurrentEngine(first, await offered(first, inherited))


async def offered(engine: EngineFacts | None, inherited: Mapping[str, str]) -> list[GgmlDevice]:
    """The ggml devices of an inspected engine.

    Raises:
        EngineUnusable: Its rpc-server cannot be executed, or does not end.
    """
    if engine is None or not engine.has_rpc:
        return []
    return await engines.ggml_devices(engine, inherited)
