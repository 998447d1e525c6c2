"""Who sends which chunks of a model to whom, so that all devices have theirs soonest.

The main host has everything and sends each receiver its chunks in their order, from the front. A
device that holds chunks that another one lacks gives it those that the main host would come to
last, a batch at a time. So both meet somewhere, wherever that is: whoever is faster has sent more.
What the main host sends to one device can be passed on by that device a moment later.

Every chunk is under way to a receiver from one source at a time. A source gets the next batch only
while it has work for less than ``AHEAD_S`` seconds, and only if it would be there sooner than what
the main host sends last. Towards the end, what a slow source still has is given back.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agents.chunks import CHUNK_BYTES, ChunkName

AHEAD_S: Final = 2.0
"""A source has work for so long, so that it never waits for the next decision."""
MOST_BATCH_BYTES: Final = 16 * CHUNK_BYTES
LEAST_BATCH_BYTES: Final = 2 * CHUNK_BYTES
_BATCH_S: Final = 0.5
LEAST_BYTES_PER_S: Final = 64e3
UNMEASURED_BYTES_PER_S: Final = 10e6
"""A link that nobody has measured: common Wi-Fi."""
LEARNT_BYTES: Final = 4 * CHUNK_BYTES
"""After so much, what was seen of a link replaces what was believed."""
WORTH_S: Final = 3.0
"""Work that takes longer is taken back if somebody else is twice as fast."""
MOST_FAILURES: Final = 3

Pair = tuple[str, str]
"""Source and receiver, as agent ids."""


class _Receiver:
    """What one device lacks. Bit n of a number stands for chunk n of the main host's order.

    So a decision costs microseconds, however many chunks and devices there are: they are made in
    the event loop of the supervisor, for each pair of devices, several times a second.
    """

    def __init__(
        self, chunks: Sequence[tuple[ChunkName, int]], held: Collection[ChunkName]
    ) -> None:
        self.sizes = dict(chunks)
        """Of all that it needs, in order."""
        self.names = tuple(self.sizes)
        self._places = {name: number for number, name in enumerate(self.names)}
        self.open = ((1 << len(self.names)) - 1) ^ self.bits_of(held)
        """The main host sends these unless somebody else does."""
        self.open_bytes = sum(size for name, size in self.sizes.items() if name not in held)
        self.held_by: dict[str, int] = {}
        """What each other device has of all that this one needs."""
        self.under_way: dict[ChunkName, str] = {}
        """Who else brings them."""

    def bits_of(self, names: Iterable[ChunkName]) -> int:
        """Those of ``names`` that it needs."""
        found = bytearray(len(self.names) // 8 + 1)
        for name in names:
            if (number := self._places.get(name)) is not None:
                found[number >> 3] |= 1 << (number & 7)
        return int.from_bytes(found, "little")

    def from_the_end(self, bits: int) -> Iterator[ChunkName]:
        while bits:
            number = bits.bit_length() - 1
            bits ^= 1 << number
            yield self.names[number]

    def is_open(self, name: ChunkName) -> bool:
        return bool(self.open >> self._places[name] & 1) if name in self._places else False

    def close(self, name: ChunkName) -> None:
        """The main host need not send it."""
        if self.is_open(name):
            self.open ^= 1 << self._places[name]
            self.open_bytes -= self.sizes[name]

    def reopen(self, name: ChunkName) -> None:
        """It has to, after all."""
        if not self.is_open(name):
            self.open |= 1 << self._places[name]
            self.open_bytes += self.sizes[name]


@dataclass(slots=True)
class _Seen:
    """What a pair has carried."""

    size_bytes: int = 0
    busy_s: float = 0.0

    @property
    def bytes_per_s(self) -> float | None:
        is_known = self.size_bytes >= LEARNT_BYTES and self.busy_s > 0
        return self.size_bytes / self.busy_s if is_known else None

    @property
    def most_bytes_per_s(self) -> float:
        """No more than this, by what has not come yet: a device that cannot be reached is slow."""
        return (self.size_bytes + LEARNT_BYTES) / self.busy_s if self.busy_s > 0 else float("inf")


class Spreading:
    """The state of one push: what is where, what is on its way, and how fast."""

    def __init__(
        self,
        needs: Mapping[str, Sequence[tuple[ChunkName, int]]],
        holds: Mapping[str, Collection[ChunkName]],
        up_bytes_per_s: Mapping[str, float],
    ) -> None:
        """Begin with what every device says of itself.

        Args:
            needs: Chunks and their sizes by receiver, in the order of the main host's sending.
            holds: Of every device, receiver or not.
            up_bytes_per_s: What was measured from the main host to each device.
        """
        self._devices = tuple(dict.fromkeys((*needs, *holds)))
        self._up = dict(up_bytes_per_s)
        self._seen: dict[Pair, _Seen] = {}
        self._main_rates: dict[str, float] = {}
        self._failures: dict[Pair, int] = {}
        self._receivers: dict[str, _Receiver] = {}
        for device, chunks in needs.items():
            found = self._receivers[device] = _Receiver(chunks, set(holds.get(device, ())))
            others = {each: names for each, names in holds.items() if each != device}
            found.held_by = {each: found.bits_of(names) for each, names in others.items()}

    # -- what can be asked -----------------------------------------------------------------

    @property
    def receivers(self) -> tuple[str, ...]:
        return tuple(self._receivers)

    def is_worth_it(self) -> bool:
        """Whether any device could give another one anything, now or once it has what it gets."""
        return any(self.may_help(source, receiver) for source, receiver in self.pairs())

    def pairs(self) -> tuple[Pair, ...]:
        """All that could be, be it later."""
        return tuple((s, r) for r in self._receivers for s in self._devices if s != r)

    def may_help(self, source: str, receiver: str) -> bool:
        """Whether ``source`` has, or will get, what ``receiver`` lacks."""
        if self._failures.get((source, receiver), 0) >= MOST_FAILURES:
            return False
        found, other = self._receivers[receiver], self._receivers.get(source)
        if found.open & found.held_by.get(source, 0):
            return True
        return other is not None and any(map(found.is_open, other.from_the_end(other.open)))

    def is_done(self, receiver: str) -> bool:
        found = self._receivers[receiver]
        return not found.open and not found.under_way

    def queued_bytes(self, source: str, receiver: str | None = None) -> int:
        """What a source has to send, to one receiver or to all."""
        return sum(
            found.sizes[name]
            for device, found in self._receivers.items()
            if receiver in (None, device)
            for name, who in found.under_way.items()
            if who == source
        )

    def rate(self, source: str, receiver: str) -> float:
        """Bytes per second from one device to another: seen, or the slower of their links."""
        seen = self._seen.get((source, receiver))
        if seen is not None and (measured := seen.bytes_per_s) is not None:
            return max(measured, LEAST_BYTES_PER_S)
        links = [self._up.get(each, UNMEASURED_BYTES_PER_S) for each in (source, receiver)]
        most = seen.most_bytes_per_s if seen is not None else float("inf")
        return max(min(*links, most), LEAST_BYTES_PER_S)

    def ahead_bytes(self, source: str, receiver: str) -> float:
        """What a source may have to send; little before it has shown what it can do."""
        seen = self._seen.get((source, receiver))
        if seen is None or seen.bytes_per_s is None:
            return LEARNT_BYTES
        return AHEAD_S * self.rate(source, receiver)

    def batch_bytes(self, source: str, receiver: str) -> float:
        """Of one batch, about."""
        wanted = _BATCH_S * self.rate(source, receiver)
        return min(max(wanted, LEAST_BATCH_BYTES), MOST_BATCH_BYTES)

    def main_rate(self, receiver: str) -> float:
        """Bytes per second from the main host to a device, beside all that it sends to others."""
        believed = self._up.get(receiver, UNMEASURED_BYTES_PER_S)
        return max(self._main_rates.get(receiver, believed), LEAST_BYTES_PER_S)

    # -- decisions -------------------------------------------------------------------------

    def next_batch(self, source: str, receiver: str) -> tuple[ChunkName, ...]:
        """What ``source`` is to send ``receiver`` next, which is then under way; often nothing."""
        found = self._receivers[receiver]
        if not found.open or self._failures.get((source, receiver), 0) >= MOST_FAILURES:
            return ()
        rate, queued_bytes = self.rate(source, receiver), self.queued_bytes(source)
        if queued_bytes and queued_bytes >= self.ahead_bytes(source, receiver):
            return ()
        if self._is_more_urgent_elsewhere(source, receiver):
            return ()
        batch, batch_bytes = list[ChunkName](), 0
        most_bytes = self.batch_bytes(source, receiver)
        for name in found.from_the_end(found.open & found.held_by.get(source, 0)):
            if batch_bytes >= most_bytes:
                break
            batch.append(name)
            batch_bytes += found.sizes[name]
        main_s = found.open_bytes / self.main_rate(receiver)
        while batch and (queued_bytes + batch_bytes) / rate > main_s:
            batch_bytes -= found.sizes[batch.pop()]
        for name in batch:
            found.close(name)
            found.under_way[name] = source
        return tuple(batch)

    def _is_more_urgent_elsewhere(self, source: str, receiver: str) -> bool:
        """Whether another device that this source could help will be ready later, by much."""
        own_s = self._left_s(receiver)
        return any(
            self._left_s(other) > 2 * own_s + AHEAD_S and found.open & found.held_by.get(source, 0)
            for other, found in self._receivers.items()
            if other not in (source, receiver)
            and self._failures.get((source, other), 0) < MOST_FAILURES
        )

    def _left_s(self, receiver: str) -> float:
        return self._receivers[receiver].open_bytes / self.main_rate(receiver)

    def stragglers(self) -> tuple[Pair, ...]:
        """Pairs whose work the main host, which has nothing else to do, would end much sooner."""
        found = []
        for receiver, state in self._receivers.items():
            if state.open:
                continue
            for source in sorted(set(state.under_way.values())):
                left_bytes = self.queued_bytes(source, receiver)
                left_s = left_bytes / self.rate(source, receiver)
                if left_s > WORTH_S and left_bytes / self.main_rate(receiver) < left_s / 2:
                    found.append((source, receiver))
        return tuple(found)

    # -- what has happened -----------------------------------------------------------------

    def refused(self, receiver: str, names: Iterable[ChunkName]) -> None:
        """The main host has begun to send these itself."""
        found = self._receivers[receiver]
        for name in names:
            found.under_way.pop(name, None)

    def arrived(self, receiver: str, names: Iterable[ChunkName]) -> None:
        """A device has these now, from whomever; it can pass them on."""
        found, given = self._receivers[receiver], tuple(names)
        for name in given:
            found.close(name)
            found.under_way.pop(name, None)
        for device, other in self._receivers.items():
            if device != receiver:
                there = other.held_by.get(receiver, 0)
                other.held_by[receiver] = there | other.bits_of(given)

    def given_back(self, source: str, receiver: str) -> tuple[ChunkName, ...]:
        """All that was under way from a source is the main host's again; returns what that is."""
        found = self._receivers[receiver]
        names = tuple(name for name, who in found.under_way.items() if who == source)
        self._reopen(found, names)
        return names

    def lacks(self, source: str, receiver: str, names: Iterable[ChunkName]) -> None:
        """A source does not have these, whatever it said."""
        given = tuple(names)
        for found in self._receivers.values():
            found.held_by[source] = found.held_by.get(source, 0) & ~found.bits_of(given)
        self._reopen(self._receivers[receiver], given)

    def failed(self, source: str, receiver: str) -> bool:
        """Count a failure of a pair; returns whether it may be tried again."""
        count = self._failures[source, receiver] = self._failures.get((source, receiver), 0) + 1
        return count < MOST_FAILURES

    def drop(self, source: str, receiver: str) -> None:
        """Ask nothing more of this pair."""
        self._failures[source, receiver] = MOST_FAILURES

    def leave(self, receiver: str) -> None:
        """Nobody needs to bring this device anything any more."""
        for device in self._devices:
            self.drop(device, receiver)

    def carried(self, source: str, receiver: str, size_bytes: int, busy_s: float) -> None:
        """So much came from a device within so many seconds in which it had work."""
        seen = self._seen.setdefault((source, receiver), _Seen())
        seen.size_bytes += size_bytes
        seen.busy_s += busy_s

    def main_sends(self, receiver: str, bytes_per_s: float) -> None:
        """What the main host reaches now towards a device."""
        self._main_rates[receiver] = bytes_per_s

    @staticmethod
    def _reopen(found: _Receiver, names: Collection[ChunkName]) -> None:
        """The main host left them out, and comes to them when it has sent everything else."""
        for name in names:
            if found.under_way.pop(name, None) is not None:
                found.reopen(name)
