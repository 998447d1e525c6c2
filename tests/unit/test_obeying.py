"""The planner obeys what was learned, says so, and never fails because of a punishment."""

from dataclasses import replace

import pytest
from test_launch_plan import spec
from test_offers import CUDA, HOST, device
from test_planner import changed, planner

from agents.contract import EngineFacts, RpcServerStatus, WorkerState
from supervisor.core.entities import (
    Action,
    AgentId,
    Cause,
    Deployment,
    DeploymentId,
    DeploymentSpec,
    Device,
    Plan,
)
from supervisor.core.lessons import MAIN_HOST, Lesson
from supervisor.core.memory import GIB
from supervisor.core.planning import HOST as MAIN_HOST_NAME
from supervisor.core.repair import relaunch_reason
from supervisor.errors import (
    AgentUnreachable,
    InsufficientMemory,
    NoDevices,
    WorkerIncompatible,
)
from supervisor.service.planning import Planner

A, B = AgentId("id-a"), AgentId("id-b")
NOW_S = 1_795_132_800.0  # 2026-11-20
ASIDE = {
    "losses": (NOW_S,),
    "aside_count": 1,
    "aside_at_s": NOW_S,
    "aside_s": 60.0,
    "reasons": {"losses": "3 losses in 10 minutes, the last one on 2026-11-20"},
}
KILLED = {
    "memory_factor": 0.8,
    "memory_at_s": NOW_S,
    "reasons": {"memory": "its rpc-server was killed for want of memory on 2026-11-20"},
}
TOO_MUCH = {"ubatch_cap": 64, "reasons": {"ubatch": "it failed with 128 tokens on 2026-11-20"}}
BUILD = EngineFacts("/opt", "PATH", build="b1", rpc_protocol="7.0.0")


class World:
    """Devices, lessons and a clock, and the planner over them."""

    def __init__(self, *devices: Device, host_gib: float = 16, host_layers: bool = False) -> None:
        self.lessons: dict[AgentId, Lesson] = {}
        self.now_s = NOW_S + 18
        self.planner: Planner
        self.planner, _, self.registry = planner(
            *devices,
            lessons=self.lessons,
            now_s=lambda: self.now_s,
            engine=BUILD,
            host_gib=host_gib,
            host_layers=host_layers,
        )

    def teach(self, agent_id: AgentId, **what: object) -> None:
        self.lessons[agent_id] = Lesson.model_validate({"agent_id": agent_id} | what)


def names(plan: Plan) -> list[str]:
    return sorted(shard.device for shard in plan.shards)


def left_out(plan: Plan) -> dict[str, str]:
    return {left.name: left.reason for left in plan.left_out}


def with_engine(found: Device, engine: EngineFacts) -> Device:
    assert found.facts is not None
    return changed(found, facts=replace(found.facts, engine=engine))


# -- set aside -------------------------------------------------------------------------------------


async def test_a_device_that_is_set_aside_is_left_out_and_tried_again() -> None:
    world = World(device("a"), device("b"))
    world.teach(A, **ASIDE)
    plan = await world.planner.plan(spec())
    assert names(plan) == ["b"]
    assert left_out(plan)["a"] == (
        "set aside for 60 seconds, 42 seconds more, after 3 losses in 10 minutes, the last one on"
        " 2026-11-20"
    )
    assert any("a is left out: set aside for 60 seconds" in reason for reason in plan.reasons)
    world.now_s = NOW_S + 61
    assert "a" not in left_out(await world.planner.plan(spec(exclude=["b"])))


async def test_the_only_device_is_used_though_it_is_set_aside() -> None:
    world = World(device("a"), changed(device("b"), state="lost", reason="silent for 60 s"))
    world.teach(A, **ASIDE)
    plan = await world.planner.plan(spec())
    assert names(plan) == ["a"]
    assert any(
        reason.startswith("a may be used although it was set aside for 60 seconds")
        and reason.endswith("there is no plan without it.")
        for reason in plan.reasons
    )


async def test_a_model_that_fits_nowhere_else_takes_the_device_that_is_set_aside() -> None:
    big = {"ctx_tokens": 600_000}
    world = World(device("a"), device("b"))
    with pytest.raises(InsufficientMemory):
        await world.planner.plan(spec(**big, exclude=["a"]))
    world.teach(A, **ASIDE)
    plan = await world.planner.plan(spec(**big))
    assert names(plan) == ["a", "b"]


async def test_what_fits_not_even_then_says_so_of_all_devices() -> None:
    world = World(device("a"), device("b"))
    world.teach(A, **ASIDE)
    with pytest.raises(InsufficientMemory) as caught:
        await world.planner.plan(spec(ctx_tokens=9_000_000))
    listed = str(caught.value.shortfall["devices"])
    assert "'a'" in listed
    assert "'b'" in listed


async def test_the_main_host_alone_is_a_plan_without_the_device_that_is_set_aside() -> None:
    world = World(device("a"), host_layers=True)
    world.teach(A, **ASIDE)
    plan = await world.planner.plan(spec())
    assert plan.shards == ()
    assert "set aside" in left_out(plan)["a"]


async def test_who_names_a_device_gets_it() -> None:
    world = World(device("a"), device("b"))
    world.teach(A, **ASIDE)
    plan = await world.planner.plan(spec(devices=["a"]))
    assert names(plan) == ["a"]
    assert any(r.startswith("a may be used") and "you named it" in r for r in plan.reasons)


# -- repairs ---------------------------------------------------------------------------------------


async def test_a_repair_does_without_a_named_device_that_is_gone() -> None:
    gone = changed(device("b"), state="lost", reason="silent for 60 s")
    world = World(device("a"), gone, device("c"))
    asked = spec(devices=["a", "b"], split=[4, 5], pin_output="b")
    with pytest.raises(AgentUnreachable):
        await world.planner.plan(asked)
    plan = await world.planner.plan(asked, is_repair=True)
    assert names(plan) == ["a"], "and c was never asked for"
    assert any("This is a repair without b, and without your split" in r for r in plan.reasons)


async def test_a_repair_does_without_a_named_device_that_does_not_answer() -> None:
    made, _, _ = planner(device("a"), changed(device("b"), silent_s=5.0), silent="b")
    plan = await made.plan(spec(devices=["a", "b"]), is_repair=True)
    assert names(plan) == ["a"]
    with pytest.raises(AgentUnreachable):
        await made.plan(spec(devices=["b"]), is_repair=True)


async def test_a_repair_does_without_a_named_device_that_is_set_aside_if_it_can() -> None:
    world = World(device("a"), device("b"))
    world.teach(A, **ASIDE)
    asked = spec(devices=["a", "b"])
    assert names(await world.planner.plan(asked, is_repair=True)) == ["b"]
    assert names(await world.planner.plan(asked)) == ["a", "b"]
    big = spec(devices=["a", "b"], ctx_tokens=600_000)
    assert names(await world.planner.plan(big, is_repair=True)) == ["a", "b"]


async def test_a_repair_with_none_of_the_named_says_what_is_missing() -> None:
    gone = changed(device("b"), state="lost", reason="silent for 60 s")
    world = World(device("a"), gone)
    with pytest.raises(AgentUnreachable, match="b cannot take part: silent for 60 s"):
        await world.planner.plan(spec(devices=["b"]), is_repair=True)


async def test_a_repair_takes_the_one_that_is_set_aside_if_the_other_is_gone() -> None:
    gone = changed(device("b"), state="lost", reason="silent for 60 s")
    world = World(device("a"), gone)
    world.teach(A, **ASIDE)
    plan = await world.planner.plan(spec(devices=["a", "b"]), is_repair=True)
    assert names(plan) == ["a"]


# -- remedies --------------------------------------------------------------------------------------


async def test_a_device_that_was_killed_for_memory_gets_a_smaller_share() -> None:
    world = World(device("a"), device("b"))
    asked = spec(devices=["a", "b"], ctx_tokens=400_000)
    before = {s.device: s for s in (await world.planner.plan(asked)).shards}
    world.teach(A, **KILLED, share_bytes={"CPU": before["a"].peak_bytes * 8 // 10})
    plan = await world.planner.plan(asked)
    after = {s.device: s for s in plan.shards}
    assert after["a"].peak_bytes <= after["a"].budget_bytes <= 0.8 * before["a"].peak_bytes
    assert after["a"].available_bytes == before["a"].available_bytes, "that is what there is"
    assert after["b"].budget_bytes == before["b"].budget_bytes
    assert any(
        r.startswith("a: its rpc-server was killed for want of memory on 2026-11-20: 80% of its")
        for r in plan.reasons
    )


async def test_a_share_too_small_for_a_layer_leaves_a_device_out_with_the_reason() -> None:
    world = World(device("a"), device("b"))
    world.teach(A, **KILLED, share_bytes={"CPU": 1})
    plan = await world.planner.plan(spec())
    assert names(plan) == ["b"]
    reason = left_out(plan)["a"]
    assert reason.startswith("no room for one layer; its rpc-server was killed")
    with pytest.raises(InsufficientMemory, match="a: its rpc-server was killed for want of memory"):
        await world.planner.plan(spec(devices=["a"]))


async def test_a_main_host_that_ran_out_of_memory_offers_less_of_it_everywhere() -> None:
    own = device("own", boot_id=HOST.boot_id)
    world = World(own, device("b"), host_layers=True, host_gib=8)
    free = await world.planner.plan(spec(devices=["own"]))
    elsewhere = await world.planner.plan(spec(devices=["b"]))
    world.teach(MAIN_HOST, **KILLED)
    plan = await world.planner.plan(spec(devices=["own"]))
    assert plan.host.budget_bytes < free.host.budget_bytes
    assert plan.shards[0].budget_bytes < free.shards[0].budget_bytes
    other = await world.planner.plan(spec(devices=["b"]))
    assert other.shards[0].budget_bytes == elsewhere.shards[0].budget_bytes
    assert any(r.startswith(MAIN_HOST_NAME) and "80%" in r for r in plan.reasons)


async def test_a_gpu_that_timed_out_computes_fewer_tokens_at_once() -> None:
    world = World(device("a", CUDA), device("b"))
    world.teach(A, **TOO_MUCH)
    plan = await world.planner.plan(spec(devices=["a"]))
    assert plan.ubatch == 64
    assert any("a: it failed with 128 tokens on 2026-11-20: at most 64" in r for r in plan.reasons)
    assert (await world.planner.plan(spec(devices=["b"]))).ubatch > 64


async def test_an_explicit_ubatch_wins_with_a_warning() -> None:
    world = World(device("a"))
    world.teach(A, **TOO_MUCH)
    plan = await world.planner.plan(spec(devices=["a"], ubatch=256))
    assert plan.ubatch == 256
    assert any("you ask for 256 (--ubatch): it may well fail again" in r for r in plan.reasons)
    modest = await world.planner.plan(spec(devices=["a"], ubatch=32))
    assert modest.ubatch == 32
    assert not any("--ubatch" in r for r in modest.reasons)


async def test_llama_server_itself_takes_part_in_every_plan_and_so_does_its_cap() -> None:
    world = World(device("a"))
    world.teach(MAIN_HOST, **TOO_MUCH)
    assert (await world.planner.plan(spec())).ubatch == 64
    world.teach(MAIN_HOST, ubatch_cap=256)
    assert (await world.planner.plan(spec())).ubatch <= 256


async def test_a_build_that_failed_is_excluded_until_it_is_another() -> None:
    wrong = with_engine(device("a"), replace(BUILD, build="b2"))
    world = World(wrong, device("b"))
    mismatch = Cause(
        code="worker_incompatible", sentence="x", action=Action.EXCLUDE, agent_id=A, device="a"
    )
    await world.planner.learn(mismatch, await world.planner.plan(spec(devices=["a"])))
    plan = await world.planner.plan(spec())
    assert names(plan) == ["b"]
    assert "b2 (RPC 7.0.0) beside the main host's b1" in left_out(plan)["a"]
    with pytest.raises(WorkerIncompatible, match="install the same"):
        await world.planner.plan(spec(devices=["a"]))
    world.registry.listed = [with_engine(device("a"), BUILD)]
    assert names(await world.planner.plan(spec())) == ["a"]


async def test_nothing_but_excluded_devices_is_an_error_with_the_reason() -> None:
    world = World(with_engine(device("a"), BUILD))
    world.teach(A, engine_build_refused="b1 (RPC 7.0.0) beside the main host's b1 (RPC 7.0.0)")
    with pytest.raises(NoDevices, match=r"a: b1 .* install the same llama\.cpp build"):
        await world.planner.plan(spec())


# -- learning --------------------------------------------------------------------------------------


async def test_failures_teach_and_the_next_plan_obeys() -> None:
    world = World(device("a"), device("b"))
    lost = Cause(code="worker_killed", sentence="x", agent_id=A, device="a")
    plan = await world.planner.plan(spec(devices=["a"]))
    for _ in range(3):
        assert names(await world.planner.plan(spec(exclude=["b"]))) == ["a"]
        assert await world.planner.learn(lost, plan) is not None
        world.now_s += 5
    assert names(await world.planner.plan(spec())) == ["b"]
    world.now_s += 60
    assert world.planner.usable(deployment(spec())) == {A, B}


async def test_what_teaches_nothing_is_not_kept() -> None:
    world = World(device("a"))
    plan = await world.planner.plan(spec())
    for code, agent_id in (("engine_exited", ""), ("engine_exited", A), ("worker_lost", "gone")):
        cause = Cause(code=code, sentence="x", agent_id=agent_id)
        assert await world.planner.learn(cause, plan) is None
    assert world.lessons == {}


# -- what could run instead ------------------------------------------------------------------------


def deployment(asked: DeploymentSpec) -> Deployment:
    return Deployment(id=DeploymentId("m"), spec=asked)


async def test_the_devices_that_could_be_used_are_those_that_were_asked_for_and_can_be() -> None:
    world = World(
        device("a"),
        changed(device("b"), used_by=DeploymentId("m")),
        changed(device("c"), used_by=DeploymentId("other")),
        changed(device("d"), state="suspect"),
        device("e"),
    )
    world.teach(AgentId("id-e"), **ASIDE)
    usable = world.planner.usable
    assert usable(deployment(spec())) == {A, B}
    assert usable(deployment(spec(exclude=["b"]))) == {A}
    assert usable(deployment(spec(devices=["b/CPU", "c"]))) == {B}
    world.now_s += 60
    assert usable(deployment(spec(exclude=["id-a", "b"]))) == {AgentId("id-e")}


async def test_a_candidate_is_planned_as_if_nothing_of_the_deployment_ran() -> None:
    """What runs has taken most of the memory; that must not look like a reason against it."""
    world = World(device("a"), device("b"))
    current = await world.planner.plan(spec(devices=["a"]))
    shard = current.shards[0]
    busy = device("a")
    assert busy.facts is not None
    held = shard.weight_bytes + shard.kv_bytes + shard.compute_bytes
    busy = changed(
        busy,
        used_by=DeploymentId("m"),
        rpc_server=RpcServerStatus(WorkerState.READY, resident_bytes=held),
        facts=replace(
            busy.facts, memory_available_bytes=8 * GIB - held, memory_total_bytes=9 * GIB
        ),
    )
    world.registry.listed = [busy]
    today, candidate = await world.planner.candidate(deployment(spec()), current)
    assert candidate.shards[0].available_bytes == 8 * GIB
    assert today.shards == current.shards
    assert today.prediction is not None
    assert relaunch_reason(today, candidate, spec(), min_gain=1.0, load_s=0.0) is None


async def test_a_device_that_returned_gives_the_whole_context_back() -> None:
    asked = spec(ctx_tokens=900_000, min_ctx_tokens=4096)
    alone = World(device("a"))
    current = await alone.planner.plan(asked)
    assert current.ctx_tokens < 900_000
    both = World(device("a"), device("b"))
    today, candidate = await both.planner.candidate(deployment(asked), current)
    found = relaunch_reason(today, candidate, asked, min_gain=1.2, load_s=4.0)
    assert found is not None
    assert found.startswith("with b, there would be the whole context of 900000 instead of")


async def test_what_runs_is_compared_by_what_is_known_today() -> None:
    """Its own prediction may be older than the last measurements."""
    world = World(device("a"))
    current = await world.planner.plan(spec(devices=["a"]))
    assert current.prediction is not None
    guessed = current.prediction.model_copy(update={"decode_tokens_per_s": 9999.0})
    old = current.model_copy(update={"prediction": guessed})
    today, _ = await world.planner.candidate(deployment(spec()), old)
    assert today.prediction == current.prediction


async def test_what_runs_keeps_its_old_prediction_if_a_device_of_it_is_gone() -> None:
    world = World(device("a"), device("b"))
    current = await world.planner.plan(spec(devices=["a"]))
    world.registry.listed = [device("b")]
    today, candidate = await world.planner.candidate(deployment(spec()), current)
    assert today == current
    assert names(candidate) == ["b"]


async def test_what_runs_is_predicted_with_the_layers_of_the_main_host() -> None:
    world = World(device("a"), host_layers=True)
    current = await world.planner.plan(spec(devices=["a", MAIN_HOST_NAME], pin_output="a"))
    today, _ = await world.planner.candidate(deployment(spec()), current)
    assert today.prediction is not None
    assert current.prediction is not None
    assert today.prediction.decode_tokens_per_s == pytest.approx(
        current.prediction.decode_tokens_per_s, rel=0.2
    )
