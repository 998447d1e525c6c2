"""``GET /metrics``: all that can be counted, as Prometheus wants it; docs/metrics.md explains it.

Requests are counted as they end. Everything else is read when somebody asks, so that it costs
nothing until then, and nobody else is asked for it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from supervisor import __version__
from supervisor.api.launch_counter import LaunchCounter
from supervisor.api.metric_families import (
    DEVICE,
    ENGINE,
    LANE,
    LINK,
    Row,
    deployment_figures,
    families,
    states,
)
from supervisor.api.request_metrics import RequestMetrics
from supervisor.core.entities import Deployment, Device, LaunchId, LinkView
from supervisor.core.lifecycle import State
from supervisor.core.membership import DeviceCondition
from supervisor.service.events import EventBus
from supervisor.service.request_log import LaneCount

_MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Every Prometheus reads it; later versions of the format add nothing that we have."""


class Metrics:
    """Everything that ``GET /metrics`` tells, in a registry of its own."""

    def __init__(
        self,
        deployments: Callable[[], Sequence[Deployment]],
        devices: Callable[[], Sequence[Device]],
        bus: EventBus,
        lanes: Callable[[], Iterable[LaneCount]] = tuple,
    ) -> None:
        """``lanes``: how busy each deployment is now."""
        self._deployments = deployments
        self._devices = devices
        self._lanes = lanes
        self._bus = bus
        self._registry = CollectorRegistry()
        self._launches = LaunchCounter()
        self._of_deployment = deployment_figures(self._launches)
        self._wire_s: dict[tuple[str, LaunchId | None, str], float] = {}
        self.note: Final = RequestMetrics(self._registry).note
        """Counts a request; for :attr:`RequestLog.on_note`."""
        self._registry.register(_Collected(self._read))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    async def run(self) -> None:
        """Count launches. Runs for ever."""
        while True:
            with self._bus.subscribe() as changes:
                for each in self._deployments():  # what was missed, if we had lagged too far
                    has_cause = each.cause is not None
                    self._launches.saw(each.id, each.launch_id, is_repair=has_cause)
                async for change in changes:
                    self._launches.heard(change)

    def text(self) -> bytes:
        """All metrics as of now, in Prometheus' text format."""
        return generate_latest(_WithoutCreated(self._registry))

    def _read(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("supervisor_build_info", "Always 1.", labels=("version",))
        build.add_metric((__version__,), 1.0)
        yield build
        deployments = self._deployments()
        by_deployment: list[Row[Deployment]] = [((each.id,), each) for each in deployments]
        yield states(
            "supervisor_deployment_state",
            "1 for the state that the deployment is in.",
            "deployment",
            list(State),
            [(each.id, each.state) for each in deployments],
        )
        yield from families(self._of_deployment, "deployment_", ("deployment",), by_deployment)
        lanes = [((count.deployment,), count) for count in self._lanes()]
        yield from families(LANE, "", ("deployment",), lanes)
        yield from families(ENGINE, "engine_", ("deployment",), by_deployment)
        links = self._links(deployments)
        yield from families(LINK, "link_", ("deployment", "device"), links)
        yield from self._read_devices()

    def _read_devices(self) -> Iterator[Metric]:
        devices = self._devices()
        yield states(
            "supervisor_device_state",
            "1 for the state that the device is in.",
            "device",
            list(DeviceCondition),
            [(each.name, each.state) for each in devices],
        )
        rows = [((each.name,), each) for each in devices]
        yield from families(DEVICE, "device_", ("device",), rows)

    def _links(self, deployments: Iterable[Deployment]) -> list[Row[LinkView]]:
        """The time of the wire is a difference of two sums, which may shrink by a hair.

        Prometheus would take that for a new beginning, and count all of it once more.
        """
        links = {(d.id, d.launch_id, v.device): v for d in deployments for v in d.links}
        before = self._wire_s
        self._wire_s = {key: max(v.wire_s, before.get(key, 0.0)) for key, v in links.items()}
        return [
            ((key[0], key[2]), view.model_copy(update={"wire_s": self._wire_s[key]}))
            for key, view in links.items()
        ]


class _Collected(Collector):
    """What is read at the moment in which somebody asks."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


class _WithoutCreated(Collector):
    """The client adds to each counter when it was made, as one more metric, which nobody uses.

    It can be switched off for the whole process only.
    """

    def __init__(self, inner: Collector) -> None:
        self._inner = inner

    def collect(self) -> Iterable[Metric]:
        for metric in self._inner.collect():
            created = f"{metric.name}_created"
            metric.samples = [each for each in metric.samples if each.name != created]
            yield metric


def create_metrics_router(metrics: Metrics) -> APIRouter:
    """``/metrics``."""
    router = APIRouter()

    @router.get("/metrics", response_class=PlainTextResponse)
    async def read_metrics() -> Response:
        return PlainTextResponse(metrics.text(), media_type=_MEDIA_TYPE)

    return router
