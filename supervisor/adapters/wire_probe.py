"""Measures one wire over the real far end of an idle device, from a given address of this host."""

import asyncio
import itertools
import ssl
import statistics
from typing import Final

from agents.errors import LinkRefused, ProjectError
from agents.link_frames import DATA_BYTES, MEASURING, Frame, Kind, pack_number, read_numbered
from agents.link_stream import LinkStream
from supervisor.core.entities import Device
from supervisor.core.wires import Measured, Pair
from supervisor.errors import WorkerBusy
from supervisor.link.dialing import Call
from supervisor.link.job import LinkJob, WorkerJob

PINGS: Final = 12
_BULK_S: Final = 0.7
"""No transfer is begun that would end after so many seconds of all of them."""
_FIRST_BYTES: Final = 64 << 10
_MOST_BYTES: Final = 8 << 20
_CONNECT_S: Final = 3.0
_LIMIT_S: Final = 12.0
_SILENCE_S: Final = 5.0


class WireProbe:
    """Connects, proves both ends, asks some small questions, and sends a few MB."""

    def __init__(self, context: ssl.SSLContext, main_host: str) -> None:
        self._context = context
        self._main_host = main_host

    async def __call__(self, device: Device, pair: Pair, serial: str) -> Measured:
        """Round trip and rate of a pair, or why it cannot be used.

        Raises:
            WorkerBusy: The device does not want to be measured now.
        """
        measuring = _Measuring(self._job(), _worker(device, pair, serial))
        try:
            async with asyncio.timeout(_LIMIT_S):
                return await measuring.run(self._context)
        except TimeoutError:
            return Measured(problem=f"it was too slow to be measured within {_LIMIT_S:g} s")
        except LinkRefused as exc:
            if measuring.was_refused:
                raise WorkerBusy(str(exc)) from exc
            return Measured(problem=str(exc))
        except ProjectError as exc:
            return Measured(problem=str(exc))
        finally:
            measuring.close()

    def _job(self) -> LinkJob:
        return LinkJob(
            launch=MEASURING,
            main_host=self._main_host,
            silence_s=_SILENCE_S,
            connect_s=_CONNECT_S,
            window_bytes=_MOST_BYTES,
            certificate="",
            key="",
            authority="",
            folder="",
        )


def _worker(device: Device, pair: Pair, serial: str) -> WorkerJob:
    return WorkerJob(
        agent_id=device.id,
        name=device.name,
        address=pair.far,
        link_port=pair.port,
        serial=serial,
        stores=False,
        near=pair.near,
    )


class _Measuring:
    """One connection, from the dialling to the last echo."""

    def __init__(self, job: LinkJob, worker: WorkerJob) -> None:
        self._link = LinkStream(self._on_frame, self._on_end, self._on_room)
        self._call = Call(self._link, job, worker)
        self._numbers = itertools.count(1)
        self._waited: dict[int, asyncio.Future[None]] = {}
        self._room = asyncio.Event()
        self._room.set()
        self.was_refused = False

    async def run(self, context: ssl.SSLContext) -> Measured:
        await self._call.admitted(context)
        await self._echoed(64)  # the first one warms up
        trips_s = [await self._echoed(64) for _ in range(PINGS)]
        trip_s = statistics.median(trips_s)
        return Measured(trip_s, await self._rate(trip_s))

    async def _rate(self, trip_s: float) -> float:
        """Of ever larger transfers the last; what they take together is bounded."""
        size, spent_s = _FIRST_BYTES, 0.0
        while True:
            took_s = await self._echoed(size)
            spent_s += took_s
            rate = size / max(took_s - trip_s, took_s / 10, 1e-6)
            if size >= _MOST_BYTES or spent_s + 2 * took_s > _BULK_S:
                return rate
            size *= 2

    async def _echoed(self, size: int) -> float:
        """Seconds from the first byte of ``size`` to the word that the last has arrived."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        done = None
        while size > 0:
            part, number = min(size, DATA_BYTES), next(self._numbers)
            size -= part
            done = self._waited[number] = loop.create_future()
            self._link.send(Kind.ECHO, bytes(part), head=pack_number(number))
            if self._link.is_full:
                self._room.clear()
                await self._room.wait()
        assert done is not None
        await done
        return loop.time() - started_s

    def close(self) -> None:
        self._link.end(LinkRefused("measured"))
        for waiting in self._waited.values():
            waiting.cancel()

    def _on_room(self) -> None:
        self._room.set()

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind is Kind.ECHO:
            number, _ = read_numbered(frame.body, frame.kind)
            waiting = self._waited.pop(number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
            return
        self.was_refused = frame.kind is Kind.REFUSED
        self._call.hears(frame)

    def _on_end(self, error: ProjectError) -> None:
        self._call.end(error)
        self._room.set()
        for waiting in self._waited.values():
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # of all of them only the last is waited for
