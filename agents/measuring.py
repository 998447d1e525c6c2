"""Measures this device through a private rpc-server, while no launch needs it."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict

from agents import facts, ports, process
from agents.contract import (
    GgmlDevice,
    MeasuredGgmlDevice,
    MeasurementProblem,
    MeasurementProgress,
    MeasurementResult,
    MeasurementSpec,
    MeasurementUpdate,
)
from agents.errors import BadMessage, MeasurementFailed, MeasurementInterrupted, ProjectError
from agents.measure import DeviceSpec, measure_device
from agents.readiness import prove

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"

_READY_S = 20.0
_GRACE_S = 5.0
_LEAST_S = 1.0
_MOST_S = 600.0
_MOST_WIDTH = 1 << 20

Spawn = Callable[[int], Awaitable[process.Child]]
"""Starts a private rpc-server on a port of loopback."""


async def _unknown() -> None:
    """The temperature, where nobody knows it."""


class Measurement:
    """One measurement: a task of its own, so that nobody who listens to it can hinder its end."""

    def __init__(
        self,
        spawn: Spawn,
        spec: MeasurementSpec,
        names: Sequence[str],
        on_end: Callable[[], None],
        temperature_c: Callable[[], Awaitable[float | None]] = _unknown,
    ) -> None:
        """Begin to measure the ggml devices ``names``, in the order of the rpc-server.

        Raises:
            BadMessage: A figure of ``spec`` is impossible.
        """
        _check(spec)
        self._spawn = spawn
        self._spec = spec
        self._names = names
        self._on_end = on_end
        self._temperature_c = temperature_c
        self._child: process.Child | None = None
        self._interrupted_by: str | None = None
        self._updates: asyncio.Queue[MeasurementUpdate | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._measure())
        self._task.add_done_callback(self._ended)

    @property
    def is_over(self) -> bool:
        return self._task.done()

    def resident_bytes(self) -> int:
        """Memory of the private rpc-server: free again as soon as a launch wants it."""
        child = self._child
        if child is None or child.exit_status is not None:
            return 0
        return facts.resident_bytes(child.pid) or 0

    async def updates(self, repeat_s: float) -> AsyncIterator[MeasurementUpdate]:
        """Progress, then one result or problem. What is old is repeated after ``repeat_s``."""
        update: MeasurementUpdate | None = MeasurementProgress("start", 0.0)
        while update is not None:
            yield update
            try:
                async with asyncio.timeout(repeat_s):
                    update = await self._updates.get()
            except TimeoutError:
                pass

    def cancel(self, interrupted_by: str) -> None:
        """Begin to end it; the first reason is told."""
        if self._interrupted_by is not None or self._task.done():
            return
        self._interrupted_by = interrupted_by
        if self._child is not None:
            # It holds nothing, and a client waits for the end of what it computes.
            self._child.signal(signal.SIGKILL)
        self._task.cancel()

    async def end(self, interrupted_by: str) -> None:
        """End it, and wait until nothing of it runs."""
        self.cancel(interrupted_by)
        await asyncio.wait({self._task})
        if self._child is not None:
            await self._child.wait()

    async def _measure(self) -> MeasurementResult:
        reservation = ports.reserve(LOOPBACK)
        try:
            child = self._child = await self._spawn(reservation.port)
            try:
                return await self._through(child, reservation.port)
            finally:
                await child.stop(grace_s=_GRACE_S)
        finally:
            reservation.release()

    async def _through(self, child: process.Child, port: int) -> MeasurementResult:
        deadline_s = time.monotonic() + self._spec.deadline_s
        proof = await prove(child, LOOPBACK, port, min(_READY_S, self._spec.deadline_s))
        if proof.error_code:
            raise MeasurementFailed(f"a private rpc-server does not start: {proof.detail}")
        measured = []
        for number, name in enumerate(self._names):
            left_s = max(deadline_s - time.monotonic(), _LEAST_S)
            measured.append(await self._measure_one(number, name, port, left_s))
        return MeasurementResult(measured)

    async def _measure_one(
        self, number: int, name: str, port: int, left_s: float
    ) -> MeasuredGgmlDevice:
        before_c = await self._temperature_c()
        spec = DeviceSpec(
            types=tuple(self._spec.types),
            n_embd=self._spec.n_embd,
            n_ff=self._spec.n_ff,
            deadline_s=left_s,
            device=number,
            memory_available_bytes=facts.memory()[1] or None,
            sustained_s=self._spec.sustained_s,
            is_processor=GgmlDevice(name).is_cpu,
        )

        def tell(step: str, part: float) -> None:
            all_done = (number + part) / len(self._names)
            self._updates.put_nowait(MeasurementProgress(step, all_done, name))

        found = await measure_device(LOOPBACK, port, spec, progress=tell)
        after_c = await self._temperature_c()
        return MeasuredGgmlDevice(
            name=name, temperature_before_c=before_c, temperature_after_c=after_c, **asdict(found)
        )

    def _ended(self, task: "asyncio.Task[MeasurementResult]") -> None:
        self._updates.put_nowait(self._last(task))
        self._updates.put_nowait(None)
        self._on_end()

    def _last(self, task: "asyncio.Task[MeasurementResult]") -> MeasurementUpdate:
        error = None if task.cancelled() else task.exception()
        if not task.cancelled() and error is None:
            return task.result()
        if self._interrupted_by is not None or error is None:
            return MeasurementProblem(
                MeasurementInterrupted.code,
                f"the measurement was interrupted by {self._interrupted_by or 'the agent'}; "
                "measure again when the device is idle",
            )
        if not isinstance(error, ProjectError):
            log.error("measurement.bug", exc_info=error)
            error = ProjectError(f"internal error: {error!r}; please report it")
        return MeasurementProblem(error.code, str(error))


def _check(spec: MeasurementSpec) -> None:
    widths = (spec.n_embd, spec.n_ff)
    if not spec.types or not all(0 < width <= _MOST_WIDTH for width in widths):
        raise BadMessage(
            f"cannot measure types {spec.types} of widths {widths}; name a type, and widths from "
            f"1 to {_MOST_WIDTH}"
        )
    if not _LEAST_S <= spec.deadline_s <= _MOST_S:
        raise BadMessage(
            f"deadline_s = {spec.deadline_s:g} is impossible; from {_LEAST_S:g} to {_MOST_S:g}"
        )
