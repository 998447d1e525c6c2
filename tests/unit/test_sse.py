"""Work that is watched as server-sent events."""

import asyncio
from collections.abc import Callable

import pytest

from supervisor.api import sse
from supervisor.errors import DeviceUnknown


async def test_updates_come_in_order_and_the_result_is_last() -> None:
    async def work(tell: Callable[[int], None]) -> str:
        tell(1)
        await asyncio.sleep(0)
        tell(2)
        return "done"

    stream = sse.working(work, shown=lambda n: {"n": n}, answered=lambda text: [text])
    events = [(event.event, event.data) async for event in stream]
    assert events == [("progress", {"n": 1}), ("progress", {"n": 2}), ("result", ["done"])]


async def test_an_expected_error_is_the_last_event() -> None:
    async def work(tell: Callable[[int], None]) -> str:
        raise DeviceUnknown("no device 'x'")

    stream = sse.working(work, shown=int, answered=str)
    ((name, body),) = [(event.event, event.data) async for event in stream]
    assert name == "problem"
    assert body == {"code": "device_unknown", "status": 404, "detail": "no device 'x'"}


async def test_a_bug_is_raised() -> None:
    async def work(tell: Callable[[int], None]) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        [event async for event in sse.working(work, shown=int, answered=str)]


async def test_leaving_ends_the_work() -> None:
    ended = asyncio.Event()

    async def work(tell: Callable[[int], None]) -> str:
        tell(1)
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return ""

    stream = sse.working(work, shown=int, answered=str)
    assert (await anext(stream)).event == "progress"
    await stream.aclose()
    assert ended.is_set()
