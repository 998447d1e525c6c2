"""Two cables between a main host and a worker: one for tensors, and the steady one for control."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, eventually
from lab.cables import Cabled, cabled

pytestmark = pytest.mark.netns

STEADY, FAST = 0, 1
SLOW_MBIT_PER_S = 40


@pytest.fixture
def hosts(cluster: Cluster) -> Iterator[Cabled]:
    """A slow cable that is there from the start, and carries control."""
    with cabled(cluster) as made:
        made.plug(STEADY, mbit_per_s=SLOW_MBIT_PER_S)
        yield made


async def test_the_faster_cable_carries_tensors_and_a_pulled_one_is_done_without(
    hosts: Cabled, random_model: Path
) -> None:
    main, worker = hosts.main, hosts.worker
    hosts.plug(FAST)
    await hosts.up("--join-host", main.address(STEADY))
    await hosts.join()
    device = await hosts.wire_in_use(worker.address(FAST))
    assert device["address"] == worker.address(STEADY)
    rates = {wire["far"]: wire["up_bytes_per_s"] for wire in device["wires"]}
    assert rates[worker.address(FAST)] > 4 * rates[worker.address(STEADY)]

    before = [worker.received_bytes(cable) for cable in (STEADY, FAST)]
    record = await hosts.launch(random_model, "first")
    after = [worker.received_bytes(cable) for cable in (STEADY, FAST)]
    weight_bytes = record["links"][0]["weight_bytes"]
    assert weight_bytes > 1 << 20
    assert after[FAST] - before[FAST] > weight_bytes
    assert after[STEADY] - before[STEADY] < weight_bytes / 4
    (used,) = record["workers"]
    assert used["link"].startswith(f"{worker.address(FAST)}:")
    assert worker.address(STEADY) in used["wire"]
    assert any(used["wire"] == reason for reason in record["plan"]["reasons"])

    # The cable is pulled while it serves: the launch fails, and the next goes over the steady one.
    hosts.pull(FAST)

    async def serves_again() -> bool:
        deployment = await hosts.call("/api/deployments/first")
        return bool(deployment["state"] == "ready" and deployment["launch_id"] > record["id"])

    await eventually(serves_again, within_s=90, what="it is served over the steady cable")
    again = await hosts.call("/api/deployments/first")
    (used,) = (await hosts.call(f"/api/launches/{again['launch_id']}"))["workers"]
    assert used["link"].startswith(f"{worker.address(STEADY)}:")
    await hosts.stop("first")
    hosts.push_in(FAST)
    await hosts.wire_in_use(worker.address(FAST), within_s=120)


async def test_a_cable_that_was_pulled_a_moment_ago_costs_seconds_and_no_launch(
    hosts: Cabled, demo_model: Path
) -> None:
    """The wire is chosen still, since nobody has looked since."""
    worker = hosts.worker
    hosts.plug(FAST)
    await hosts.up("--join-host", hosts.main.address(STEADY))
    await hosts.join()
    await hosts.wire_in_use(worker.address(FAST))
    hosts.pull(FAST)
    record = await hosts.launch(demo_model, "first")
    (used,) = record["workers"]
    assert used["link"].startswith(f"{worker.address(STEADY)}:")
    # Unless the agent has told already that the address is gone.
    if used["wire"]:
        assert worker.address(FAST) in used["wire"]


async def test_without_a_link_the_rpc_server_listens_on_the_chosen_wire(
    hosts: Cabled, demo_model: Path
) -> None:
    worker = hosts.worker
    hosts.plug(FAST)
    await hosts.up("--join-host", hosts.main.address(STEADY))
    await hosts.join()
    await hosts.wire_in_use(worker.address(FAST))
    record = await hosts.launch(demo_model, "first", transport="direct")
    (used,) = record["workers"]
    assert used["host"] == worker.address(FAST)
    assert f"{used['host']}:{used['port']}" in worker.listening()
    assert used["environment"]["GGML_RPC_NO_RDMA"] == "1"
    assert record["environment"]["GGML_RPC_NO_RDMA"] == "1"
    await hosts.stop("first")
    hosts.pull(FAST)
    record = await hosts.launch(demo_model, "second", transport="direct")
    assert record["workers"][0]["host"] == worker.address(STEADY)


async def test_who_chooses_an_address_gets_it_and_keeps_it(hosts: Cabled, demo_model: Path) -> None:
    worker = hosts.worker
    hosts.plug(FAST)
    supervisor = await hosts.up("--join-host", hosts.main.address(STEADY))
    await hosts.join()
    await hosts.wire_in_use(worker.address(FAST))
    slow = worker.address(STEADY)
    listed = await hosts.command("devices", "wires", "worker", "--json")
    assert [wire["far"] for wire in listed["worker"]] == [worker.address(FAST), slow]
    changed = await hosts.command("devices", "wire", "worker", slow, "--json")
    assert (changed["wire"], changed["wires"][0]["far"]) == (slow, slow)
    record = await hosts.launch(demo_model, "first")
    assert record["workers"][0]["link"].startswith(f"{slow}:")
    assert "you chose it" in record["workers"][0]["wire"]
    await hosts.stop("first")

    # It outlives a restart; and without it the fastest is used again.
    code = (await hosts.call("/api/join-code", {}))["code"]
    join_port = code.partition("/")[0].rpartition(":")[2]
    supervisor.stop(within_s=40)
    await hosts.up("--join-host", hosts.main.address(STEADY), SUPERVISOR_JOIN_PORT=join_port)
    device = await hosts.wire_in_use(slow)
    assert device["wire"] == slow
    await hosts.command("devices", "wire", "worker", "auto", "--json")
    await hosts.wire_in_use(worker.address(FAST))


async def test_everybody_listens_at_named_private_addresses_that_come_and_go(
    hosts: Cabled,
) -> None:
    main, worker = hosts.main, hosts.worker
    hosts.plug(FAST)
    # One address that must never be listened at, on the same cable.
    for host in (main, worker):
        public = f"9.9.9.{host.last_byte}/24"
        host.inside("ip", "addr", "add", public, "dev", "eth1")
    host_route = ["ip", "route", "add", "default", "via", worker.address(STEADY), "dev", "eth0"]
    main.inside(*host_route)
    await hosts.up()
    code = (await hosts.call("/api/join-code", {}))["code"]
    endpoints = code.partition("/")[0].split(",")
    assert [each.rpartition(":")[0] for each in endpoints] == [
        main.address(STEADY),
        main.address(FAST),
    ]
    assert len({each.rpartition(":")[2] for each in endpoints}) == 1
    assert main.listening() == {*endpoints, hosts.url.removeprefix("http://")}
    await hosts.join()
    device = await hosts.wire_in_use(worker.address(FAST))
    rest = f"{worker.address(STEADY)}:{device['rest_port']}"
    port = device["link_port"]
    links = {f"{worker.address(cable)}:{port}" for cable in (STEADY, FAST)}
    assert worker.listening() == {rest, *links}

    worker.inside("ip", "addr", "del", f"{worker.address(FAST)}/24", "dev", "eth1")

    async def only_one() -> bool:
        return worker.listening() == {rest, f"{worker.address(STEADY)}:{port}"}

    await eventually(only_one, within_s=90, what="the agent listens at the one address")
    await hosts.wire_in_use(worker.address(STEADY))


async def test_rdma_that_is_required_and_not_there_refuses_the_launch(
    hosts: Cabled, demo_model: Path
) -> None:
    await hosts.up("--join-host", hosts.main.address(STEADY), SUPERVISOR_RDMA="require")
    await hosts.join()
    failed = await hosts.settled(demo_model, "first", transport="direct")
    assert (failed["state"], failed["error_code"]) == ("failed", "rdma_unavailable")
    assert "the main host has no RDMA device" in failed["reason"]


async def test_an_agent_that_is_given_an_address_listens_nowhere_else(hosts: Cabled) -> None:
    worker = hosts.worker
    hosts.plug(FAST)
    await hosts.up("--join-host", hosts.main.address(STEADY))
    await hosts.join("--host", worker.address(STEADY))
    device = await hosts.wire_in_use(worker.address(STEADY))
    assert [wire["far"] for wire in device["wires"]] == [worker.address(STEADY)]
    assert {each.rpartition(":")[0] for each in worker.listening()} == {worker.address(STEADY)}
