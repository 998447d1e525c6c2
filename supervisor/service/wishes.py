"""What an actor is asked for."""

import asyncio
from dataclasses import dataclass

from supervisor.core.entities import DeploymentSpec, Plan
from supervisor.core.lifecycle import Event


@dataclass(frozen=True, slots=True)
class Relaunch:
    """Stop what runs once its requests have ended, and launch it again."""

    reason: str
    plan: Plan | None
    """None: one is made when its turn comes."""
    planned_for: DeploymentSpec
    """The plan is not followed if the deployment has another one when its turn comes."""
    takes_spec: bool = False
    """From then on that is its spec; else it keeps its own."""
    is_repair: bool = False
    """Rather without a device that was named than not at all."""


@dataclass(frozen=True, slots=True)
class Command:
    """A wish, and who waits for it."""

    wish: Event | Relaunch
    done: asyncio.Future[None]
