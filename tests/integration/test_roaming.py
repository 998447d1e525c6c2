"""A device whose address changes while its agent runs: another Wi-Fi, another cable."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, eventually
from lab.cables import Cabled, cabled, run

from supervisor.demo_model import SENTENCE

pytestmark = pytest.mark.netns


@pytest.fixture
def hosts(cluster: Cluster) -> Iterator[Cabled]:
    with cabled(cluster) as made:
        made.plug(0)
        yield made


async def test_a_device_with_another_address_is_found_there_and_serves(
    hosts: Cabled, demo_model: Path
) -> None:
    await hosts.up("--join-host", hosts.main.address(0))
    await hosts.join()
    old = hosts.worker.address(0)
    assert (await hosts.device())["address"] == old
    await hosts.launch(demo_model, "before")

    new = old.rpartition(".")[0] + ".77"
    namespace = hosts.worker.namespace
    run("ip", "-n", namespace, "addr", "add", f"{new}/24", "dev", "eth0")
    run("ip", "-n", namespace, "addr", "del", f"{old}/24", "dev", "eth0")
    # The second address of a network goes with the first, as if it had never been given.
    if f"{new}/" not in run("ip", "-n", namespace, "addr", "show", "dev", "eth0"):
        run("ip", "-n", namespace, "addr", "add", f"{new}/24", "dev", "eth0")

    async def is_there() -> bool:
        device = await hosts.device()
        return bool(device["address"] == new and device["state"] == "ready")

    await eventually(is_there, within_s=60, what="the device is ready at its new address")

    async def serves_again() -> bool:
        deployment = await hosts.call("/api/deployments/before")
        return bool(deployment["state"] == "ready" and deployment["launch_id"] > 1)

    await eventually(serves_again, within_s=90, what="it is served again")
    body = {"model": "before", "prompt": "Hello", "max_tokens": 128, "temperature": 0}
    answer = await hosts.call("/v1/completions", body)
    assert answer["choices"][0]["text"].strip() == SENTENCE
    listening = {each for each in hosts.worker.listening() if not each.startswith("127.")}
    assert any(each.startswith(f"{new}:") for each in listening)
    assert f"{old}:{(await hosts.device())['rest_port']}" not in listening
