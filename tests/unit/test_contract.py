"""Messages between supervisor and agent: strict about what is needed, deaf to what is new."""

import json
import re
from dataclasses import asdict
from typing import Any

import pytest
from pydantic import TypeAdapter

from agents.contract import (
    DeviceFacts,
    EngineFacts,
    GgmlDevice,
    Heartbeat,
    HeartbeatReply,
    JoinReply,
    JoinRequest,
    MeasuredGgmlDevice,
    MeasurementProblem,
    MeasurementProgress,
    MeasurementResult,
    MeasurementSpec,
    MeasurementUpdate,
    RpcServerSpec,
    RpcServerStatus,
    WorkerState,
    read,
)
from agents.errors import BadMessage

ENGINE = EngineFacts("/opt", "PATH", "/opt/llama-server", "/opt/rpc", "1", "abc", "7.0.0", True)
FACTS = DeviceFacts(
    agent_id="id",
    name="pixel",
    platform="android",
    cores=8,
    memory_total_bytes=8 << 30,
    memory_available_bytes=3 << 30,
    ggml_devices=[GgmlDevice("CPU", "a processor", 10, 9), GgmlDevice("Vulkan0")],
    engine=ENGINE,
    battery_percent=81.5,
    battery_charging=False,
    agent_start="5f1c",
)
STATUS = RpcServerStatus(
    WorkerState.READY,
    generation=7,
    main_host="desk",
    host="10.0.0.2",
    port=8110,
    pid=123,
    argv=["rpc-server", "-p", "8110"],
    environment={"PATH": "/bin"},
    rpc_protocol="7.0.0",
    resident_bytes=5,
    cpu_s=0.5,
    oom_kills=2,
    process_state="T",
)
SPEC = RpcServerSpec(7, "10.0.0.2", "7", "desk", 8110, 4, ["CUDA0", "CUDA1"], 20.0)

UPDATES = [
    MeasurementProgress("Q4_K", 0.25, "CPU"),
    MeasurementResult(
        [
            MeasuredGgmlDevice(
                "CPU", "7.0.0", 1e-4, 1e-6, 2e-3, 1 << 27, 4.5, {"Q4_K": 2e10}, {"Q4_K": 3e11}
            ),
        ]
    ),
    MeasurementProblem("measurement_failed", "it took too long"),
]

MESSAGES = [
    GgmlDevice("CPU"),
    ENGINE,
    FACTS,
    DeviceFacts("id", "bare", "linux"),
    SPEC,
    RpcServerSpec(1, "127.0.0.1"),
    STATUS,
    MeasurementSpec(["Q4_0", "F16"], 2048, 8192, 45.0),
    *UPDATES,
    RpcServerStatus(WorkerState.FAILED, error_code="x", exit_status=-9),
    Heartbeat(FACTS, STATUS, 8102, "10.0.0.2"),
    Heartbeat(FACTS, STATUS, 8102, "10.0.0.2", 8103, "phone.example"),
    HeartbeatReply(5.0),
    HeartbeatReply(5.0, 300.0),
    JoinRequest("token", "id", "pixel"),
    JoinReply("certificate", "key", "authority"),
]


@pytest.mark.parametrize("update", UPDATES, ids=lambda u: type(u).__name__)
def test_the_lines_of_a_measurement_are_told_apart(update: MeasurementUpdate) -> None:
    adapter: TypeAdapter[MeasurementUpdate] = TypeAdapter(MeasurementUpdate)
    assert adapter.validate_python({**over_the_wire(update), "new": 1}) == update


def over_the_wire(message: Any) -> Any:
    return json.loads(json.dumps(asdict(message)))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire_to_an_agent(message: Any) -> None:
    assert read(type(message), over_the_wire(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_survives_the_wire_to_the_supervisor(message: Any) -> None:
    assert TypeAdapter(type(message)).validate_python(over_the_wire(message)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_fields_of_a_newer_peer_are_ignored_by_both(message: Any) -> None:
    newer = {**over_the_wire(message), "added_in_2030": {"deep": [1]}}
    assert read(type(message), newer) == message
    assert TypeAdapter(type(message)).validate_python(newer) == message


def test_new_fields_inside_nested_messages_are_ignored_too() -> None:
    wire = over_the_wire(Heartbeat(FACTS, STATUS, 8102))
    wire["facts"]["new"] = wire["rpc_server"]["new"] = 1
    wire["facts"]["engine"]["new"] = wire["facts"]["ggml_devices"][0]["new"] = 1
    assert read(Heartbeat, wire) == Heartbeat(FACTS, STATUS, 8102)


def test_fields_that_are_left_out_have_their_defaults() -> None:
    assert read(RpcServerSpec, {"generation": 3, "host": "h"}) == RpcServerSpec(3, "h")
    assert read(RpcServerStatus, {"state": "ready"}).state is WorkerState.READY
    older = over_the_wire(Heartbeat(FACTS, STATUS, 8102))
    del older["link_port"], older["link_address"], older["rpc_server"]["main_host"]
    assert read(Heartbeat, older).link_port == 0, "an agent that has no links yet"
    bare = read(RpcServerStatus, {"state": "ready"})
    assert (bare.oom_kills, bare.process_state) == (None, ""), "unknown is not none"
    assert read(HeartbeatReply, {"next_s": 5.0}).lease_s == 0.0, "a supervisor without leases"


@pytest.mark.parametrize(
    ("message", "data", "says"),
    [
        (HeartbeatReply, None, "HeartbeatReply: expected a JSON object, got NoneType"),
        (HeartbeatReply, [5.0], "HeartbeatReply: expected a JSON object, got list"),
        (HeartbeatReply, {}, "HeartbeatReply: field 'next_s' is missing"),
        (HeartbeatReply, {"next_s": "5"}, "HeartbeatReply: next_s: expected float, got '5'"),
        (HeartbeatReply, {"next_s": None}, "next_s: expected float, got None"),
        (HeartbeatReply, {"next_s": True}, "next_s: expected float, got True"),
        (RpcServerSpec, {"host": "h"}, "RpcServerSpec: field 'generation' is missing"),
        (RpcServerSpec, {"generation": 1.5, "host": "h"}, "generation: expected int, got 1.5"),
        (RpcServerSpec, {"generation": True, "host": "h"}, "generation: expected int, got True"),
        (RpcServerSpec, {"generation": 1, "host": 5}, "host: expected str, got 5"),
        (
            RpcServerSpec,
            {"generation": 1, "host": "h", "threads": "4"},
            "threads: expected int, got '4'",
        ),
        (
            RpcServerSpec,
            {"generation": 1, "host": "h", "devices": "CPU"},
            "devices: expected list, got 'CPU'",
        ),
        (
            RpcServerSpec,
            {"generation": 1, "host": "h", "devices": ["CPU", 1]},
            "devices: expected str, got 1",
        ),
        (RpcServerStatus, {"state": "asleep"}, "RpcServerStatus: state: 'asleep' is not known"),
        (RpcServerStatus, {"state": None}, "state: None is not known"),
        (RpcServerStatus, {"state": []}, "state: [] is not known"),
        (
            RpcServerStatus,
            {"state": "ready", "environment": ["PATH"]},
            "environment: expected dict, got ['PATH']",
        ),
        (
            RpcServerStatus,
            {"state": "ready", "environment": {"PATH": 1}},
            "environment: expected str, got 1",
        ),
        (
            DeviceFacts,
            {"agent_id": "i", "name": "n", "platform": "p", "engine": {"folder": "/"}},
            "EngineFacts: field 'source' is missing",
        ),
        (
            DeviceFacts,
            {"agent_id": "i", "name": "n", "platform": "p", "ggml_devices": ["CPU"]},
            "GgmlDevice: expected a JSON object, got str",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_field(message: type, data: Any, says: str) -> None:
    with pytest.raises(BadMessage, match=re.escape(says)):
        read(message, data)


@pytest.mark.parametrize(
    ("data", "threads"), [({}, None), ({"threads": None}, None), ({"threads": 4}, 4)]
)
def test_an_optional_field_may_be_null(data: dict[str, Any], threads: int | None) -> None:
    assert read(RpcServerSpec, {"generation": 1, "host": "h", **data}).threads == threads


@pytest.mark.parametrize(
    ("name", "is_cpu"), [("CPU", True), ("cpu0", True), ("CUDA0", False), ("MTL0", False)]
)
def test_a_processor_is_told_from_an_accelerator(name: str, is_cpu: bool) -> None:
    assert GgmlDevice(name).is_cpu is is_cpu
