"""Phases and times of a link, from requests and answers alone."""

from agents.rpc_commands import TensorData
from agents.rpc_events import Request, RequestBegin
from agents.rpc_protocol import Command
from supervisor.link.meter import Meter

INPUTS = TensorData(0, (1, 1, 1, 1), 1, 1, 0, 1 << 16, is_cacheable=False)
LARGE = RequestBegin(Command.SET_TENSOR, 1 << 17, b"", INPUTS, None)
SMALL = Request(Command.SET_TENSOR, bytes(400), None)
GRAPH = Request(Command.GRAPH_COMPUTE, bytes(12), None)
AGAIN = Request(Command.GRAPH_RECOMPUTE, bytes(4), None)
QUESTION = Request(Command.GET_TENSOR, bytes(312), 4096)


class Clock:
    now_s = 1.0

    def __call__(self) -> float:
        return self.now_s


def test_a_prompt_is_told_from_a_token_by_its_inputs() -> None:
    meter = Meter(Clock())
    assert meter.phase(is_open=False, is_waiting=False) == "connect"
    for event in (LARGE, SMALL):
        meter.sends(event)
    assert meter.phase(is_open=True, is_waiting=True) == "load"
    for event in (GRAPH, QUESTION):
        meter.sends(event)
    assert meter.phase(is_open=True, is_waiting=True) == "prefill"
    for event in (SMALL, AGAIN, QUESTION):
        meter.sends(event)
    assert meter.phase(is_open=True, is_waiting=True) == "decode"
    assert meter.phase(is_open=True, is_waiting=False) == "idle"
    meter.begin()
    assert meter.phase(is_open=True, is_waiting=True) == "load"


def test_time_is_counted_from_the_first_graph_on_and_once_per_answer() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.sends(QUESTION)
    clock.now_s += 5
    meter.hears(4.0)
    assert meter.answers == 0, "still loading"
    meter.sends(GRAPH)
    meter.sends(QUESTION)
    clock.now_s += 2
    assert meter.waiting_s == 2
    meter.hears(1.5)
    meter.hears(0.0)
    assert (meter.answers, meter.answered_s, meter.computed_s) == (1, 2.0, 1.5)
    assert meter.waiting_s == 0
    assert meter.last_command == "GET_TENSOR"
