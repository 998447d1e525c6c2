"""Writes a solution of the search out as a placement, with all its numbers."""

from collections.abc import Iterator, Sequence

from supervisor.core.planning import HOST, DeviceOffer, PlacedDevice, Placement
from supervisor.core.search_tables import Tables
from supervisor.core.search_values import Solution
from supervisor.core.speed import LinkSpeed, Output, Stage, predict


def placement_of(tables: Tables, devices: Sequence[DeviceOffer], solution: Solution) -> Placement:
    """Compute memory and times from the formulas themselves, not from the search's sums."""
    request = tables.request
    host = request.host
    times = predict(
        tables.model,
        _stages(tables, devices, solution),
        solution.output,
        host.speed,
        token_overhead_s=host.token_overhead_s,
        disk_bytes_per_s=host.disk_bytes_per_s,
        kind_of=tables.sizes.kind_of,
    )
    return Placement(
        devices=tuple(_placed(tables, devices, solution)),
        host=PlacedDevice(
            name=HOST,
            first_layer=0,
            layers=solution.host_layers,
            memory=tables.sizes.host_use(
                host, solution.host_layers, with_output=solution.output is Output.HOST
            ),
        ),
        output=solution.output,
        output_pattern=request.shape.output_pattern,
        run=tables.run,
        prompt_tokens=tables.model.prompt,
        users=request.goal.workload.users,
        times=times,
        cost_s=solution.cost,
    )


def _runs(tables: Tables, solution: Solution) -> Iterator[tuple[int, int, int]]:
    """Device, first layer, end; in order."""
    ends = [first for _, first in solution.runs[1:]] + [tables.sizes.shape.n_layers]
    for (device, first), end in zip(solution.runs, ends, strict=bool(solution.runs)):
        yield device, first, end


def _stages(tables: Tables, devices: Sequence[DeviceOffer], solution: Solution) -> list[Stage]:
    stages: list[Stage] = []
    if solution.host_layers:
        host = tables.request.host.speed
        stages.append(Stage(host, LinkSpeed(), 0, solution.host_layers))
    for device, first, end in _runs(tables, solution):
        offer = devices[device]
        stages.append(Stage(offer.speed, offer.link, first, end, offer.cached_layers))
    return stages


def _placed(
    tables: Tables, devices: Sequence[DeviceOffer], solution: Solution
) -> Iterator[PlacedDevice]:
    for device, first, end in _runs(tables, solution):
        output = solution.output if (device, first) == solution.runs[-1] else None
        yield PlacedDevice(
            name=devices[device].name,
            first_layer=first,
            layers=end - first,
            memory=tables.sizes.use(devices[device], first, end, output),
        )
