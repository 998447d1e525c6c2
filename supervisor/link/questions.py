"""What the near end answers itself: questions whose answers it has learned once."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agents.link_frames import OfferedDevice, Welcome
from agents.rpc_commands import (
    Generation,
    device_count_answer,
    generation_of,
    hello_answer,
    memory_answer,
    size_answer,
)
from agents.rpc_events import Request
from agents.rpc_protocol import CAPABILITIES_BYTES, Command, DeviceMemory, Triple
from supervisor.link.alloc_sizes import AllocSizes, question_key

_DEVICE: Final = struct.Struct("<I")

FREE_OF_STATE: Final = frozenset(
    {
        Command.DEVICE_COUNT,
        Command.GET_DEVICE_MEMORY,
        Command.GET_ALIGNMENT,
        Command.GET_MAX_SIZE,
        Command.GET_ALLOC_SIZE,
    }
)
"""Questions that leave nothing behind in the rpc-server."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One rpc-server, described by its far end."""

    triple: Triple
    devices: Sequence[OfferedDevice]
    sizes: AllocSizes | None

    @classmethod
    def of(cls, welcome: Welcome, sizes: AllocSizes | None) -> "Answers":
        """From what the far end said."""
        return cls(Triple.parse(welcome.rpc_protocol), welcome.devices, sizes)

    @property
    def generation(self) -> Generation | None:
        """Rules of this version; ``None``: we do not know it and pass everything through."""
        return generation_of(self.triple, CAPABILITIES_BYTES if self.triple.major >= 4 else 0)

    def hello(self) -> bytes:
        return hello_answer(self.triple)

    def find(self, request: Request) -> bytes | None:
        """The answer as it travels, if it is known."""
        if request.command == Command.DEVICE_COUNT:
            return device_count_answer(len(self.devices))
        if request.command == Command.GET_ALLOC_SIZE:
            return self._alloc_size(request)
        if request.command in FREE_OF_STATE:
            return self._of_device(request)
        return None

    def _of_device(self, request: Request) -> bytes | None:
        (index,) = _DEVICE.unpack(request.body)
        if index >= len(self.devices):
            return None  # the rpc-server closes the connection; it shall do that itself
        device = self.devices[index]
        if request.command == Command.GET_DEVICE_MEMORY:
            return memory_answer(DeviceMemory(device.free_bytes, device.total_bytes))
        if request.command == Command.GET_ALIGNMENT:
            return size_answer(device.alignment)
        return size_answer(device.max_buffer_bytes)

    def _alloc_size(self, request: Request) -> bytes | None:
        assert self.generation is not None
        if self.sizes is None:
            return None
        size_bytes = self.sizes.get(question_key(request.body, self.generation))
        return None if size_bytes is None else size_answer(size_bytes)

    def learn(self, question: Request, size_bytes: int) -> None:
        """Keep the answer to a GET_ALLOC_SIZE."""
        if self.sizes is not None and self.generation is not None:
            self.sizes.learn(question_key(question.body, self.generation), size_bytes)
