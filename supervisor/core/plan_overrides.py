"""What the operator decided, checked against what there is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from supervisor.core.entities import MAX_REMOTE_DEVICES, LeftOut
from supervisor.core.memory import KV_TYPES
from supervisor.core.planning import HOST, DeviceOffer, Overrides, PlanRequest
from supervisor.core.speed import Output
from supervisor.errors import BadSplit, DeviceUnknown, NoDevices


@dataclass(frozen=True, slots=True)
class Choice:
    """The part of a search that is free: which devices, and what of them is fixed already."""

    devices: tuple[DeviceOffer, ...]
    outputs: frozenset[Output]
    host_may_hold: bool
    required: int = 0
    sequence: tuple[int, ...] = ()
    last: int | None = None
    split: tuple[int, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def only(self, devices: tuple[DeviceOffer, ...], required: int) -> "Choice":
        """The same choice among fewer devices."""
        last = None
        if self.last is not None and self.devices[self.last] in devices:
            last = devices.index(self.devices[self.last])
        return replace(self, devices=devices, required=required, last=last, left_out=())


def choice_of(request: PlanRequest) -> Choice:
    """Apply the overrides.

    Raises:
        DeviceUnknown: A name that is not among the devices.
        BadSplit: Overrides that contradict each other, the model or llama.cpp's limits.
        NoDevices: Nothing is left that could hold a layer.
    """
    overrides = request.overrides
    _check_values(overrides)
    named = _named(request)
    devices, beyond = (named, ()) if named is not None else _eligible(request)
    host_may_hold = request.host.may_hold_layers and HOST not in overrides.exclude
    if named is not None:
        host_may_hold = host_may_hold and HOST in {*overrides.devices, *overrides.order}
    if not devices and not host_may_hold:
        raise NoDevices("no device is left to hold the model; join one, or exclude fewer")
    devices, split = _checked_split(request, devices, is_named=named is not None)
    _check_count(devices)
    last = _pinned(overrides, devices)
    everyone = (1 << len(devices)) - 1
    return Choice(
        devices=devices,
        outputs=_outputs(request),
        host_may_hold=host_may_hold,
        required=everyone if named is not None else 0,
        sequence=tuple(range(len(devices))) if overrides.order else (),
        last=last,
        split=split,
        left_out=(*beyond, *_excluded(overrides)),
    )


def _check_values(overrides: Overrides) -> None:
    if overrides.kv_type is not None and overrides.kv_type not in KV_TYPES:
        raise BadSplit(
            f"{overrides.kv_type!r} is no cache type; choose one of {', '.join(sorted(KV_TYPES))}"
        )
    if overrides.order and overrides.devices and set(overrides.order) != set(overrides.devices):
        raise BadSplit(
            f"the order {','.join(overrides.order)} and the devices {','.join(overrides.devices)}"
            " name different devices; give one of them, or the same names"
        )
    chosen = overrides.order or overrides.devices
    if len(set(chosen)) < len(chosen):
        raise BadSplit(f"{','.join(chosen)} names a device twice; give each once")
    if both := set(chosen) & set(overrides.exclude):
        raise BadSplit(f"{', '.join(sorted(both))} is both chosen and excluded; drop one")


def _named(request: PlanRequest) -> tuple[DeviceOffer, ...] | None:
    """The devices that were asked for, in that order; ``None`` if none were."""
    overrides = request.overrides
    offers = {offer.name: offer for offer in request.devices}
    for name in (*overrides.devices, *overrides.order, *overrides.exclude):
        _known(name, offers)
    names = overrides.order or overrides.devices
    return tuple(offers[name] for name in names if name != HOST) if names else None


def _known(name: str, offers: dict[str, DeviceOffer]) -> None:
    if name not in offers and name != HOST:
        there = ", ".join(offers) or "none"
        raise DeviceUnknown(f"no device is called {name!r}; there are: {there}")


def _excluded(overrides: Overrides) -> Iterable[LeftOut]:
    names = (name for name in overrides.exclude if name != HOST)
    return (LeftOut(name=name, reason="you excluded it") for name in names)


def _eligible(
    request: PlanRequest,
) -> tuple[tuple[DeviceOffer, ...], tuple[LeftOut, ...]]:
    """The devices to choose from; of remote ones the most promising, up to the limit."""
    allowed = [d for d in request.devices if d.name not in request.overrides.exclude]
    remote = sorted((d for d in allowed if not d.link.is_local), key=lambda d: _rank(request, d))
    beyond = remote[MAX_REMOTE_DEVICES:]
    reason = f"llama.cpp schedules over at most {MAX_REMOTE_DEVICES} remote devices"
    left_out = tuple(LeftOut(name=device.name, reason=reason) for device in beyond)
    return tuple(d for d in allowed if d not in beyond), left_out


def _rank(request: PlanRequest, device: DeviceOffer) -> float:
    """Roughly the seconds per byte of weights, its round trip shared by all it can hold."""
    model = request.shape.weight_bytes
    holds = max(1, min(device.available_bytes, model))
    pinned = device.name == request.overrides.pin_output
    return 0.0 if pinned else 1 / device.speed.decode_bytes_per_s + device.link.rtt_s / holds


def _check_count(devices: Sequence[DeviceOffer]) -> None:
    remote = [device for device in devices if not device.link.is_local]
    if len(remote) > MAX_REMOTE_DEVICES:
        raise BadSplit(
            f"{len(remote)} remote devices: llama.cpp schedules over {MAX_REMOTE_DEVICES} at most,"
            f" and each one costs a round trip per token; exclude {remote[-1].name} and others"
        )


def _checked_split(
    request: PlanRequest, devices: tuple[DeviceOffer, ...], *, is_named: bool
) -> tuple[tuple[DeviceOffer, ...], tuple[int, ...]]:
    """Devices without a layer are dropped: they would cost a round trip for nothing."""
    split, total = request.overrides.split, request.shape.n_layers + 1
    if not split:
        return devices, ()
    names = ",".join(device.name for device in devices)
    if not is_named:
        raise BadSplit("a split needs the devices that it is for; name them in order")
    if len(split) != len(devices):
        raise BadSplit(
            f"the split has {len(split)} entries for {len(devices)} devices ({names});"
            " give one number of layers for each"
        )
    if any(count < 0 for count in split) or sum(split) != total:
        raise BadSplit(
            f"the split {','.join(map(str, split))} sums to {sum(split)}, but the model has"
            f" {total} layers to place ({request.shape.n_layers} and the output layer)"
        )
    _check_cuts(request, split)
    used = tuple((d, n) for d, n in zip(devices, split, strict=True) if n > 0)
    return tuple(d for d, _ in used), tuple(n for _, n in used)


def _check_cuts(request: PlanRequest, split: tuple[int, ...]) -> None:
    layer = 0
    for count in split[:-1]:
        layer += count
        if not request.shape.cut_is_allowed(layer):
            raise BadSplit(
                f"the split begins a device with layer {layer}, but layers from"
                f" {request.shape.last_cut + 2} on read the cache of those two before them;"
                f" keep layers {request.shape.last_cut} to {request.shape.n_layers - 1} together"
            )


def _pinned(overrides: Overrides, devices: tuple[DeviceOffer, ...]) -> int | None:
    name = overrides.pin_output
    if name is None or name == HOST:
        return None
    names = [device.name for device in devices]
    if name not in names:
        raise BadSplit(f"the output is pinned to {name!r}, which is not among {', '.join(names)}")
    if overrides.order and names[-1] != name:
        raise BadSplit(f"the output is pinned to {name}, but {names[-1]} is last in the order")
    return names.index(name)


def _outputs(request: PlanRequest) -> frozenset[Output]:
    pinned = request.overrides.pin_output
    if pinned == HOST:
        return frozenset({Output.HOST})
    on_device = {Output.LAST}
    if request.rules.allow_sampling_on_devices:
        on_device.add(Output.SAMPLED)
    return frozenset(on_device if pinned else {*on_device, Output.HOST})
