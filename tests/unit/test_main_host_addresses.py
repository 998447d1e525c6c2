"""A main host with several addresses: the agent takes the first that answers, and others after."""

from pathlib import Path

import pytest
from lab.joined import LOOPBACK, JoinedHost
from lab.links import emulated_link

from agents.contract import DeviceFacts, Heartbeat, RpcServerStatus, WorkerState
from agents.errors import MainHostUnreachable
from agents.join import Identity, JoinCode, MainHost


def beat() -> Heartbeat:
    facts = DeviceFacts("pixel", "pixel", "linux")
    return Heartbeat(facts, RpcServerStatus(WorkerState.STOPPED), 8102)


async def test_an_agent_goes_on_at_another_address_and_returns_to_the_first(
    tmp_path: Path,
) -> None:
    host = JoinedHost(tmp_path)
    await host.start()
    try:
        async with emulated_link(host.port) as second:
            async with emulated_link(host.port) as first:
                endpoints = tuple(f"{LOOPBACK}:{link.port}" for link in (first, second))
                token, _ = host.registry.new_token(hours=1)
                code = JoinCode(endpoints, token, host.authority.fingerprint)
                main_host = MainHost(JoinCode.parse(str(code)), Identity(tmp_path / "identity"))
                await main_host.join("pixel", "pixel")
                await main_host.heartbeat(beat())
                assert (main_host.endpoint, main_host.has_roamed) == (endpoints[0], False)
            with pytest.raises(MainHostUnreachable, match=endpoints[0]):
                await main_host.heartbeat(beat())
            await main_host.heartbeat(beat())
            assert (main_host.endpoint, main_host.has_roamed) == (endpoints[1], True)
            await second.cut()
            await second.black_hole()
        # Nobody answers anywhere: every other attempt is at the steady one.
        tried = []
        for _ in range(4):
            with pytest.raises(MainHostUnreachable) as raised:
                await main_host.heartbeat(beat())
            tried.append(str(raised.value).partition(": ")[0])
        assert set(tried) == set(endpoints)
        await main_host.close()
    finally:
        await host.close()


async def test_with_one_address_there_is_nothing_to_turn_to(tmp_path: Path) -> None:
    code = JoinCode((f"{LOOPBACK}:1",), "token", "f" * 43)
    main_host = MainHost(code, Identity(tmp_path))
    assert (main_host.endpoint, main_host.has_roamed) == (f"{LOOPBACK}:1", False)
