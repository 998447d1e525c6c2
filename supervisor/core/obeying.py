"""What lessons change in a request to the planner, and the sentences that say so."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agents.contract import EngineFacts
from supervisor.core import mac_gpus
from supervisor.core.entities import AgentId, Device, LeftOut
from supervisor.core.lessons import (
    MAIN_HOST,
    Lesson,
    memory_factor,
    usable_bytes,
    why_aside,
    why_excluded,
    why_less_memory,
    why_smaller_steps,
)
from supervisor.core.offers import HostFacts, Place, is_on
from supervisor.core.planning import HOST, DeviceOffer, HostOffer, Planned, PlanRequest, Wanted


@dataclass(frozen=True, slots=True)
class Lessons:
    """Everything that was learned, as of now."""

    by_device: Mapping[AgentId, Lesson] = field(default_factory=dict)
    now_s: float = 0.0
    main_engine: EngineFacts | None = None

    def of(self, agent_id: AgentId) -> Lesson:
        """What was learned of one device; of most, nothing."""
        return self.by_device.get(agent_id) or Lesson(agent_id=agent_id)

    def why_excluded(self, device: Device) -> str:
        """Why a device cannot take part until something changes, or nothing."""
        engine = device.facts.engine if device.facts else None
        return why_excluded(self.of(device.id), engine, self.main_engine)

    def why_aside(self, device: Device) -> str:
        """Why a device is not used for the moment, or nothing."""
        return why_aside(self.of(device.id), self.now_s)

    def factor(self, place: Place) -> float:
        """The part of a place's memory that is used."""
        return self._factor(place.device.id, place.facts.memory_total_bytes)

    def host_factor(self) -> float:
        """The same of the main host's own processor."""
        return self._factor(MAIN_HOST, 0)

    def _factor(self, agent_id: AgentId, total_bytes: int) -> float:
        return memory_factor(self.of(agent_id), self.now_s, total_bytes)


def obeying(
    request: PlanRequest, places: Mapping[str, Place], host: HostFacts, lessons: Lessons
) -> PlanRequest:
    """The request with what the lessons leave of each device.

    Args:
        request: With all that there is.
        places: By the planner's names.
        host: Its own lesson counts for every device in its memory, too.
        lessons: As of now.
    """
    return request.model_copy(
        update={
            "devices": tuple(
                _obeying_offer(offer, places[offer.name], host, lessons)
                for offer in request.devices
            ),
            "host": _obeying_host(request.host, lessons),
            "wanted": _obeying_steps(request.wanted, lessons.of(MAIN_HOST).ubatch_cap),
        }
    )


def _obeying_offer(
    offer: DeviceOffer, place: Place, host: HostFacts, lessons: Lessons
) -> DeviceOffer:
    lesson = lessons.of(place.device.id)
    available_bytes = usable_bytes(
        lesson,
        place.ggml.name,
        offer.platform,
        offer.available_bytes,
        factor=lessons.factor(place),
    )
    if place.shares_host_memory and is_on(place, host):
        most = int(offer.available_bytes * lessons.host_factor())
        available_bytes = min(available_bytes, most)
    caps = [cap for cap in (offer.ubatch_cap, lesson.ubatch_cap) if cap is not None]
    return offer.model_copy(
        update={
            "available_bytes": available_bytes,
            "ubatch_cap": min(caps) if caps else None,
        }
    )


def _obeying_host(offer: HostOffer, lessons: Lessons) -> HostOffer:
    available_bytes = usable_bytes(
        lessons.of(MAIN_HOST),
        "",
        offer.platform,
        offer.available_bytes,
        factor=lessons.host_factor(),
    )
    return offer.model_copy(update={"available_bytes": available_bytes})


def _obeying_steps(wanted: Wanted, cap: int | None) -> Wanted:
    """Llama-server takes part in every plan, and so does its cap."""
    if cap is None:
        return wanted
    ubatches = tuple(ubatch for ubatch in wanted.ubatches if ubatch <= cap) or (cap,)
    return wanted.model_copy(update={"ubatches": ubatches})


# -- in words --------------------------------------------------------------------------------------


def remarks(request: PlanRequest, places: Mapping[str, Place], lessons: Lessons) -> tuple[str, ...]:
    """A sentence for each lesson about a device on offer, heeded or not, and for each small Mac."""
    learned = (
        f"{name}: {why}."
        for name, agent_id, factor in _offered(request, places, lessons)
        for why in _whys(lessons.of(agent_id), factor, request.overrides.ubatch)
    )
    gentle = (
        f"{offer.name}: {why}."
        for offer in request.devices
        if lessons.of(places[offer.name].device.id).ubatch_cap is None
        and (why := mac_gpus.why_gentle(offer, request.overrides))
    )
    return (*learned, *gentle)


def _offered(
    request: PlanRequest, places: Mapping[str, Place], lessons: Lessons
) -> Iterator[tuple[str, AgentId, float]]:
    yield HOST, MAIN_HOST, lessons.host_factor()
    for offer in request.devices:
        place = places[offer.name]
        yield offer.name, place.device.id, lessons.factor(place)


def _whys(lesson: Lesson, factor: float, ubatch: int | None) -> Iterator[str]:
    if why := why_less_memory(lesson, factor):
        yield why
    cap = lesson.ubatch_cap
    if cap is not None and ubatch is not None and ubatch > cap:
        why = lesson.reasons.get("ubatch", "it failed with fewer")
        yield (
            f"{why}, and you ask for {ubatch} (--ubatch): it may well fail again;"
            f" {cap} is the most that is advised"
        )
    elif cap is not None:
        yield why_smaller_steps(lesson)


def with_reasons(
    planned: Planned, places: Mapping[str, Place], lessons: Lessons
) -> tuple[LeftOut, ...]:
    """Who is left out, and why, if that is because of what was learned."""
    return tuple(_with_reason(left, places, lessons) for left in planned.left_out)


def _with_reason(left: LeftOut, places: Mapping[str, Place], lessons: Lessons) -> LeftOut:
    place = places.get(left.name)
    if place is None or left.tokens_per_s is not None:
        return left
    why = why_less_memory(lessons.of(place.device.id), lessons.factor(place))
    return left.model_copy(update={"reason": f"{left.reason}; {why}"}) if why else left


def names_of(devices: Sequence[Device]) -> frozenset[str]:
    """How devices may be called: by name or by id."""
    return frozenset(name for device in devices for name in (device.name, device.id))
