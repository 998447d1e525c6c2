"""GPUs of Macs: the limit on their memory is named, and small ones take small steps at once."""

from dataclasses import replace

import pytest
from planning_world import host, layer, model
from test_launch_plan import spec
from test_obeying import World
from test_offers import device as joined
from test_offers import offers

from agents.contract import GgmlDevice
from agents.environment import for_engine, relevant
from supervisor.core.entities import AgentId, Device
from supervisor.core.explain import explain
from supervisor.core.memory import GIB, MIB
from supervisor.core.planning import DeviceOffer, NoFit, Overrides, Planned, PlanRequest, Wanted
from supervisor.core.search import plan

MAC = AgentId("id-mac")
SMALL_ALONE = host(8, may_hold_layers=False)


def mac(
    memory_gib: float,
    gpu_gib: float,
    *,
    free_gib: float | None = None,
    platform: str = "macos",
    gpu: str = "MTL0",
) -> Device:
    """A Mac whose GPU may use ``gpu_gib``, all of it free."""
    ggml = GgmlDevice(gpu, total_bytes=int(gpu_gib * GIB), free_bytes=int(gpu_gib * GIB))
    found = joined("mac", ggml, platform=platform)
    assert found.facts is not None
    free = memory_gib - 1 if free_gib is None else free_gib
    facts = replace(
        found.facts,
        memory_total_bytes=int(memory_gib * GIB),
        memory_available_bytes=int(free * GIB),
    )
    return found.model_copy(update={"facts": facts})


def offer(device: Device) -> DeviceOffer:
    return offers(device)["mac"]


# -- the limit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory_gib", "gpu_gib", "raised_mib"),
    [
        (16, 10.67, 12 * 1024),  # 4 GiB stay
        (24, 16, 20 * 1024),
        (64, 48, 56 * 1024),  # an eighth stays
        (128, 96, 112 * 1024),
        (192, 144, 168 * 1024),
    ],
)
def test_what_macos_keeps_is_left_to_it(memory_gib: float, gpu_gib: float, raised_mib: int) -> None:
    limit = offer(mac(memory_gib, gpu_gib)).gpu_limit
    assert limit is not None
    assert limit.raised_mib == raised_mib


@pytest.mark.parametrize(
    "device",
    [
        mac(8, 5.33),  # the 4 GiB that macOS keeps leave less
        mac(16, 12),  # raised already
        mac(16, 10.67, free_gib=8),  # what binds is memory
        mac(16, 10.67, free_gib=11),  # hardly any more is free
        mac(64, 24, platform="linux", gpu="CUDA0"),
        mac(64, 48, gpu="CPU"),
    ],
)
def test_where_it_would_not_help_nothing_is_said(device: Device) -> None:
    assert all(each.gpu_limit is None for each in offers(device).values())


def request(device: Device, layers: int, **more: object) -> PlanRequest:
    values = {
        "shape": model([layer(900 * MIB)] * layers),
        "devices": (offer(device),),
        "host": SMALL_ALONE,
    }
    return PlanRequest.model_validate(values | more)


COMMAND = (
    "The GPU of mac may use 48.0 GiB of 64.0 GiB, a limit of macOS, while 63.0 GiB are free: sudo"
    " sysctl iogpu.wired_limit_mb=57344, typed on that Mac, makes it 56.0 GiB until the Mac"
    " restarts; start its agent anew after that. We never change it ourselves."
)


def test_a_model_that_does_not_fit_because_of_it_gets_the_exact_command() -> None:
    asked = request(mac(64, 48), 60)
    result = plan(asked)
    assert isinstance(result, NoFit)
    assert COMMAND in explain(asked, result)


def test_a_context_that_was_cut_because_of_it_gets_the_command_too() -> None:
    wanted = Wanted(ctx_tokens=400_000, min_ctx_tokens=4096)
    asked = request(mac(64, 48), 30, wanted=wanted)
    result = plan(asked)
    assert isinstance(result, Planned)
    assert result.shrunk
    assert COMMAND in explain(asked, result)


def test_what_fits_as_it_is_gets_no_advice() -> None:
    asked = request(mac(64, 48), 8)
    result = plan(asked)
    assert isinstance(result, Planned)
    assert not any("wired_limit" in said for said in explain(asked, result))


def test_a_mac_that_was_not_wanted_is_not_spoken_of() -> None:
    asked = request(mac(64, 48), 60)
    pi = asked.devices[0].model_copy(update={"name": "pi", "gpu_limit": None})
    both = asked.model_copy(
        update={"devices": (*asked.devices, pi), "overrides": Overrides(exclude=("mac",))}
    )
    result = plan(both)
    assert isinstance(result, NoFit)
    assert not any("wired_limit" in said for said in explain(both, result))


# -- its patience ----------------------------------------------------------------------------------

GENTLE = "computes at most 256 tokens at once (ubatch), since macOS ends work"


async def test_a_small_mac_takes_small_steps_from_the_first_plan_on_and_says_so() -> None:
    made = await World(mac(16, 10.67)).planner.plan(spec(devices=["mac"]))
    assert made.ubatch <= 256
    assert any(reason.startswith("mac: as a Mac with 16.0 GiB") for reason in made.reasons)
    assert any(GENTLE in reason for reason in made.reasons)


async def test_the_operator_knows_better() -> None:
    made = await World(mac(16, 10.67)).planner.plan(spec(devices=["mac"], ubatch=512))
    assert made.ubatch == 512
    assert not any(GENTLE in reason for reason in made.reasons)


@pytest.mark.parametrize(
    "device", [mac(24, 16), mac(16, 10.67, platform="linux", gpu="CUDA0"), mac(16, 10, gpu="CPU")]
)
async def test_others_take_what_is_fastest(device: Device) -> None:
    assert offers(device)["mac"].ubatch_cap is None


async def test_what_it_learned_goes_further_and_is_the_reason_then() -> None:
    world = World(mac(16, 10.67))
    world.teach(MAC, ubatch_cap=64, reasons={"ubatch": "it failed with 128 tokens on 2026-11-20"})
    made = await world.planner.plan(spec(devices=["mac"]))
    assert made.ubatch == 64
    assert any("it failed with 128 tokens" in reason for reason in made.reasons)
    assert not any(GENTLE in reason for reason in made.reasons)
    world.teach(MAC, ubatch_cap=400)
    assert (await world.planner.plan(spec(devices=["mac"]))).ubatch <= 256


# -- its engine ------------------------------------------------------------------------------------


def test_metal_is_asked_to_be_patient_and_the_record_shows_it() -> None:
    name = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
    on_mac = for_engine({"PATH": "/bin"}, {}, "darwin")
    assert relevant(on_mac) == {name: "1", "PATH": "/bin"}
    assert for_engine({name: "0"}, {}, "darwin")[name] == "0", "whoever set it knows why"
    assert name not in for_engine({}, {}, "linux")
