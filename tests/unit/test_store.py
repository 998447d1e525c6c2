"""The database, for real: what is written comes back, and what is not ours is refused."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.adapters.store import MIGRATIONS, Store
from supervisor.core.entities import (
    AgentId,
    Deployment,
    DeploymentId,
    DeploymentSpec,
    DeviceChoice,
    EngineRecord,
    LaunchId,
    LaunchRecord,
    Milestone,
    ModelFacts,
    Plan,
    Shard,
    WorkerRecord,
)
from supervisor.core.lifecycle import State
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.errors import LaunchUnknown, StoreUnusable

PLAN = Plan(
    model=ModelFacts(path="/m", name="m", architecture="llama", block_count=8, size_bytes=9),
    ctx_tokens=4096,
    slots=1,
    shards=(Shard(agent_id=AgentId("a"), device="a", ggml_device="CPU", host="h", layers=9),),
    reasons=("because",),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "supervisor.db")
    yield opened
    opened.close()


def deployment(name: str, state: State = State.PENDING) -> Deployment:
    spec = DeploymentSpec(model="/m.gguf", devices=("a", "ü"), split=(4, 5))
    timeline = (Milestone(name="planned", at_s=0.5, took_s=0.5),)
    return Deployment(
        id=DeploymentId(name), spec=spec, state=state, plan=PLAN, timeline=timeline, failures=2
    )


def launch(number: int) -> LaunchRecord:
    worker = WorkerRecord(
        agent_id=AgentId("a"),
        device="a",
        host="10.0.0.2",
        port=8110,
        rpc_protocol="7.0.0",
        engine_build="x",
        round_trip_ms=1.25,
        argv=("rpc-server", "-p", "8110"),
        environment={"PATH": "/bin"},
    )
    return LaunchRecord(
        id=LaunchId(number),
        deployment=DeploymentId("m"),
        started_at="2026-10-01T00:00:00.000+00:00",
        plan=PLAN,
        main_host="desk",
        engine=EngineRecord(path="/x", version="1", build="x", rpc_protocol="7.0.0"),
        workers=(worker,),
        argv=("llama-server", "--model", "/m 1"),
    )


def test_a_deployment_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    first = Store(tmp_path / "s.db")
    saved = [deployment("a"), deployment("b", State.FAILED)]
    for item in reversed(saved):
        first.save_deployment(item)
    first.close()
    again = Store(tmp_path / "s.db")
    assert again.deployments() == saved
    again.close()


def test_saving_again_replaces_and_deleting_forgets(store: Store) -> None:
    store.save_deployment(deployment("a"))
    store.save_deployment(deployment("a", State.READY))
    assert [d.state for d in store.deployments()] == [State.READY]
    store.delete_deployment(DeploymentId("a"))
    store.delete_deployment(DeploymentId("never was"))
    assert store.deployments() == []


def test_a_launch_comes_back_as_it_was_saved(store: Store) -> None:
    store.save_launch(launch(1))
    done = launch(1).model_copy(update={"outcome": "failed", "reason": "x", "pid": 7})
    store.save_launch(done)
    assert store.launch(LaunchId(1)) == done


def test_launches_are_listed_newest_first_up_to_a_limit(store: Store) -> None:
    for number in (1, 3, 2):
        store.save_launch(launch(number))
    assert [record.id for record in store.launches()] == [3, 2, 1]
    assert [record.id for record in store.launches(limit=2)] == [3, 2]


def test_an_unknown_launch_is_an_error_with_its_number(store: Store) -> None:
    with pytest.raises(LaunchUnknown, match="launch 99 was never recorded"):
        store.launch(LaunchId(99))


def test_launch_numbers_are_never_given_twice_not_even_after_reopening(tmp_path: Path) -> None:
    given = []
    for _ in range(3):
        opened = Store(tmp_path / "s.db")
        given += [opened.next_launch_id() for _ in range(3)]  # no record is saved
        opened.close()
    assert given == list(range(1, 10))


def test_a_device_comes_back_with_its_last_address(store: Store) -> None:
    store.save_agent(AgentId("2"), "pixel", "AB", "2026-10-01")
    store.save_agent(AgentId("1"), "mac", "CD", "2026-10-01")
    store.save_agent_address(AgentId("2"), "10.0.0.2", 8102)
    assert store.agents() == [("1", "mac", "CD", "", 0), ("2", "pixel", "AB", "10.0.0.2", 8102)]
    store.save_agent(AgentId("2"), "pixel", "EF", "2026-10-02")  # it joined anew
    assert store.agents()[1] == ("2", "pixel", "EF", "", 0)
    store.delete_agent(AgentId("1"))
    assert [row[0] for row in store.agents()] == ["2"]


@pytest.mark.parametrize(
    ("uses", "now_s", "verdicts"),
    [
        (1, 99.0, ["ok", "used", "used"]),
        (2, 99.0, ["ok", "ok", "used"]),
        (None, 99.0, ["ok", "ok", "ok"]),
        (None, 100.0, ["expired", "expired"]),
        (1, 1e9, ["expired"]),
    ],
)
def test_a_token_is_good_for_its_time_and_uses(
    store: Store, uses: int | None, now_s: float, verdicts: list[str]
) -> None:
    store.save_token("hash", 100.0, uses, now_s=0.0)
    assert [store.spend_token("hash", now_s) for _ in verdicts] == verdicts


def test_an_unknown_token_is_unknown(store: Store) -> None:
    store.save_token("hash", 100.0, None, now_s=0.0)
    assert store.spend_token("other", 0.0) == "unknown"


def test_an_expired_use_does_not_count(store: Store) -> None:
    store.save_token("hash", 100.0, 1, now_s=0.0)
    assert store.spend_token("hash", 200.0) == "expired"
    assert store.spend_token("hash", 50.0) == "ok"


def test_tokens_that_expired_long_ago_are_forgotten_when_a_new_one_is_kept(store: Store) -> None:
    day_s = 24 * 3600.0
    for name, expires_at_s in (("old", 100.0), ("late", 200.0), ("good", 9 * day_s)):
        store.save_token(name, expires_at_s, None, now_s=0.0)
    store.save_token("new", 9 * day_s, None, now_s=day_s + 150)
    now_s = day_s + 150
    verdicts = {name: store.spend_token(name, now_s) for name in ("old", "late", "good", "new")}
    assert verdicts == {"old": "unknown", "late": "expired", "good": "ok", "new": "ok"}


def device_measured(agent: str, ggml_device: str = "CPU", gb_per_s: float = 20.0) -> DeviceMeasured:
    return DeviceMeasured(
        agent_id=AgentId(agent),
        ggml_device=ggml_device,
        taken_at="2026-10-01T00:00:00+00:00",
        rpc_protocol="7.0.0",
        engine_build="x",
        temperature_c=41.5,
        decode_bytes_per_s={"Q4_K": gb_per_s * 1e9},
        prefill_flop_per_s={"Q4_K": 2e11},
        op_overhead_s=1e-6,
        hop_overhead_s=2e-3,
        correction=1.25,
    )


def link_measured(agent: str, rtt_p50_s: float = 1e-3) -> LinkMeasured:
    return LinkMeasured(
        agent_id=AgentId(agent),
        taken_at="2026-10-01T00:00:00+00:00",
        rtt_p50_s=rtt_p50_s,
        rtt_p90_s=2e-3,
        up_bytes_per_s=1e8,
        down_bytes_per_s=2e8,
    )


def test_measurements_come_back_as_they_were_saved(tmp_path: Path) -> None:
    first = Store(tmp_path / "s.db")
    devices = [device_measured("a"), device_measured("a", "CUDA0"), device_measured("b")]
    links = [link_measured("a"), link_measured("b")]
    for device in reversed(devices):
        first.save_measurement(device)
    for link in reversed(links):
        first.save_measurement(link)
    first.close()
    again = Store(tmp_path / "s.db")
    assert again.device_measurements() == devices
    assert again.link_measurements() == links
    again.close()


def test_a_measurement_replaces_the_one_before_and_no_other(store: Store) -> None:
    store.save_measurement(device_measured("a"))
    store.save_measurement(device_measured("a", "CUDA0"))
    store.save_measurement(link_measured("a"))
    store.save_measurement(device_measured("a", gb_per_s=5.0))
    store.save_measurement(link_measured("a", rtt_p50_s=7e-3))
    assert store.device_measurements() == [
        device_measured("a", gb_per_s=5.0),
        device_measured("a", "CUDA0"),
    ]
    assert store.link_measurements() == [link_measured("a", rtt_p50_s=7e-3)]


def test_a_device_is_forgotten_with_its_link(store: Store) -> None:
    for agent in ("a", "b"):
        store.save_measurement(device_measured(agent))
        store.save_measurement(link_measured(agent))
    store.forget_measurements(AgentId("a"))
    store.forget_measurements(AgentId("never was"))
    assert store.device_measurements() == [device_measured("b")]
    assert store.link_measurements() == [link_measured("b")]


def test_a_database_of_an_older_version_is_brought_up_and_keeps_what_it_has(
    tmp_path: Path,
) -> None:
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1;")
        raw.execute("INSERT INTO agents (id, name, serial, joined_at) VALUES ('1', 'm', 'A', 'x')")
    raw.close()
    store = Store(tmp_path / "s.db")
    store.save_measurement(link_measured("1"))
    assert [row[1] for row in store.agents()] == ["m"]
    assert store.link_measurements() == [link_measured("1")]
    store.close()


def test_what_was_decided_about_a_device_is_kept_beside_how_it_joined(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "s.db") as raw:
        raw.executescript(f"{''.join(MIGRATIONS[:4])} PRAGMA user_version = 4;")
    raw.close()
    store = Store(tmp_path / "s.db")
    assert store.device_choices() == []
    chosen = DeviceChoice(agent_id=AgentId("1"), name="kitchen", excluded=True)
    store.save_device_choice(chosen.model_copy(update={"excluded": False}))
    store.save_device_choice(chosen)
    store.save_device_choice(DeviceChoice(agent_id=AgentId("2")))
    store.forget_device_choice(AgentId("2"))
    store.save_agent(AgentId("1"), "pixel", "AB", "2026-10-01")  # it joined anew
    assert store.device_choices() == [chosen]
    store.close()


def test_the_schema_has_the_newest_version_and_opening_again_changes_nothing(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        Store(tmp_path / "s.db").close()
        with sqlite3.connect(tmp_path / "s.db") as raw:
            assert raw.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        raw.close()


def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as raw:
        raw.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    raw.close()
    ours = len(MIGRATIONS)
    says = f"written by a newer version (schema {ours + 1}, ours is {ours})"
    with pytest.raises(StoreUnusable, match=re.escape(says)):
        Store(path)
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT name FROM sqlite_master").fetchall() == []
    raw.close()


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.write_text("this is a letter to my grandmother, not a database\n" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreUnusable, match="file is not a database; check free space"):
        Store(path)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE counters (something INTEGER)")
    raw.close()
    with pytest.raises(StoreUnusable, match="table counters already exists"):
        Store(path)


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    # Not a folder without permissions: tests may run as root, who has them all.
    for path in (tmp_path / "missing" / "s.db", tmp_path):
        with pytest.raises(StoreUnusable, match=f"the database {path} cannot be used: unable"):
            Store(path)


def test_a_write_that_fails_later_is_said_and_not_lost_silently(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.db")
    store.save_deployment(deployment("a"))
    store._db.execute("PRAGMA max_page_count = 1")  # as good as a full disk
    with pytest.raises(StoreUnusable, match="database or disk is full; check free space"):
        for number in range(1000):
            store.save_launch(launch(number))
    assert [d.id for d in store.deployments()] == ["a"]
    store.close()


def test_a_closed_store_says_so(store: Store) -> None:
    store.close()
    with pytest.raises(StoreUnusable, match="closed database"):
        store.deployments()
