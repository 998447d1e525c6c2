"""Metrics: what a scrape says, what it never does, and that the document says the same."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from agents.contract import DeviceFacts, RpcServerStatus, WorkerState
from supervisor.api.metrics_api import Metrics, create_metrics_router
from supervisor.core.entities import (
    AgentId,
    Cause,
    Deployment,
    DeploymentId,
    DeploymentSpec,
    Device,
    LaunchId,
    LinkView,
)
from supervisor.core.gateway_routes import ROUTES
from supervisor.core.lifecycle import State
from supervisor.core.membership import DeviceCondition
from supervisor.core.request_record import RequestRecord
from supervisor.service.events import EventBus
from supervisor.service.request_log import LaneCount

METRICS_MD = Path(__file__).parents[2] / "docs" / "metrics.md"

LINK = LinkView(
    device="phone",
    state="serving",
    round_trip_ms=2.5,
    weight_bytes=300,
    saved_bytes=100,
    seeded_bytes=50,
    sent_bytes=1000,
    received_bytes=10,
    wire_share=0.25,
    wire_s=1.0,
    compute_s=3.0,
)
FACTS = DeviceFacts(
    "id",
    "phone",
    "android",
    memory_total_bytes=800,
    memory_available_bytes=200,
    battery_percent=55.0,
    battery_charging=True,
    temperature_c=41.5,
)
PHONE = Device(
    id=AgentId("id"),
    name="phone",
    address="10.0.0.7",
    rest_port=8102,
    state="ready",
    silent_s=1.5,
    facts=FACTS,
    rpc_server=RpcServerStatus(WorkerState.READY),
    round_trip_ms=4.0,
)
CAUSE = Cause(code="worker_lost", sentence="it is gone")


def deployment(state: State = State.READY, **more: Any) -> Deployment:
    given: dict[str, Any] = {"id": DeploymentId("d"), "launch_id": LaunchId(1), **more}
    return Deployment(spec=DeploymentSpec(model="/m.gguf"), state=state, **given)


def record(**more: Any) -> RequestRecord:
    given = {
        "deployment": "d",
        "path": "/v1/chat/completions",
        "caller": "local",
        "status": 200,
        "total_s": 2.0,
        **more,
    }
    return RequestRecord(at="2026-10-01T00:00:00.000+00:00", **given)


class World:
    """Metrics of deployments and devices that the test names."""

    def __init__(self) -> None:
        self.deployments: list[Deployment] = []
        self.devices: list[Device] = []
        self.lanes: list[LaneCount] = []
        self.bus = EventBus()
        self.metrics = Metrics(
            lambda: self.deployments,
            lambda: self.devices,
            self.bus,
            lambda: self.lanes,
        )

    @asynccontextmanager
    async def counting(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.metrics.run())
        await asyncio.sleep(0)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def publish(self, each: Deployment) -> None:
        """What the reconciler tells whenever a deployment changes."""
        self.deployments = [each]
        self.bus.publish("deployment", each.model_dump(mode="json"))
        await asyncio.sleep(0.001)

    async def scrape(self) -> "Scrape":
        return Scrape(self.metrics.text().decode())


class Scrape:
    """What a scrape says."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = list(text_string_to_metric_families(text))

    def value(self, name: str, **labels: str) -> float | None:
        """Of one sample; ``None``: nothing is said."""
        found = [
            sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        assert len(found) <= 1, f"{name} {labels} is told twice"
        return found[0] if found else None

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """All samples of a metric, by the values of their labels in the order of their names."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
            if sample.name == name
        }

    def shapes(self) -> dict[str, tuple[str, frozenset[str]]]:
        """Type and labels by name, as in the document; samples without any have no labels."""
        found = {}
        for family in self.families:
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = {label for sample in family.samples for label in sample.labels}
            found[name] = family.type, frozenset(labels - {"le"})
        return found


def documented() -> dict[str, tuple[str, frozenset[str]]]:
    """The same, as docs/metrics.md has it."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", METRICS_MD.read_text(), re.MULTILINE)
    names = [name for name, _, _ in rows]
    assert len(set(names)) == len(names)
    return {name: (kind, _labels(text)) for name, kind, text in rows}


def _labels(text: str) -> frozenset[str]:
    return frozenset() if text == "-" else frozenset(text.split(", "))


@pytest.fixture
def world() -> World:
    return World()


async def test_the_document_and_a_scrape_tell_the_same(world: World) -> None:
    async with world.counting():
        await world.publish(deployment(launch_id=None))
        counted: dict[str, Any] = {"tokens_per_second": 4.0, "generated_tokens": 7}
        counted["generated_s"] = 1.5
        await world.publish(deployment(links=(LINK,), **counted))
        world.devices = [PHONE]
        world.lanes = [LaneCount("d", 1, 2, 4)]
        world.metrics.note(record(first_token_s=0.1, tokens_per_s=9.0))
        found = (await world.scrape()).shapes()
    assert sorted(set(found) - set(documented())) == [], "not documented"
    assert sorted(set(documented()) - set(found)) == [], "documented and not there"
    assert found == documented()


async def test_names_are_what_prometheus_asks_for(world: World) -> None:
    """Prefix, base units, ``_total`` for counters and nothing else; a text of help for each."""
    shapes = (await world.scrape()).shapes()
    assert len(shapes) > 40
    for name, (kind, _) in shapes.items():
        assert name.startswith(("supervisor_", "process_", "python_"))
        assert name.endswith("_total") == (kind == "counter")
        assert not re.search(r"_(s|ms|milliseconds|kib|mib|percent|count|sum|bucket)$", name)
    help_of = dict(re.findall(r"^# HELP (\w+) (.*)$", (await world.scrape()).text, re.MULTILINE))
    assert help_of.keys() == shapes.keys()
    assert all(help_of.values())


async def test_two_supervisors_in_one_process_count_for_themselves(world: World) -> None:
    other = World()
    world.metrics.note(record())
    assert (await world.scrape()).of("supervisor_requests_total")
    assert not (await other.scrape()).of("supervisor_requests_total")
    known = {family.name for family in prometheus_client.REGISTRY.collect()}
    assert not [name for name in known if name.startswith("supervisor")]


async def test_over_http(world: World) -> None:
    app = FastAPI()
    app.include_router(create_metrics_router(world.metrics))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        answer = await http.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "supervisor_build_info" in answer.text


# -- requests --------------------------------------------------------------------------------


async def test_a_request_is_counted_once_in_everything(world: World) -> None:
    world.metrics.note(
        record(
            queue_s=0.5,
            first_token_s=0.75,
            total_s=2.0,
            prompt_tokens=100,
            cached_tokens=80,
            generated_tokens=30,
            tokens_per_s=24.0,
            retries=2,
            resumed=1,
        )
    )
    said = await world.scrape()
    path = "/v1/chat/completions"
    assert said.of("supervisor_requests_total") == {("d", path, "200"): 1.0}
    for name, value in {
        "request_prompt_tokens_total": 100,
        "request_cached_tokens_total": 80,
        "request_generated_tokens_total": 30,
        "request_retries_total": 2,
        "request_resumed_total": 1,
        "request_queue_seconds_sum": 0.5,
        "time_to_first_token_seconds_sum": 0.75,
        "request_duration_seconds_sum": 2.0,
        "request_tokens_per_second_sum": 24.0,
        "request_duration_seconds_count": 1,
    }.items():
        assert said.value(f"supervisor_{name}", deployment="d") == value, name
    buckets = said.of("supervisor_request_duration_seconds_bucket")
    assert buckets["d", "1.0"] == 0.0
    assert buckets["d", "2.5"] == buckets["d", "+Inf"] == 1.0


async def test_what_nobody_knows_of_a_request_is_not_counted(world: World) -> None:
    """Refused ones have no first token: they would make all others look faster."""
    world.metrics.note(record(status=503, deployment="", code="waited_too_long"))
    world.metrics.note(record())
    said = await world.scrape()
    assert said.value("supervisor_request_duration_seconds_count", deployment="") == 1
    for name in ("time_to_first_token_seconds", "request_tokens_per_second"):
        assert sum(said.of(f"supervisor_{name}_count").values()) == 0
    assert sum(said.of("supervisor_request_generated_tokens_total").values()) == 0


async def test_strangers_cannot_make_series(world: World) -> None:
    for number in range(300):
        world.metrics.note(record(path=f"/v1/{number}", status=404, caller=f"key-{number}"))
    for method, path in ROUTES:
        world.metrics.note(record(path=path, caller=method))
    said = await world.scrape()
    counted = said.of("supervisor_requests_total")
    assert counted["d", "other", "404"] == 300
    assert len(counted) == 1 + len({path for _, path in ROUTES})
    assert "key-" not in said.text


async def test_lanes_are_read_at_the_moment(world: World) -> None:
    world.lanes = [LaneCount("d", active=2, waiting=5, slots=2), LaneCount("e", 0, 0, 4)]
    said = await world.scrape()
    assert said.of("supervisor_requests_active") == {("d",): 2, ("e",): 0}
    assert said.of("supervisor_requests_waiting") == {("d",): 5, ("e",): 0}
    assert said.of("supervisor_slots") == {("d",): 2, ("e",): 4}
    world.lanes = []
    assert (await world.scrape()).of("supervisor_slots") == {}


# -- deployments -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", list(State))
async def test_a_deployment_is_in_one_state(world: World, state: State) -> None:
    world.deployments = [deployment(state, failures=3, tokens_per_second=4.5, slow="slow: ...")]
    said = await world.scrape()
    states = said.of("supervisor_deployment_state")
    assert states == {("d", str(each)): float(each is state) for each in State}
    assert said.value("supervisor_deployment_failures", deployment="d") == 3
    is_ready = state is State.READY
    speed = said.value("supervisor_deployment_tokens_per_second", deployment="d")
    assert speed == (4.5 if is_ready else None), "nobody generates otherwise"
    assert said.value("supervisor_deployment_slow", deployment="d") == (1 if is_ready else None)


async def counted(world: World) -> tuple[float | None, float | None]:
    """Launches and, among them, restarts."""
    said = await world.scrape()
    both = (f"supervisor_deployment_{name}_total" for name in ("launches", "restarts"))
    launches, restarts = (said.value(name, deployment="d") for name in both)
    return launches, restarts


async def test_launches_and_restarts_are_counted(world: World) -> None:
    starting, ready = State.STARTING, State.READY
    async with world.counting():
        await world.publish(deployment(State.PENDING, launch_id=None))
        assert await counted(world) == (0, 0)
        for phase in ("workers", "verify", "load"):
            await world.publish(deployment(starting, phase=phase))
        await world.publish(deployment(ready))
        assert await counted(world) == (1, 0)
        await world.publish(deployment(State.BACKOFF, cause=CAUSE))
        await world.publish(deployment(starting, launch_id=LaunchId(2), cause=CAUSE))
        await world.publish(deployment(ready, launch_id=LaunchId(2)))
        assert await counted(world) == (2, 1)
        await world.publish(deployment(State.STOPPED, launch_id=LaunchId(2)))
        await world.publish(deployment(starting, launch_id=LaunchId(5)))
        assert await counted(world) == (3, 1), "somebody asked for it"
        world.bus.publish("deployment_removed", {"id": "d"})
        await world.publish(deployment(State.PENDING, launch_id=None))
        assert await counted(world) == (0, 0)


async def test_a_launch_that_was_taken_over_is_not_one_of_ours(world: World) -> None:
    async with world.counting():
        await world.publish(deployment(State.READY, launch_id=LaunchId(41)))
        assert await counted(world) == (0, 0)
        await world.publish(deployment(State.STARTING, launch_id=LaunchId(42), cause=CAUSE))
        assert await counted(world) == (1, 1)


async def test_launches_are_counted_although_we_lag_behind(world: World) -> None:
    async with world.counting():
        await world.publish(deployment(State.STARTING, launch_id=None))
        body = deployment(State.STARTING).model_dump(mode="json")
        for _ in range(5000):  # more than anybody is given to catch up with
            world.bus.publish("deployment", body)
        world.deployments = [deployment(State.STARTING, launch_id=LaunchId(2))]
        await asyncio.sleep(0.05)
        assert await counted(world) == (2, 0)
        await world.publish(deployment(State.STARTING, launch_id=LaunchId(3)))
        assert await counted(world) == (3, 0)


# -- engines ---------------------------------------------------------------------------------


def tokens(said: Scrape, name: str = "d") -> float | None:
    return said.value("supervisor_engine_generated_tokens_total", deployment=name)


async def test_what_the_engine_has_done_is_told(world: World) -> None:
    world.deployments = [deployment(generated_tokens=7, generated_s=1.5)]
    said = await world.scrape()
    assert tokens(said) == 7
    assert said.value("supervisor_engine_generation_seconds_total", deployment="d") == 1.5


async def test_an_engine_that_said_nothing_yet_has_no_zero(world: World) -> None:
    world.deployments = [deployment(State.STARTING)]
    assert tokens(await world.scrape()) is None


# -- links and devices -----------------------------------------------------------------------


async def test_links_are_told_in_base_units(world: World) -> None:
    other = LINK.model_copy(update={"device": "tablet", "round_trip_ms": None, "wire_share": None})
    world.deployments = [deployment(links=(LINK, other))]
    said = await world.scrape()
    for name, value in {
        "sent_bytes_total": 1000,
        "received_bytes_total": 10,
        "weight_bytes_total": 300,
        "saved_bytes_total": 100,
        "seeded_bytes_total": 50,
        "wire_seconds_total": 1,
        "compute_seconds_total": 3,
        "wire_ratio": 0.25,
        "round_trip_seconds": 0.0025,
    }.items():
        found = said.value(f"supervisor_link_{name}", deployment="d", device="phone")
        assert found == pytest.approx(value), name
    assert said.of("supervisor_link_round_trip_seconds").keys() == {("d", "phone")}
    assert len(said.of("supervisor_link_sent_bytes_total")) == 2


async def test_a_counter_never_falls_but_when_it_begins_anew(world: World) -> None:
    """The wire's time is a difference, and Prometheus counts all of it again after a fall."""

    async def wire(wire_s: float, launch: int = 1) -> float | None:
        link = LINK.model_copy(update={"wire_s": wire_s})
        world.deployments = [deployment(links=(link,), launch_id=LaunchId(launch))]
        said = await world.scrape()
        return said.value("supervisor_link_wire_seconds_total", deployment="d", device="phone")

    assert [await wire(each) for each in (5.0, 4.9999, 5.5)] == [5.0, 5.0, 5.5]
    assert await wire(0.25, launch=2) == 0.25


async def test_a_device_is_told_in_base_units(world: World) -> None:
    world.devices = [PHONE]
    said = await world.scrape()
    for name, value in {
        "up": 1,
        "silent_seconds": 1.5,
        "round_trip_seconds": 0.004,
        "rpc_server_running": 1,
        "memory_total_bytes": 800,
        "memory_available_bytes": 200,
        "battery_ratio": 0.55,
        "battery_charging": 1,
        "temperature_celsius": 41.5,
    }.items():
        assert said.value(f"supervisor_device_{name}", device="phone") == pytest.approx(value), name


@pytest.mark.parametrize("state", list(DeviceCondition))
async def test_a_device_is_in_one_state(world: World, state: DeviceCondition) -> None:
    world.devices = [PHONE.model_copy(update={"state": str(state)})]
    said = await world.scrape()
    states = said.of("supervisor_device_state")
    assert states == {("phone", str(each)): float(each is state) for each in DeviceCondition}
    assert said.of("supervisor_device_up") == {("phone",): state is DeviceCondition.READY}
    is_lost = state is DeviceCondition.LOST
    memory = said.value("supervisor_device_memory_available_bytes", device="phone")
    assert memory == (None if is_lost else 200), "what it had is not what it has"
    running = said.value("supervisor_device_rpc_server_running", device="phone")
    assert running == (None if is_lost else 1)
    assert said.value("supervisor_device_silent_seconds", device="phone") == 1.5


def _names(said: Scrape, device: str) -> Iterable[str]:
    for family in said.families:
        if any(sample.labels.get("device") == device for sample in family.samples):
            yield family.name.removeprefix("supervisor_device_")


async def test_what_a_device_does_not_know_is_left_out(world: World) -> None:
    unknown = {
        "facts": DeviceFacts("id", "phone", "linux"),
        "round_trip_ms": None,
        "rpc_server": RpcServerStatus(WorkerState.STOPPED),
    }
    full = {"name": "full", "facts": replace(FACTS, memory_available_bytes=0)}
    world.devices = [PHONE.model_copy(update=unknown), PHONE.model_copy(update=full)]
    said = await world.scrape()
    assert set(_names(said, "phone")) == {"state", "up", "silent_seconds", "rpc_server_running"}
    assert said.value("supervisor_device_rpc_server_running", device="phone") == 0
    assert said.value("supervisor_device_memory_available_bytes", device="full") == 0


async def test_a_device_that_was_never_heard_is_not_silent_for_thirty_years(world: World) -> None:
    unknown = {"facts": None, "rpc_server": None, "round_trip_ms": None}
    lost = {"state": "lost", "silent_s": 1e9}
    world.devices = [PHONE.model_copy(update={**unknown, **lost})]
    said = await world.scrape()
    assert set(_names(said, "phone")) == {"state", "up"}
    assert said.value("supervisor_device_up", device="phone") == 0
