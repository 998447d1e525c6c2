"""The planner's service: who is asked, whose word on memory counts, what is said of the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from test_launch_plan import FACTS, SHAPE, spec
from test_offers import HOST, device, measured

from agents.contract import DeviceFacts, EngineFacts
from supervisor.core.engine_help import EngineHelp
from supervisor.core.engine_memory import EngineMemory, EngineUse
from supervisor.core.entities import AgentId, DeploymentId, Device, Plan
from supervisor.core.lessons import Lesson
from supervisor.core.memory import GIB
from supervisor.core.planning import HOST as MAIN_HOST
from supervisor.errors import (
    AgentUnreachable,
    BadSplit,
    DeviceUnknown,
    EngineRefusedModel,
    EstimateFailed,
    InsufficientMemory,
    NoDevices,
    WorkerBusy,
)
from supervisor.ports import Model
from supervisor.service.planning import Planner
from supervisor.service.tools import Tools
from supervisor.settings import Settings

MODEL = Model(FACTS, SHAPE)
Estimate = Callable[[Plan], EngineMemory]


@dataclass
class Agent:
    """Answers with facts, or not at all."""

    found: DeviceFacts | None

    async def facts(self) -> DeviceFacts:
        if self.found is None:
            raise AgentUnreachable("pi: no answer")
        return self.found


@dataclass
class Devices:
    """The registry's answers."""

    listed: Sequence[Device]
    silent: frozenset[str] = frozenset()
    heard: list[str] = field(default_factory=list)

    def devices(self) -> list[Device]:
        return list(self.listed)

    def find(self, name: str) -> Device:
        found = next((d for d in self.listed if name in (d.name, d.id)), None)
        if found is None:
            raise DeviceUnknown(f"no device {name!r}")
        return found

    def device(self, agent_id: AgentId) -> Device:
        return self.find(agent_id)

    def agent(self, agent_id: AgentId) -> Agent:
        found = self.find(agent_id)
        return Agent(None if found.name in self.silent else found.facts)

    def took_facts(self, agent_id: AgentId, facts: DeviceFacts) -> None:
        self.heard.append(facts.name)


@dataclass
class Estimator:
    """The engine's word on memory."""

    says: Estimate | None = None
    asked: list[Plan] = field(default_factory=list)

    @property
    def is_there(self) -> bool:
        return self.says is not None

    async def __call__(self, model: Model, plan: Plan) -> EngineMemory:
        assert self.says is not None
        self.asked.append(plan)
        return self.says(plan)


def modest(plan: Plan, **weights: int) -> EngineMemory:
    uses = [EngineUse(s.device, weights.get(s.device, 1), 1, 1) for s in plan.shards]
    return EngineMemory(tuple(uses), EngineUse("Host", 1, 1, 1))


def planner(
    *devices: Device,
    silent: str = "",
    says: Estimate | None = None,
    host_gib: float = 16,
    host_layers: bool = False,
    known: bool = False,
    lessons: dict[AgentId, Lesson] | None = None,
    engine: EngineFacts | None = None,
    now_s: Callable[[], float] = lambda: 0.0,
) -> tuple[Planner, Estimator, Devices]:
    estimator = Estimator(says)
    registry = Devices(devices, frozenset({silent}))
    found, kept = measured("id-a"), {} if lessons is None else lessons
    tools = SimpleNamespace(
        settings=Settings(data_folder=Path("/nowhere"), host_layers=host_layers),
        registry=registry,
        store=SimpleNamespace(
            device_measurements=lambda: list(found.devices.values()) if known else [],
            link_measurements=lambda: list(found.links.values()) if known else [],
            lessons=lambda: list(kept.values()),
            model_settings=list,
            save_lesson=lambda lesson: kept.update({lesson.agent_id: lesson}),
        ),
        read_model=lambda _: MODEL,
        read_any_model=lambda _: MODEL,
        estimate_memory=estimator,
        host_available_bytes=lambda: int(host_gib * GIB),
        main_host=SimpleNamespace(
            boot_id=HOST.boot_id, platform="linux", cores=4, engine=engine, help=EngineHelp()
        ),
        projector_of=None,
        read_option_files=None,
    )
    return Planner(cast(Tools, tools), now_s), estimator, registry


def changed(found: Device, **changes: object) -> Device:
    return found.model_copy(update=changes)


async def test_the_engines_word_moves_layers_away_from_who_has_no_room_for_them() -> None:
    def says(plan: Plan) -> EngineMemory:
        by_name = {shard.device: shard.layers for shard in plan.shards}
        return modest(plan, a=by_name["a"] * 2 * GIB)  # each layer of a costs far more than ours

    made, estimator, _ = planner(device("a"), device("b"), says=says)
    plan = (await made.answer(spec(devices=["a", "b"]))).plan
    shard = {shard.device: shard for shard in plan.shards}
    assert plan.memory_from == "engine"
    assert shard["a"].peak_bytes <= shard["a"].budget_bytes
    assert len(estimator.asked) > 1, "the first plan was refused"
    assert shard["a"].layers < max(s.layers for s in estimator.asked[0].shards)


async def test_an_engine_that_cannot_say_leaves_our_formulas_and_their_margin() -> None:
    def says(_: Plan) -> EngineMemory:
        raise EstimateFailed("the tool crashed")

    made, estimator, _ = planner(device("a"), says=says)
    plan = (await made.answer(spec(devices=["a"]))).plan
    assert plan.memory_from == "formulas"
    assert plan.shards[0].compute_bytes > estimator.asked[0].shards[0].compute_bytes


async def test_an_engine_that_is_never_content_is_not_asked_for_ever() -> None:
    made, estimator, _ = planner(
        device("a"), device("b"), says=lambda plan: modest(plan, host=1 * GIB, a=99 * GIB)
    )
    with pytest.raises(InsufficientMemory):
        await made.answer(spec(devices=["a", "b"]))
    assert len(estimator.asked) <= 5


async def test_a_model_that_the_engine_refuses_is_refused_before_anything_starts() -> None:
    def says(_: Plan) -> EngineMemory:
        raise EngineRefusedModel("unknown architecture")

    made, _, _ = planner(device("a"), says=says)
    with pytest.raises(EngineRefusedModel):
        await made.answer(spec(devices=["a"]))


async def test_a_launch_does_not_wait_for_the_engines_word_where_all_have_plenty() -> None:
    made, estimator, _ = planner(device("a"), says=modest)
    plan = await made.plan(spec(devices=["a"]))
    assert estimator.asked == []
    assert plan.memory_from == "formulas"
    tight = await made.plan(spec(devices=["a"], ctx_tokens=240_000))
    assert len(estimator.asked) == 1
    assert tight.memory_from == "engine"


async def test_devices_that_cannot_take_part_are_told_with_the_reason() -> None:
    made, _, _ = planner(
        device("a"),
        changed(device("b"), used_by=DeploymentId("other")),
        changed(device("c"), state="lost", reason="silent for 60 s"),
        changed(device("d"), silent_s=5.0),
        silent="d",
    )
    plan = await made.plan(spec())
    assert {left.name: left.reason for left in plan.left_out} == {
        "b": "it serves deployment other",
        "c": "silent for 60 s",
        "d": "its agent does not answer",
    }
    assert any("c is left out: silent for 60 s" in reason for reason in plan.reasons)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"state": "lost", "reason": "silent"}, AgentUnreachable),
        ({"used_by": DeploymentId("other")}, WorkerBusy),
        ({"silent_s": 5.0}, AgentUnreachable),
    ],
)
async def test_a_named_device_that_cannot_take_part_is_an_error(
    change: dict[str, object], error: type[Exception]
) -> None:
    made, _, _ = planner(changed(device("a"), **change), silent="a" if "silent_s" in change else "")
    with pytest.raises(error):
        await made.plan(spec(devices=["a"]))


async def test_facts_are_asked_for_again_when_they_are_old() -> None:
    made, _, registry = planner(changed(device("a"), silent_s=5.0), device("b"))
    await made.plan(spec())
    assert registry.heard == ["a"]


async def test_the_main_hosts_own_processor_is_used_without_a_worker() -> None:
    own = device("own", boot_id=HOST.boot_id)
    made, _, _ = planner(own, host_layers=True)
    plan = await made.plan(spec())
    assert plan.shards == ()
    assert plan.host.layers == SHAPE.n_layers
    assert [left.name for left in plan.left_out] == ["own"]
    named = await made.plan(spec(devices=["own"]))
    assert [shard.device for shard in named.shards] == ["own"], "who names it, gets its worker"
    with pytest.raises(BadSplit, match="own is the main host itself"):
        await made.plan(spec(devices=["own", MAIN_HOST]))


async def test_without_devices_and_without_the_main_host_there_is_nothing_to_plan_with() -> None:
    made, _, _ = planner()
    with pytest.raises(NoDevices, match="no device has joined"):
        await made.plan(spec())
    made, _, _ = planner(changed(device("a"), state="lost", reason="silent for 60 s"))
    with pytest.raises(NoDevices, match="a: silent for 60 s"):
        await made.plan(spec())


async def test_what_fits_nowhere_says_by_how_much() -> None:
    made, _, _ = planner(device("a"))
    with pytest.raises(InsufficientMemory, match=r"does not fit.*1000000 tokens.*would fit"):
        await made.plan(spec(ctx_tokens=1_000_000))


async def test_measurements_of_another_engine_do_not_count() -> None:
    engine = EngineFacts("/opt", "PATH", build="b1", rpc_protocol="7.0.0")
    base = device("a")
    assert base.facts is not None
    for build, is_guess in (("b1", False), ("b2", True)):
        facts = replace(base.facts, engine=replace(engine, build=build))
        made, _, _ = planner(changed(base, facts=facts), known=True)
        plan = await made.plan(spec(devices=["a"], pin_output="a"))
        assert plan.prediction is not None
        assert plan.prediction.is_guess is is_guess


async def test_an_answer_says_what_would_change_it() -> None:
    made, _, _ = planner(device("a"), device("b"))
    answer = await made.answer(spec())
    assert any("quantisation" in what.change for what in answer.what_ifs)
    assert any("quantisation" in reason for reason in answer.plan.reasons)


async def test_what_is_kept_of_conversations_is_in_the_plan_with_the_reason() -> None:
    made, _, _ = planner(device("a"), host_gib=32)
    plan = await made.plan(spec())
    assert plan.cache_ram_mib == 0
    assert any("over the network from a." in reason for reason in plan.reasons)
    made, _, _ = planner(device("own", boot_id=HOST.boot_id), host_gib=32)
    plan = await made.plan(spec())
    assert plan.cache_ram_mib == 8192
    assert any("8.0 GiB of what the main host has left" in reason for reason in plan.reasons)


async def test_the_engines_word_counts_for_what_is_left_for_prompts_too() -> None:
    def says(plan: Plan) -> EngineMemory:
        uses = [EngineUse(s.device, 4 * GIB, 1, 1) for s in plan.shards]
        return EngineMemory(tuple(uses), EngineUse("Host", 1, 1, 1))

    own = device("own", boot_id=HOST.boot_id)
    made, _, _ = planner(own, host_gib=12)
    before = (await made.answer(spec())).plan
    made, estimator, _ = planner(own, says=says, host_gib=12)
    after = (await made.answer(spec())).plan
    assert estimator.asked
    assert after.memory_from == "engine"
    assert 0 < after.cache_ram_mib < before.cache_ram_mib - 1000
