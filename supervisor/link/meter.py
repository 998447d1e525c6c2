"""What a near end sees of the work: phase, last command, and where the time goes. Does no I/O."""

import time
from collections.abc import Callable
from typing import Final

from agents.rpc_commands import TensorData, command_name
from agents.rpc_events import Request, RequestBegin
from agents.rpc_protocol import Command

_SMALLEST_PREFILL_BYTES: Final = 64 << 10
"""Inputs of one token are smaller, those of a prompt larger; llama-server does not say which."""

_GRAPHS: Final = (Command.GRAPH_COMPUTE, Command.GRAPH_RECOMPUTE)


class Meter:
    """One connection after another to one rpc-server."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._asked_at_s = 0.0
        self._inputs_are_large = False
        self._is_prefill = False
        self.graphs = 0
        """That the present connection has sent whole."""
        self.last_command = ""
        self.answers = 0
        self.answered_s = 0.0
        """From questions to answers since the weights are there, in all."""
        self.computed_s = 0.0
        """Of that, at the rpc-server."""

    def begin(self) -> None:
        """A new connection."""
        self.graphs = 0
        self.stop_waiting()

    def sends(self, event: Request | RequestBegin) -> None:
        """A request is on its way."""
        self.last_command = command_name(event.command)
        if isinstance(event, RequestBegin) and isinstance(event.about, TensorData):
            self._inputs_are_large |= event.about.data_bytes >= _SMALLEST_PREFILL_BYTES
        if event.command in _GRAPHS:
            self.graphs += event.command == Command.GRAPH_COMPUTE
            self._is_prefill, self._inputs_are_large = self._inputs_are_large, False
        if event.reply_bytes is not None:
            self._asked_at_s = self._asked_at_s or self._clock()

    def hears(self, took_s: float) -> None:
        """An answer has begun, for which the rpc-server took that long; 0: a later part of one."""
        if not self._asked_at_s or not took_s:
            return
        if self.graphs:
            self.answers += 1
            self.answered_s += self._clock() - self._asked_at_s
            self.computed_s += took_s
        self.stop_waiting()

    def stop_waiting(self) -> None:
        """Nobody waits for an answer."""
        self._asked_at_s = 0.0

    @property
    def waiting_s(self) -> float:
        """How long somebody has been waiting for an answer."""
        return self._clock() - self._asked_at_s if self._asked_at_s else 0.0

    def phase(self, *, is_open: bool, is_waiting: bool) -> str:
        """What llama-server does, as the phases of a launch and of a request are called."""
        if self.graphs == 0:
            return "load" if is_open else "connect"
        if not is_waiting:
            return "idle"
        return "prefill" if self._is_prefill else "decode"
