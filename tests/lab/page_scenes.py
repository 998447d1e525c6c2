"""Named states of the invented home: everything that the page may have to show."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from agents.contract import EngineFacts
from lab.page_care import MAIN_VARIANT, RELEASE, care_devices
from lab.page_home import (
    ATTIC,
    DESK,
    HOME,
    LARGE,
    MAC,
    MEDIUM,
    OLD_PHONE,
    PIXEL,
    SMALL,
    Home,
    Kind,
    crowd,
    deployment_id,
    device_json,
    dumped,
    engine,
)
from lab.page_models import PULLED, library, pull, pulls, usual
from lab.page_records import (
    OUT_OF_MEMORY,
    PHONE_LEFT,
    USUAL,
    history,
    launches,
    links,
    requests,
    stamp,
    timeline,
    worker_bytes,
)
from supervisor.core.entities import (
    Cause,
    Deployment,
    DeploymentSpec,
    EventRecord,
    LaunchId,
    LaunchRecord,
    Plan,
)
from supervisor.core.library import LibraryModel
from supervisor.core.lifecycle import State
from supervisor.core.link_view import worker_loads
from supervisor.core.request_record import RequestRecord

Json = dict[str, Any]
NAME: Final = "qwen-14b"
CTX: Final = 16_384
LOG_LINES: Final = 10_000
"""Of all processes together."""


@dataclass
class Scene:
    """What the server knows at the beginning. Devices and deployments are JSON already."""

    name: str
    now: datetime
    home: Home
    devices: list[Json] = field(default_factory=list)
    deployments: list[Json] = field(default_factory=list)
    traffic: list[Json] = field(default_factory=list)
    requests: list[RequestRecord] = field(default_factory=list)
    launches: list[LaunchRecord] = field(default_factory=list)
    history: list[EventRecord] = field(default_factory=list)
    library: list[LibraryModel] = field(default_factory=list)
    pulls: list[Json] = field(default_factory=list)
    log_lines: int = 220
    """Of each process, all at once."""
    needs_key: bool = False
    is_hub_down: bool = False
    problem: str = ""
    engine: EngineFacts = field(default_factory=engine)
    """Of the main host."""

    def __post_init__(self) -> None:
        if self.devices and not self.library:
            self.library = usual(self.now)


# -- parts -------------------------------------------------------------------------------------


def spec(**changes: Any) -> DeploymentSpec:
    """The large model over three devices."""
    known: Json = {"model": LARGE.path, "name": NAME, "ctx_tokens": CTX, "devices": USUAL}
    return DeploymentSpec(**{**known, **changes})


def usual_plan(home: Home) -> Plan:
    return home.answer(spec()).plan


def deployment(now: datetime, state: State, *, since_s: float = 0, **changes: Any) -> Deployment:
    """One that has been in a state for so long."""
    since = stamp(now - timedelta(seconds=since_s))
    known: Json = {"id": deployment_id(NAME), "spec": spec(), "state": state, "since": since}
    return Deployment(**{**known, **changes})


def running(now: datetime, home: Home, state: State = State.READY, **changes: Any) -> Deployment:
    """One that serves."""
    plan: Plan = changes.get("plan") or usual_plan(home)
    known: Json = {
        "launch_id": LaunchId(41),
        "port": 8110,
        "plan": plan,
        "loads": worker_loads(plan, worker_bytes(plan)),
        "links": links(plan, home),
        "timeline": timeline(0.09, 1.4, 0.6, 2.2, 90.5, 3.1),
        "tokens_per_second": 6.4,
        "generated_tokens": 18_204,
        "generated_s": 2717.0,
    }
    return deployment(now, state, since_s=2110, **{**known, **changes})


def token_time(now: datetime, plan: Plan, *, slow: Mapping[str, float] | None = None) -> Json:
    """Where the time of a token went: about as predicted, times ``slow`` for some devices."""
    factors = slow or {}
    stages = plan.prediction.stages if plan.prediction else ()
    workers = [
        {
            "device": stage.device.partition("/")[0],
            "compute_ms": round(stage.compute_s * 1e3 * 1.07, 2),
            "wire_ms": round(stage.network_s * 1e3 * factors.get(stage.device, 1.24), 2),
        }
        for stage in stages
    ]
    return {"at": stamp(now - timedelta(seconds=2)), "tokens": 212, "host_ms": 6.1,
            "workers": workers}  # fmt: skip


def traffic(name: str = NAME, active: int = 0, waiting: int = 0, slots: int = 1) -> Json:
    return {"deployment": name, "active": active, "waiting": waiting, "slots": slots}


def idle_devices(now: datetime, kinds: Sequence[Kind] = HOME) -> list[Json]:
    return [device_json(kind, now) for kind in kinds]


def busy_devices(now: datetime, plan: Plan, doing: str, part: float = 1.0) -> list[Json]:
    """The home with the workers of a plan at work; ``part`` of their weights is there."""
    held = worker_bytes(plan)
    found = []
    for kind in HOME:
        if kind.name not in held:
            found.append(device_json(kind, now))
            continue
        found.append(
            device_json(
                kind, now, held_bytes=int(held[kind.name] * part), used_by=NAME, doing=doing
            )
        )
    return found


def settled(scene: Scene) -> Scene:
    """With the records of the last days."""
    scene.launches = launches(Home(HOME, scene.now), scene.now)
    scene.history = history(scene.launches, scene.now)
    return scene


def serving(name: str, now: datetime, *, state: State = State.READY, **changes: Any) -> Scene:
    """The large model is served."""
    home = Home(HOME, now)
    made = running(now, home, state, **changes)
    assert made.plan is not None
    return settled(
        Scene(
            name,
            now,
            home,
            busy_devices(now, made.plan, f"serving {NAME}"),
            [dumped(made, token_time=token_time(now, made.plan))],
            [traffic(active=1)],
            requests(now),
        )
    )


def not_running(name: str, now: datetime, state: State, **changes: Any) -> Scene:
    """It is not served now; the devices are idle."""
    home = Home(HOME, now)
    made = deployment(now, state, **changes)
    before = now - timedelta(seconds=changes["since_s"])
    return settled(
        Scene(
            name, now, home, idle_devices(now), [dumped(made, token_time=None)], [traffic()],
            requests(before),
        )
    )  # fmt: skip


# -- scenes ------------------------------------------------------------------------------------


def empty(now: datetime) -> Scene:
    return Scene("empty", now, Home((DESK,), now))


def devices(now: datetime) -> Scene:
    return Scene("devices", now, Home(HOME, now), idle_devices(now))


def device_states(now: datetime) -> Scene:
    """Every state, and what a device may be doing."""
    old = engine(build="3f1a9c2", rpc_protocol="6.1.0", version="0.4.2")
    lacks = engine(
        rpc_server="", has_rpc=False, problem_code="engine_without_rpc",
        problem="this build has no ggml-rpc-server; build llama.cpp with -DGGML_RPC=ON",
    )  # fmt: skip
    mixed = "speaks RPC 6.1.0, the main host 7.0.0; install the same llama.cpp build on both"
    found = [
        device_json(DESK, now),
        device_json(MAC, now, doing="being measured", stale="it was measured with build 3f1a9c2, "
                    "now it is 0c1e570"),
        device_json(PIXEL, now, state="suspect", reason="heartbeat is 14 s old", silent_s=14.2),
        device_json(OLD_PHONE, now, state="lost", silent_s=734.0, round_trip_ms=None,
                    reason="last heard of 734 s ago; check that its agent runs and its network"),
        device_json(ATTIC, now, excluded=True),
        _with_engine(device_json(_named(ATTIC, "cellar-pc", 41), now, is_measured=False,
                                 state="incompatible", reason=mixed), old),
        _with_engine(device_json(_named(MAC, "macbook", 42), now, is_measured=False,
                                 state="unusable", reason=lacks.problem), lacks),
        device_json(_named(PIXEL, "tablet", 43), now, is_measured=False),
        device_json(_named(PIXEL, "pixel-6", 44), now, doing=f"receiving weights of {NAME}"),
        {**device_json(_named(OLD_PHONE, "new-phone", 45), now, is_measured=False, state="lost",
                       silent_s=0.0, round_trip_ms=None,
                       reason="not heard of since we started; check that its agent runs and its "
                       "network"), "facts": None, "rpc_server": None},
    ]  # fmt: skip
    return Scene("device-states", now, Home(HOME, now), found)


def care(now: datetime) -> Scene:
    """Parked, hot, about to get an engine, with several networks."""
    own = engine(release=RELEASE, variant=MAIN_VARIANT)
    return Scene("care", now, Home(HOME, now), care_devices(now), engine=own)


def _named(kind: Kind, name: str, host: int) -> Kind:
    return Kind(**{**kind.__dict__, "name": name, "address": f"192.168.1.{host}"})


def _with_engine(body: Json, found: Any) -> Json:
    return {**body, "facts": {**body["facts"], "engine": asdict(found)}}


def loading(now: datetime) -> Scene:
    home = Home(HOME, now)
    plan = usual_plan(home)
    parts = [0.34, 0.58, 0.91][: len(worker_bytes(plan))]
    totals = worker_bytes(plan).items()
    done = {name: int(total * part) for (name, total), part in zip(totals, parts, strict=True)}
    made = deployment(
        now,
        State.STARTING,
        since_s=41,
        phase="load",
        launch_id=LaunchId(41),
        port=8110,
        plan=plan,
        loads=worker_loads(plan, done),
        links=links(plan, home, parts=parts),
        timeline=timeline(0.09, 1.4, 0.6, 2.2),
    )
    found = busy_devices(now, plan, f"loading {NAME}", 0.5)
    return settled(Scene("loading", now, home, found, [dumped(made, token_time=None)], [traffic()]))


def ready(now: datetime) -> Scene:
    return serving("ready", now)


def idle(now: datetime) -> Scene:
    """Nobody asks anything; it has answered before."""
    scene = serving("idle", now)
    scene.traffic = [traffic()]
    return scene


def slow(now: datetime) -> Scene:
    """It answers, far slower than it did; who makes it so is known."""
    text = (
        "slow but alive: 1.90 instead of 6.40 tokens per second; its answers come late from "
        "pixel-8 (its link)"
    )
    scene = serving("slow", now, tokens_per_second=1.9, slow=text)
    plan = usual_plan(scene.home)
    scene.deployments[0]["token_time"] = token_time(now, plan, slow={"pixel-8": 40.4})
    scene.requests = [
        each.model_copy(update={"tokens_per_s": 1.9 + index / 5, "total_s": 92.0})
        if index < 4 and each.tokens_per_s
        else each
        for index, each in enumerate(scene.requests)
    ]
    return scene


def degraded(now: datetime) -> Scene:
    """Something ended just now; it is being found out what."""
    reason = "the link to pixel-8 was lost in phase serve: silent for 5.0 s"
    scene = serving("degraded", now, state=State.DEGRADED, reason=reason)
    scene.deployments[0]["since"] = stamp(now - timedelta(seconds=2))
    scene.traffic = [traffic(active=1, waiting=2)]
    return scene


def backoff(now: datetime) -> Scene:
    """A phone left: the next attempt is due."""
    scene = not_running(
        "backoff", now, State.BACKOFF, since_s=22, launch_id=LaunchId(41), failures=2,
        cause=PHONE_LEFT, reason=PHONE_LEFT.text, error_code=PHONE_LEFT.code,
        plan=usual_plan(Home(HOME, now)), retry_at=stamp(now + timedelta(seconds=40)),
        timeline=timeline(0.09, 1.4, 0.6, 2.2, 90.5, 3.1),
    )  # fmt: skip
    scene.devices[2] = device_json(
        PIXEL, now, state="lost", silent_s=53.0, round_trip_ms=None,
        reason="last heard of 53 s ago; check that its agent runs and its network",
    )  # fmt: skip
    scene.traffic = [traffic(waiting=3)]
    return scene


def failed(now: datetime) -> Scene:
    cause: Cause = OUT_OF_MEMORY
    fewer = ("attic-pc", "mac-mini", "old-phone")
    wanted = spec(devices=fewer, ctx_tokens=8192)
    return not_running(
        "failed", now, State.FAILED, since_s=311, spec=wanted, launch_id=LaunchId(38), failures=8,
        cause=cause, reason=f"gave up after 8 attempts: {cause.text}", error_code=cause.code,
        plan=Home(HOME, now).answer(wanted).plan, timeline=timeline(0.09, 1.4, 0.6, 2.2),
    )  # fmt: skip


def stopped(now: datetime) -> Scene:
    return not_running("stopped", now, State.STOPPED, since_s=4010, launch_id=LaunchId(41))


def stopping(now: datetime) -> Scene:
    scene = serving("stopping", now, state=State.STOPPING)
    scene.deployments[0]["since"] = stamp(now - timedelta(seconds=12))
    return scene


def waiting(now: datetime) -> Scene:
    """It starts, and twelve requests wait for it."""
    scene = loading(now)
    scene.name = "waiting"
    scene.traffic = [traffic(waiting=12)]
    scene.requests = requests(now)
    return scene


def many(now: datetime) -> Scene:
    """A hall of devices, and three deployments."""
    home = Home((DESK, *crowd(199)), now)
    names = [kind.name for kind in home.kinds]
    specs = [
        DeploymentSpec(model=LARGE.path, name=NAME, ctx_tokens=CTX,
                       devices=(names[1], names[4], names[5])),
        DeploymentSpec(model=MEDIUM.path, name="llama-8b", ctx_tokens=8192,
                       devices=(names[8], names[12]), slots=4),
        DeploymentSpec(model=SMALL.path, name="llama-3b", devices=(names[9],)),
    ]  # fmt: skip
    made: list[Json] = []
    doing: dict[str, tuple[str, int]] = {}
    for number, wanted in enumerate(specs):
        plan = home.answer(wanted).plan
        one = running(now, home, spec=wanted, id=wanted.name, plan=plan,
                      loads=worker_loads(plan, worker_bytes(plan)), links=links(plan, home),
                      tokens_per_second=6.7 * (number + 1))  # fmt: skip
        made.append(dumped(one, token_time=token_time(now, plan)))
        doing |= {name: (wanted.name or "", held) for name, held in worker_bytes(plan).items()}
    found = []
    for kind in home.kinds:
        name, held = doing.get(kind.name, ("", 0))
        found.append(
            device_json(
                kind, now, held_bytes=held, used_by=name or None,
                doing=f"serving {name}" if name else "",
            )
        )  # fmt: skip
    rows = [traffic(each.name or "", active=1, slots=each.slots) for each in specs]
    return settled(Scene("many", now, home, found, made, rows, requests(now)))


def signed_out(now: datetime) -> Scene:
    scene = ready(now)
    scene.name, scene.needs_key = "signed-out", True
    return scene


def unreachable_hub(now: datetime) -> Scene:
    scene = devices(now)
    scene.name, scene.is_hub_down = "unreachable-hub", True
    return scene


def no_fit(now: datetime) -> Scene:
    """Too little for the largest model: the attic is out of the house."""
    kinds = (DESK, MAC, PIXEL, OLD_PHONE)
    return Scene("no-fit", now, Home(kinds, now), idle_devices(now, kinds))


def logs(now: datetime) -> Scene:
    scene = ready(now)
    scene.name, scene.log_lines = "logs", LOG_LINES // (2 + len(USUAL))
    return scene


def models(now: datetime) -> Scene:
    """Models in every tool's folder; one of them is served."""
    scene = ready(now)
    scene.name, scene.library = "models", library(now)
    return scene


def some_pulls(now: datetime) -> Scene:
    """A pull in each state."""
    scene = devices(now)
    scene.name, scene.pulls = "pulls", [dumped(each) for each in pulls()]
    return scene


def fetching(now: datetime) -> Scene:
    """What was launched comes from the hub first."""
    home = Home(HOME, now)
    coming = pull(1, PULLED, 4.68, 0.62, bytes_per_s=11_300_000, eta_s=157.4, deployments=(NAME,))
    wanted = spec(model=PULLED)
    made = deployment(now, State.FETCHING, since_s=580, spec=wanted, plan=home.answer(wanted).plan,
                      pull=coming, timeline=timeline(0.09))  # fmt: skip
    found = [dumped(made, token_time=None)]
    return Scene("fetching", now, home, idle_devices(now), found, [traffic()],
                 pulls=[dumped(coming)])  # fmt: skip


SCENES: Final[Mapping[str, Callable[[datetime], Scene]]] = {
    "empty": empty,
    "devices": devices,
    "device-states": device_states,
    "care": care,
    "loading": loading,
    "ready": ready,
    "idle": idle,
    "slow": slow,
    "degraded": degraded,
    "backoff": backoff,
    "failed": failed,
    "stopped": stopped,
    "stopping": stopping,
    "waiting": waiting,
    "many": many,
    "signed-out": signed_out,
    "unreachable-hub": unreachable_hub,
    "no-fit": no_fit,
    "models": models,
    "pulls": some_pulls,
    "fetching": fetching,
    "logs": logs,
}
