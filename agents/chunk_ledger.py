"""The books of the chunk store: what is held, in which order it was used, what must stay.

Decides who is thrown out, but touches no file. Only ``Pin`` takes the lock by itself.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from agents.chunks import ChunkName


@dataclass(slots=True)
class Held:
    size_bytes: int
    touched_s: float


class Ledger:
    """Which chunks are held, in order of their use, and which must stay; does no I/O."""

    def __init__(self) -> None:
        self.cap_bytes = 0
        self.held_bytes = 0
        self.reserved_bytes = 0
        self.loose: OrderedDict[ChunkName, Held] = OrderedDict()
        self.pinned: dict[ChunkName, Held] = {}
        self._pins: Counter[ChunkName] = Counter()

    def find(self, name: ChunkName) -> Held | None:
        return self.loose.get(name) or self.pinned.get(name)

    def add(self, name: ChunkName, held: Held) -> None:
        self.remove(name)
        (self.pinned if name in self._pins else self.loose)[name] = held
        self.held_bytes += held.size_bytes

    def remove(self, name: ChunkName) -> None:
        held = self.loose.pop(name, None) or self.pinned.pop(name, None)
        self.held_bytes -= held.size_bytes if held else 0

    def pin(self, name: ChunkName) -> None:
        self._pins[name] += 1
        if name in self.loose:
            self.pinned[name] = self.loose.pop(name)

    def unpin(self, name: ChunkName) -> None:
        self._pins[name] -= 1
        if self._pins[name] == 0:
            del self._pins[name]
            if name in self.pinned:
                self.loose[name] = self.pinned.pop(name)

    def lacking_bytes(self, size_bytes: int) -> int:
        """How much has to go before ``size_bytes`` more fit under the cap."""
        return self.held_bytes + self.reserved_bytes + size_bytes - self.cap_bytes

    def victims(self, size_bytes: int) -> list[ChunkName] | None:
        """The least recently used, which make room by going; ``None`` if pins leave too little."""
        lacking_bytes = self.lacking_bytes(size_bytes)
        chosen: list[ChunkName] = []
        for name, held in self.loose.items():
            if lacking_bytes <= 0:
                break
            chosen.append(name)
            lacking_bytes -= held.size_bytes
        return chosen if lacking_bytes <= 0 else None


class Pin:
    """What one running load keeps from being thrown out; made by ``ChunkStore.pin``."""

    def __init__(self, ledger: Ledger, lock: threading.Lock) -> None:
        self._ledger = ledger
        self._lock = lock
        self._names: set[ChunkName] | None = set()

    def hold(self, names: Iterable[ChunkName]) -> set[ChunkName]:
        """Keep ``names``, those too that are still to come; return those that are here.

        After the end of its context it only answers: a thread may be late.
        """
        present = set()
        with self._lock:
            for name in names:
                if self._names is not None and name not in self._names:
                    self._names.add(name)
                    self._ledger.pin(name)
                if self._ledger.find(name):
                    present.add(name)
        return present

    def release(self) -> None:
        with self._lock:
            names, self._names = self._names or (), None
            for name in names:
                self._ledger.unpin(name)
