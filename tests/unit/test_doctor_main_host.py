"""What the main host says of devices, and whether a model fits; well and not well."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agents.contract import DeviceFacts, EngineFacts, Finding, Verdict
from supervisor.core import doctor, model_memory
from supervisor.core.doctor import Greeting
from supervisor.core.entities import (
    AgentId,
    Deployment,
    DeploymentId,
    DeploymentSpec,
    Device,
    HostShare,
    LeftOut,
    MeasuredSpeed,
    ModelFacts,
    Plan,
    Shard,
)
from supervisor.core.lifecycle import State
from supervisor.core.memory import GIB, MIB
from supervisor.core.model_memory import Largest
from supervisor.errors import InsufficientMemory, ModelMissing
from supervisor.service import model_memory as asking
from supervisor.service.model_memory import Question
from supervisor.service.planning import Answer

OK, WARNS, BLOCKS, UNKNOWN = Verdict.OK, Verdict.WARNING, Verdict.BLOCKS, Verdict.UNKNOWN
ENGINE = EngineFacts("/opt", "setting", build="0c1e570", rpc_protocol="4.0.1", has_rpc=True)
FACTS = DeviceFacts("a", "phone", "android", engine=ENGINE)
DEVICE = Device(
    id=AgentId("a"),
    name="phone",
    address="10.0.0.7",
    rest_port=8102,
    link_port=8103,
    state="ready",
    silent_s=1,
    facts=FACTS,
    rpc_server=None,
)
GREETED = Greeting("10.0.0.7:8102", round_trip_ms=4.0, not_after_s=1e9)
SILENT = Greeting("10.0.0.7:8102", "no answer within 6 s")


def is_(finding: Finding, verdict: Verdict, *words: str) -> None:
    assert finding.verdict is verdict, finding
    for word in words:
        assert word in f"{finding.found} {finding.remedy}", finding


def changed(**changes: Any) -> Device:
    return DEVICE.model_copy(update=changes)


# -- the main host itself ----------------------------------------------------------------------


def test_the_supervisor_itself() -> None:
    is_(doctor.store(""), OK)
    is_(doctor.store("the disk is full"), BLOCKS, "the disk is full")
    is_(doctor.dashboard("127.0.0.1", "http://127.0.0.1:8100", "all"), OK, "this host alone")
    is_(doctor.dashboard("0.0.0.0", "http://10.0.0.1:8100", "all"), OK, "need the key")
    is_(doctor.join_port(["10.0.0.1:8101"], ""), OK)
    is_(doctor.join_port(["127.0.0.1:8101"], ""), OK, "only programs of this host")
    is_(doctor.join_port(["10.0.0.1:8101"], "nobody answers there"), BLOCKS, "nobody")


def test_the_engine_for_devices() -> None:
    is_(doctor.release(replace(ENGINE, release="b10516")), OK, "b10516")
    is_(doctor.release(ENGINE), OK, "0c1e570", "no release")
    is_(doctor.release(replace(ENGINE, problem="no RPC")), WARNS, "engine install")
    is_(doctor.release(None), WARNS)


# -- a device ----------------------------------------------------------------------------------


def test_membership() -> None:
    is_(doctor.membership(DEVICE), OK, "idle")
    is_(doctor.membership(changed(used_by="chat")), OK, "serves chat")
    is_(doctor.membership(changed(excluded=True)), WARNS, "devices include phone")
    is_(doctor.membership(changed(state="suspect", reason="late")), WARNS, "late")
    is_(doctor.membership(changed(state="parked", reason="battery at 9 %")), WARNS, "9 %")
    for state in ("lost", "unusable", "incompatible"):
        is_(doctor.membership(changed(state=state, reason="gone")), BLOCKS, "gone")


def test_rest_api_and_link() -> None:
    is_(doctor.rest_api(GREETED, ""), OK, "10.0.0.7:8102")
    is_(doctor.rest_api(GREETED, "HTTP 500"), WARNS, "HTTP 500")
    is_(doctor.rest_api(SILENT, "whatever"), BLOCKS, "no answer", "firewall")
    is_(doctor.link(GREETED), OK)
    is_(doctor.link(SILENT), BLOCKS, "--link-port")
    is_(doctor.link(None), OK, "direct")


def test_link_speed() -> None:
    speed = MeasuredSpeed(
        decode_bytes_per_s=1e9,
        up_bytes_per_s=40e6,
        down_bytes_per_s=40e6,
        round_trip_ms=5.5,
        taken_at="2026-11-21T12:00:00Z",
    )
    is_(doctor.link_speed(DEVICE, SILENT), UNKNOWN, "measure")
    is_(doctor.link_speed(DEVICE, GREETED), OK, "4.0 ms now")
    is_(doctor.link_speed(changed(speed=speed), GREETED), OK, "5.5 ms", "40.0 MB/s")
    is_(doctor.link_speed(changed(speed=speed), SILENT), OK, "5.5 ms")
    slow = replace(GREETED, round_trip_ms=20.1)
    is_(doctor.link_speed(DEVICE, slow), WARNS, "20.1 ms", "screen")
    is_(doctor.link_speed(DEVICE, replace(slow, round_trip_ms=20.0)), OK)
    mac = changed(facts=replace(FACTS, platform="macos"))
    is_(doctor.link_speed(mac, slow), WARNS, "cable")
    thin = speed.model_copy(update={"up_bytes_per_s": 2e6})
    is_(doctor.link_speed(changed(speed=thin), GREETED), WARNS, "1.5 h for 10 GiB")


def test_same_engine() -> None:
    is_(doctor.same_engine(DEVICE, ENGINE), OK, "0c1e570")
    is_(doctor.same_engine(DEVICE, replace(ENGINE, build="0c1e570abcd")), OK)
    other = replace(ENGINE, build="1111111", release="b10600")
    is_(doctor.same_engine(DEVICE, other), BLOCKS, "1111111", "engine use b10600")
    is_(doctor.same_engine(DEVICE, replace(ENGINE, rpc_protocol="5.0.0")), BLOCKS, "5.0.0")
    is_(doctor.same_engine(DEVICE, None), UNKNOWN)
    is_(doctor.same_engine(changed(facts=None), ENGINE), UNKNOWN)


def test_certificate() -> None:
    day_s = 86_400
    is_(doctor.certificate(GREETED, 1e9 - 31 * day_s), OK, "31 more days")
    is_(doctor.certificate(GREETED, 1e9 - 29 * day_s), WARNS, "29 more days")
    is_(doctor.certificate(GREETED, 1e9 + 1), BLOCKS, "has ended")
    is_(doctor.certificate(SILENT, 1e9), UNKNOWN)


# -- does it fit -------------------------------------------------------------------------------


def plan(spare_bytes: int = GIB, **changes: Any) -> Plan:
    shard = Shard(
        agent_id=AgentId("a"),
        device="phone",
        ggml_device="CPU",
        host="10.0.0.7",
        layers=20,
        has_output=True,
        peak_bytes=3 * GIB,
        budget_bytes=3 * GIB + spare_bytes,
        available_bytes=6 * GIB,
    )
    model = ModelFacts(
        path="/m.gguf", name="m", architecture="llama", block_count=32, size_bytes=4 * GIB
    )
    host = HostShare(layers=13, peak_bytes=GIB, budget_bytes=8 * GIB, available_bytes=9 * GIB)
    left_out = (LeftOut(name="old", reason="it is too slow to help."),)
    made = Plan(
        model=model, ctx_tokens=4096, slots=1, shards=(shard,), host=host, left_out=left_out
    )
    return made.model_copy(update=changes)


def test_a_model_that_fits() -> None:
    is_(model_memory.fit(plan()), OK, "4,096 tokens fit with an f16 cache")
    shares = model_memory.shares(plan())
    is_(shares["phone"], OK, "20 of 33 layers", "needs 3.0 GiB", "may use 4.0 GiB", "1.0 GiB to")
    is_(shares["main host"], OK, "13 layers and the embeddings")
    is_(shares["old"], OK, "not needed: it is too slow")


def test_a_model_that_fits_with_little_to_spare_is_a_warning_with_the_numbers() -> None:
    tight = plan(spare_bytes=100 * MIB)
    is_(model_memory.fit(tight), WARNS, "phone 100.0 MiB")
    is_(model_memory.shares(tight)["phone"], WARNS, "100.0 MiB to spare")
    is_(model_memory.shares(tight)["main host"], OK)


def test_a_context_beyond_training_is_a_warning() -> None:
    trained = plan().model.model_copy(update={"ctx_train_tokens": 2048})
    is_(model_memory.fit(plan(model=trained)), WARNS, "2,048", "--context 2048")


SHORTFALL = {
    "missing_bytes": int(3.1 * GIB),
    "devices": [
        {
            "name": "main host",
            "available_bytes": 4 * GIB,
            "budget_bytes": 3 * GIB,
            "layers": 0,
            "needs_bytes": 0,
        },
        {
            "name": "phone",
            "available_bytes": 2 * GIB,
            "budget_bytes": GIB,
            "layers": 0,
            "needs_bytes": 2 * GIB,
        },
    ],
}


def test_what_fits_instead_is_said_for_each_cache() -> None:
    largest = [Largest("f16", 4096), Largest("q8_0", 16384), Largest("q4_0", 16384)]
    found = model_memory.no_fit(32768, SHORTFALL, largest, is_cut=False)
    assert found.verdict is BLOCKS
    assert found.found == (
        "4,096 tokens fit with an f16 cache; 16,384 would with a q8_0 cache; "
        "32,768 needs 3.1 GiB more"
    )
    assert found.remedy == "launch it with --ctx 16384 --kv q8_0, or add a device"


def test_a_coarser_cache_that_is_enough_ends_the_sentence() -> None:
    largest = [Largest("f16", 8192), Largest("q8_0", 32768)]
    found = model_memory.no_fit(32768, SHORTFALL, largest, is_cut=False)
    assert found.found == ("8,192 tokens fit with an f16 cache; 32,768 would with a q8_0 cache")
    is_(found, BLOCKS, "--ctx 32768 --kv q8_0")


def test_nothing_fits() -> None:
    found = model_memory.no_fit(4096, SHORTFALL, [Largest("f16", 0)], is_cut=True)
    is_(found, BLOCKS, "no context fits; 4,096 needs 3.1 GiB more; there was no time", "smaller")
    shares = model_memory.shortfalls(SHORTFALL)
    is_(shares["phone"], WARNS, "1.0 GiB of 2.0 GiB", "0 layers", "needs 2.0 GiB")
    is_(shares["main host"], OK)


class Planner:
    """Fits so many tokens with each type of cache."""

    def __init__(self, **most: int) -> None:
        self.most = most
        self.asked: list[tuple[DeploymentSpec, str | None]] = []

    async def __call__(self, spec: DeploymentSpec, replaces: str | None) -> Answer:
        self.asked.append((spec, replaces))
        if spec.model == "missing":
            raise ModelMissing("there is no such file")
        if spec.model == "endless":
            await asyncio.Event().wait()
        kv_type = spec.kv_type or "f16"
        most = self.most.get(kv_type, 0)
        if most < (spec.min_ctx_tokens or spec.ctx_tokens):
            raise InsufficientMemory("it does not fit", SHORTFALL)
        ctx = min(most, spec.ctx_tokens)
        return Answer(plan(ctx_tokens=ctx, kv_type=kv_type), ())


async def test_a_model_that_fits_is_one_question() -> None:
    planner = Planner(f16=4096)
    answer = await asking.answer(Question("m", 4096), planner)
    is_(answer.overall, OK)
    assert set(answer.by_device) == {"main host", "phone", "old"}
    assert len(planner.asked) == 1


async def test_the_types_of_cache_are_tried_until_one_is_enough() -> None:
    planner = Planner(f16=3072, q8_0=8192, q4_0=16384)
    answer = await asking.answer(Question("m", 8192), planner)
    is_(answer.overall, BLOCKS, "3,072 tokens fit", "8,192 would with a q8_0")
    assert [spec.kv_type for spec, _ in planner.asked] == [None, "f16", "q8_0"]


async def test_a_model_that_cannot_be_read_is_a_finding() -> None:
    answer = await asking.answer(Question("missing"), Planner())
    is_(answer.overall, BLOCKS, "there is no such file")


async def test_a_planner_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LIMIT_S", 0.2)
    answer = await asking.answer(Question("endless"), Planner())
    is_(answer.overall, BLOCKS, "no plan within 0.2 s")


async def test_what_runs_already_counts_as_free() -> None:
    planner = Planner(f16=4096)
    runs = Deployment(id=DeploymentId("chat"), spec=DeploymentSpec(model="m"), state=State.READY)
    stopped = runs.model_copy(update={"id": DeploymentId("old"), "state": State.STOPPED})
    await asking.answer(Question("m"), planner, [runs, stopped])
    await asking.answer(Question("other"), planner, [runs])
    assert [replaces for _, replaces in planner.asked] == ["chat", None]
