"""Calls to an agent that is elsewhere by now."""

import asyncio
import socket

import pytest

from agents import tls
from supervisor.adapters.agent_client import AgentClient
from supervisor.errors import AgentUnreachable


async def test_a_client_that_is_closed_between_two_tries_is_no_error_of_ours() -> None:
    """The registry does that when a heartbeat comes from another port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        port = taken.getsockname()[1]
        client = AgentClient("id", "phone", "127.0.0.1", port, tls.unverified_context())
        asking = asyncio.create_task(client.facts())
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(AgentUnreachable, match="phone"):
            await asking
    with pytest.raises(AgentUnreachable, match=r"no longer at 127\.0\.0\.1"):
        await client.facts()
