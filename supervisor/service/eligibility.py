"""Which devices may take part in a deployment now, by what they say and by what was learned."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from supervisor.core.entities import AgentId, DeploymentId, DeploymentSpec, Device, LeftOut
from supervisor.core.membership import DeviceCondition
from supervisor.core.obeying import Lessons, names_of
from supervisor.core.planning import HOST
from supervisor.core.repair import dropped_sentence, spec_for_repair
from supervisor.errors import (
    AgentUnreachable,
    DeviceExcluded,
    DeviceParked,
    WorkerBusy,
    WorkerIncompatible,
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a plan is wanted for."""

    spec: DeploymentSpec
    deployment: DeploymentId | None = None
    is_repair: bool = False
    """Rather without a device that was named than not at all."""
    without: frozenset[AgentId] = frozenset()
    """As if the operator had excluded these already."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Who may take part, what of the spec that leaves, and what there is to say about it."""

    spec: DeploymentSpec
    devices: tuple[Device, ...]
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Eligibility:
    """The devices of one moment, and how they are judged."""

    asked: Asked
    devices: tuple[Device, ...]
    find: Callable[[str], Device]
    lessons: Lessons
    with_aside: bool = False
    """Use those that are set aside: there is no plan without them."""
    silent: frozenset[AgentId] = frozenset()
    """Those whose agents did not answer just now."""

    def why_not(self, device: Device) -> str:
        """Why a device cannot take part, or nothing."""
        if self._is_excluded(device):
            return "you excluded it"
        if device.used_by not in (None, self.asked.deployment):
            return f"it serves deployment {device.used_by}"
        if device.state != DeviceCondition.READY:
            return device.reason or f"it is {device.state}"
        if device.id in self.silent:
            return "its agent does not answer"
        aside = "" if self.with_aside else self.lessons.why_aside(device)
        return self.lessons.why_excluded(device) or aside

    def usable(self) -> tuple[Device, ...]:
        """The devices that may take part."""
        return tuple(device for device in self.devices if not self.why_not(device))

    def wanted(self) -> tuple[Device, ...]:
        """Those of them that the operator's own choice allows."""
        spec = self.asked.spec
        named, excluded = set(_devices_of(named_devices(spec))), set(spec.exclude)
        return tuple(
            device
            for device in self.usable()
            if not excluded & {device.name, device.id}
            and (not named or named & {device.name, device.id})
        )

    def aside(self) -> tuple[Device, ...]:
        """The devices that are set aside."""
        return tuple(device for device in self.devices if self.lessons.why_aside(device))

    def choose(self) -> Choice:
        """The devices to plan with.

        Raises:
            DeviceUnknown, DeviceExcluded, DeviceParked, AgentUnreachable, WorkerIncompatible,
                WorkerBusy: A named device cannot take part.
        """
        spec, usable = self.asked.spec, self.usable()
        if self.asked.is_repair:
            spec = spec_for_repair(spec, names_of(usable), names_of(self.devices))
        left_out: Iterable[LeftOut] = ()
        if is_named := bool(named_devices(spec)):
            usable = self._named(spec)
        else:
            reasons = ((device, self.why_not(device)) for device in self.devices)
            left_out = (LeftOut(name=device.name, reason=why) for device, why in reasons if why)
        changed = dropped_sentence(self.asked.spec, spec)
        remarks = (
            *([changed, *self._why_dropped(spec)] if changed else []),
            *self._remarks(usable, is_named=is_named),
        )
        return Choice(spec, usable, tuple(left_out), remarks)

    def _named(self, spec: DeploymentSpec) -> tuple[Device, ...]:
        """Who names a device wants it, whatever became of it before."""
        found = {device.id: device for device in map(self.find, _devices_of(named_devices(spec)))}
        for device in found.values():
            self._refuse_unusable(device)
        return tuple(found.values())

    def _why_dropped(self, changed: DeploymentSpec) -> Iterator[str]:
        """Of the devices that a repair does without."""
        left = set(_devices_of(named_devices(changed)))
        named = set(_devices_of(named_devices(self.asked.spec))) - left
        for device in self.devices:
            if named & {device.name, device.id} and (why := self.why_not(device)):
                yield f"{device.name} is left out: {why}."

    def _is_excluded(self, device: Device) -> bool:
        return device.excluded or device.id in self.asked.without

    def _refuse_unusable(self, device: Device) -> None:
        name, lasting = device.name, (DeviceCondition.INCOMPATIBLE, DeviceCondition.UNUSABLE)
        if device.excluded:
            raise DeviceExcluded(
                f"{name} cannot take part: you excluded it; 'supervisor devices include {name}' "
                "ends that"
            )
        if device.id in self.asked.without:
            raise DeviceExcluded(
                f"deployment {self.asked.deployment} names no other device that it could use than "
                f"{name}; change that first, or stop it"
            )
        if device.state == DeviceCondition.PARKED:
            raise DeviceParked(f"{name} cannot take part: {device.reason}")
        if device.state in lasting:
            raise WorkerIncompatible(f"{name} cannot take part: {device.reason}")
        if device.state != DeviceCondition.READY:
            raise AgentUnreachable(f"{name} cannot take part: {device.reason}")
        if device.used_by not in (None, self.asked.deployment):
            raise WorkerBusy(f"{name} is in use by deployment {device.used_by}; stop that first")
        if why := self.lessons.why_excluded(device):
            raise WorkerIncompatible(f"{name} cannot take part: {why}")
        if device.id in self.silent:
            raise AgentUnreachable(f"{name} cannot take part: its agent does not answer")

    def _remarks(self, devices: Iterable[Device], *, is_named: bool) -> Iterable[str]:
        because = "you named it" if is_named else "there is no plan without it"
        for device in devices:
            if why := self.lessons.why_aside(device):
                yield f"{device.name} may be used although it was {why}: {because}."


def _devices_of(names: Iterable[str]) -> Iterator[str]:
    """``desktop/CUDA0`` is a ggml device of ``desktop``."""
    return (name.partition("/")[0] for name in names if name != HOST)


def named_devices(spec: DeploymentSpec) -> tuple[str, ...]:
    """Those that the operator wants, all of them and no others; empty: the planner chooses."""
    return spec.devices or spec.order
