"""What a deployment waits for: devices, and requests that are still answered."""

import asyncio
import time
from typing import NoReturn

from supervisor.core.entities import Plan
from supervisor.core.membership import DeviceCondition
from supervisor.service.attempt import Attempt
from supervisor.service.registry import Registry

_HEARD = (DeviceCondition.READY, DeviceCondition.PARKED)


async def other_devices(registry: Registry, pause_s: float) -> None:
    """Wait ``pause_s``, or until a device comes, goes or changes its state."""
    deadline_s = time.monotonic() + pause_s
    before = {device.id: device.state for device in registry.devices()}
    while (left_s := deadline_s - time.monotonic()) > 0:
        await registry.wait_changed(left_s)
        if {device.id: device.state for device in registry.devices()} != before:
            return


async def devices_of(plan: Plan | None, registry: Registry, limit_s: float) -> None:
    """After our restart: wait until the devices that served report again, for at most that long."""
    deadline_s = time.monotonic() + limit_s
    while plan is not None and (left_s := deadline_s - time.monotonic()) > 0:
        states = {device.id: device.state for device in registry.devices()}
        if all(states.get(a, DeviceCondition.READY) in _HEARD for a in plan.agent_ids):
            return
        await registry.wait_changed(left_s)


async def drained(attempt: Attempt, limit_s: float, hurry: asyncio.Event) -> None:
    """Let running requests end, for at most that long, and not while somebody is in a hurry."""
    draining = asyncio.create_task(attempt.drain(limit_s))
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, hurried):
        task.cancel()
    await asyncio.gather(draining, hurried, return_exceptions=True)


async def commands_only() -> NoReturn:
    """States without work wait for a command."""
    await asyncio.Event().wait()
    raise AssertionError
