"""Figures of deployments, lanes, links and devices, as families of metrics."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from agents.contract import DeviceFacts, WorkerState
from supervisor.api.launch_counter import LaunchCounter
from supervisor.core.entities import Deployment, Device, LinkView
from supervisor.core.lifecycle import State
from supervisor.core.membership import DeviceCondition
from supervisor.service.request_log import LaneCount

T = TypeVar("T")
Row = tuple[tuple[str, ...], T]


@dataclass(frozen=True, slots=True)
class Figure(Generic[T]):
    """One number of a thing; ``None``: it is not known, and nothing is said of it."""

    name: str
    text: str
    read: Callable[[T], float | None]


def families(
    figures: Iterable[Figure[T]], prefix: str, labels: Sequence[str], rows: Sequence[Row[T]]
) -> Iterator[Metric]:
    """Each figure of all things. Those whose name says "total" only grow."""
    for figure in figures:
        counts = figure.name.endswith("_total")
        kind = CounterMetricFamily if counts else GaugeMetricFamily
        name = f"supervisor_{prefix}{figure.name}"
        made: CounterMetricFamily | GaugeMetricFamily = kind(name, figure.text, labels=labels)
        for values, thing in rows:
            number = figure.read(thing)
            if number is not None:
                made.add_metric(values, float(number))
        yield made


def states(
    name: str, text: str, label: str, states: Iterable[str], rows: Iterable[tuple[str, str]]
) -> Metric:
    """1 for the state that a thing is in, 0 for all others."""
    made = GaugeMetricFamily(name, text, labels=(label, "state"))
    for thing, present in rows:
        for state in states:
            made.add_metric((thing, state), float(state == present))
    return made


def _if_ready(deployment: Deployment, number: float | None) -> float | None:
    return number if deployment.state is State.READY else None


def deployment_figures(launches: LaunchCounter) -> tuple[Figure[Deployment], ...]:
    return (
        Figure("failures", "Failures in a row.", lambda d: d.failures),
        Figure("launches_total", "Launches.", launches.count),
        Figure("restarts_total", "Launches that nobody asked for.", launches.restarts),
        Figure(
            "tokens_per_second",
            "Speed of generation, as llama-server said last.",
            lambda d: _if_ready(d, d.tokens_per_second),
        ),
        Figure("slow", "1: slower than it was.", lambda d: _if_ready(d, bool(d.slow))),
    )


LANE: Final[tuple[Figure[LaneCount], ...]] = (
    Figure("requests_active", "Requests that have a slot.", lambda c: c.active),
    Figure("requests_waiting", "Requests that wait for a slot.", lambda c: c.waiting),
    Figure("slots", "Requests that can be answered at once.", lambda c: c.slots),
)

ENGINE: Final[tuple[Figure[Deployment], ...]] = (
    Figure(
        "generated_tokens_total",
        "Tokens that llama-server generated.",
        lambda d: d.generated_tokens,
    ),
    Figure(
        "generation_seconds_total",
        "Time that this took.",
        lambda d: d.generated_s,
    ),
)


# -- links and devices -----------------------------------------------------------------------

LINK: Final[tuple[Figure[LinkView], ...]] = (
    Figure("sent_bytes_total", "Bytes sent to the device.", lambda v: v.sent_bytes),
    Figure("received_bytes_total", "Bytes received from it.", lambda v: v.received_bytes),
    Figure("weight_bytes_total", "Weights that the device has.", lambda v: v.weight_bytes),
    Figure("saved_bytes_total", "Of them, those that did not travel.", lambda v: v.saved_bytes),
    Figure("seeded_bytes_total", "Weights sent ahead of llama-server.", lambda v: v.seeded_bytes),
    Figure("wire_seconds_total", "Waited for the device: the wire.", lambda v: v.wire_s),
    Figure("compute_seconds_total", "Waited for it: computing.", lambda v: v.compute_s),
    Figure("wire_ratio", "The wire's part of all that waiting.", lambda v: v.wire_share),
    Figure("round_trip_seconds", "Between its two ends.", lambda v: _per(v.round_trip_ms, 1000)),
)


def _per(number: float | None, parts: float) -> float | None:
    return None if number is None else number / parts


def _known(device: Device) -> DeviceFacts | None:
    """Its last word, if that is to be believed."""
    return None if device.state == DeviceCondition.LOST else device.facts


def _of_facts(read: Callable[[DeviceFacts], float | None]) -> Callable[[Device], float | None]:
    def read_known(device: Device) -> float | None:
        facts = _known(device)
        return None if facts is None else read(facts)

    return read_known


def _has_rpc_server(device: Device) -> float | None:
    status = device.rpc_server
    if status is None or _known(device) is None:
        return None
    return status.state is WorkerState.READY


DEVICE: Final[tuple[Figure[Device], ...]] = (
    Figure("up", "1: it is ready to be used.", lambda d: d.state == DeviceCondition.READY),
    Figure(
        "silent_seconds",
        "Since its last heartbeat.",
        lambda d: d.silent_s if d.facts is not None else None,
    ),
    Figure(
        "round_trip_seconds",
        "To its rpc-server, when that was measured last.",
        lambda d: _per(d.round_trip_ms, 1000),
    ),
    Figure("rpc_server_running", "1: its rpc-server answers.", _has_rpc_server),
    Figure("memory_total_bytes", "All memory.", _of_facts(lambda f: f.memory_total_bytes or None)),
    Figure(
        "memory_available_bytes",
        "Memory that may be taken.",
        _of_facts(lambda f: f.memory_available_bytes if f.memory_total_bytes else None),
    ),
    Figure(
        "battery_ratio",
        "Charge of its battery, from 0 to 1.",
        _of_facts(lambda f: _per(f.battery_percent, 100)),
    ),
    Figure("battery_charging", "1: it charges.", _of_facts(lambda f: f.battery_charging)),
    Figure("temperature_celsius", "Temperature.", _of_facts(lambda f: f.temperature_c)),
)
