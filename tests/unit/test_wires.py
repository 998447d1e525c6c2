"""Which pairs of addresses can work, which one carries tensors, and RDMA; all of it pure."""

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.contract import DeviceFacts, NetworkAddress
from supervisor.core.entities import AgentId, Device, Wire
from supervisor.core.measurements import why_stale
from supervisor.core.rdma import RdmaEnd, decide, rdma_wire
from supervisor.core.wires import (
    CLEARLY,
    MOST_PAIRS,
    Measured,
    Pair,
    Way,
    chosen_far,
    cost_s,
    direct_host,
    pairs,
    way,
    why,
    wires,
    with_choice,
)


def near(address: str, kind: str = "ethernet", prefix: int = 24, **more: bool) -> NetworkAddress:
    return NetworkAddress(address, "en0", kind, prefix, **more)


def far(address: str, kind: str = "ethernet", port: int = 8103, prefix: int = 24) -> NetworkAddress:
    return NetworkAddress(address, "eth0", kind, prefix, link_port=port)


def wire(
    far_address: str,
    ms: float | None = 1.0,
    mb_per_s: float = 100.0,
    *,
    in_use: bool = False,
    problem: str = "",
) -> Wire:
    return Wire(
        near="10.0.0.1",
        far=far_address,
        kind="ethernet",
        interface="eth0",
        round_trip_ms=ms,
        up_bytes_per_s=None if ms is None else mb_per_s * 1e6,
        in_use=in_use,
        problem=problem,
    )


def device(*known: Wire, chosen: str = "", ports: tuple[tuple[str, int], ...] = ()) -> Device:
    listed = ports or tuple((each.far, 8103) for each in known)
    facts = DeviceFacts("id", "pixel", "linux", addresses=[far(a, port=p) for a, p in listed])
    return Device(
        id=AgentId("id"),
        name="pixel",
        address="192.168.1.7",
        rest_port=8102,
        link_address="192.168.1.7",
        link_port=8103,
        state="ready",
        silent_s=0.0,
        facts=facts,
        rpc_server=None,
        wires=known,
        wire=chosen,
    )


def used(found: tuple[Wire, ...]) -> str:
    assert [each.in_use for each in found[1:]] == [False] * (len(found) - 1)
    return found[0].far if found and found[0].in_use else ""


# -- pairs ----------------------------------------------------------------------------------------


def test_pairs_of_one_subnet_come_before_those_that_need_a_router() -> None:
    ours = [near("192.168.1.2", "wifi"), near("10.77.1.1", "thunderbolt", 30)]
    theirs = [far("172.16.0.9"), far("192.168.1.7"), far("10.77.1.2", "thunderbolt", prefix=30)]
    found = pairs(ours, theirs)
    assert [(p.near, p.far, p.kind) for p in found] == [
        ("192.168.1.2", "192.168.1.7", "wifi"),
        ("10.77.1.1", "10.77.1.2", "thunderbolt"),
        ("192.168.1.2", "172.16.0.9", "wifi"),
    ]


@pytest.mark.parametrize(
    "theirs",
    [
        far("127.0.0.1"),
        far("192.168.1.2"),  # ours: it is this host, or a network that both have inside
        far("192.168.1.7", port=0),
        far("fd12::7", prefix=64),
        far("192.0.0.4"),
        far("169.254.7.7"),
    ],
    ids=lambda each: each.address,
)
def test_what_leads_nowhere_is_no_pair(theirs: NetworkAddress) -> None:
    ours = [near("192.168.1.2"), near("127.0.0.1", "loopback", 8), near("fd12::1", prefix=64)]
    assert pairs(ours, [theirs]) == ()


def test_self_assigned_addresses_meet_each_other_alone() -> None:
    ours = [near("169.254.1.1", "thunderbolt", 16), near("192.168.1.2")]
    found = pairs(ours, [far("169.254.9.9", prefix=16), far("10.0.0.5")])
    assert [pair.ends for pair in found] == [
        ("169.254.1.1", "169.254.9.9"),
        ("192.168.1.2", "10.0.0.5"),
    ]


TOLD = st.builds(
    NetworkAddress,
    st.one_of(st.text(max_size=9), st.ip_addresses().map(str), st.just("10.0.0.9%eth0")),
    kind=st.text(max_size=5),
    prefix_length=st.one_of(st.none(), st.integers(-5, 200)),
    link_port=st.one_of(st.just(8103), st.integers(-9, 1 << 40)),
)


@given(st.lists(TOLD, max_size=30))
def test_whatever_an_agent_tells_pairs_are_few_and_can_be_dialled(
    told: list[NetworkAddress],
) -> None:
    found = pairs([near("192.168.1.2"), near("10.0.0.1", "wifi", 8)], told)
    assert len(found) <= MOST_PAIRS
    for pair in found:
        assert ipaddress.IPv4Address(pair.far) and 0 < pair.port < 65536


def test_addresses_of_one_vpn_reach_each_other() -> None:
    ours = [near("192.168.1.2"), near("100.101.2.3", "vpn", 32)]
    found = pairs(ours, [far("100.99.8.7", "vpn", prefix=32)])
    assert [(pair.near, pair.kind) for pair in found] == [("100.101.2.3", "vpn")]


def test_many_addresses_are_not_many_pairs() -> None:
    ours = [near(f"10.0.0.{n}") for n in range(1, 7)]
    theirs = [far(f"10.0.0.{n}") for n in range(11, 17)]
    assert len(pairs(ours, theirs)) == MOST_PAIRS


# -- the choice -----------------------------------------------------------------------------------


def test_the_round_trip_decides_where_little_is_sent() -> None:
    found = with_choice([wire("a", 5.0, 1000), wire("b", 0.4, 100)], "")
    assert used(found) == "b"


def test_the_rate_decides_where_both_take_about_as_long() -> None:
    assert used(with_choice([wire("a", 1.0, 400), wire("b", 1.1, 1000)], "")) == "b"


def test_a_wire_that_does_not_work_or_was_not_measured_is_not_chosen() -> None:
    found = with_choice([wire("a", 0.1, problem="no answer"), wire("b", None), wire("c", 9.0)], "")
    assert used(found) == "c"
    assert [each.far for each in found] == ["c", "b", "a"]
    assert used(with_choice([wire("a", problem="no answer"), wire("b", None)], "")) == ""


def test_the_wire_in_use_is_kept_for_less_than_a_fifth() -> None:
    assert used(with_choice([wire("a", 1.0, in_use=True), wire("b", 0.9)], "")) == "a"
    assert used(with_choice([wire("a", 1.0, in_use=True), wire("b", 0.5)], "")) == "b"
    assert used(with_choice([wire("a", 1.0, 100, in_use=True), wire("b", 1.0, 115)], "")) == "a"
    assert used(with_choice([wire("a", 1.0, 100, in_use=True), wire("b", 1.0, 130)], "")) == "b"


def test_who_chose_an_address_gets_it_while_it_works() -> None:
    slow, fast = wire("slow", 20.0), wire("fast", 0.2)
    assert used(with_choice([slow, fast], "slow")) == "slow"
    assert used(with_choice([wire("slow", None), fast], "slow")) == "slow"
    broken = slow.model_copy(update={"problem": "no answer"})
    assert used(with_choice([broken, fast], "slow")) == "fast"
    assert used(with_choice([fast], "slow")) == "fast"


FIGURES = st.builds(
    wire,
    st.sampled_from([f"10.0.0.{n}" for n in range(2, 9)]),
    st.one_of(st.none(), st.floats(0.05, 400)),
    st.floats(0.1, 5000),
    problem=st.sampled_from(["", "", "no answer"]),
)


@given(st.lists(FIGURES, max_size=7, unique_by=lambda each: each.far))
def test_the_choice_is_steady_and_never_clearly_worse_than_another(found: list[Wire]) -> None:
    first = with_choice(found, "")
    measured = [each for each in found if not each.problem and each.round_trip_ms is not None]
    assert bool(used(first)) == bool(measured)
    assert with_choice(first, "") == first
    if measured:
        assert cost_s(first[0]) * (1 - CLEARLY) <= min(map(cost_s, measured)) * 1.0001


@given(
    st.lists(FIGURES, min_size=1, max_size=5, unique_by=lambda each: each.far),
    st.floats(0.93, 1.07),
)
def test_a_choice_outlives_figures_that_waver_a_little(found: list[Wire], factor: float) -> None:
    before = with_choice(found, "")
    wavering = [
        each.model_copy(update={"round_trip_ms": each.round_trip_ms * factor})
        if each.round_trip_ms is not None and not each.in_use
        else each
        for each in before
    ]
    best = min(map(cost_s, before))
    if used(before) and cost_s(before[0]) <= best * 1.1:
        assert used(with_choice(wavering, "")) == used(before)


def test_wires_keep_the_choice_while_addresses_come_and_go() -> None:
    two = [Pair("10.0.0.1", "10.0.0.2", 8103), Pair("10.1.0.1", "10.1.0.2", 8103)]
    known = {two[0].ends: Measured(1e-3, 1e8), two[1].ends: Measured(0.9e-3, 1e8)}
    alone = wires(two[:1], known, "")
    both = wires(two, known, "", alone)
    assert (used(alone), used(both)) == ("10.0.0.2", "10.0.0.2")
    assert used(wires(two[1:], known, "", both)) == "10.1.0.2"
    assert wires((), known, "", both) == ()


# -- the way --------------------------------------------------------------------------------------


def test_the_way_is_the_wire_in_use_as_long_as_the_device_listens_there() -> None:
    thunderbolt = wire("10.77.1.2", 0.3, 1000, in_use=True)
    found = device(thunderbolt, wire("192.168.1.7", 5.0), ports=(("10.77.1.2", 40001),))
    assert way(found) == Way("10.0.0.1", "10.77.1.2", 40001)
    assert (direct_host(found), chosen_far(found)) == ("10.77.1.2", "10.77.1.2")
    for gone in ((("192.168.1.7", 8103),), (("10.77.1.2", 0),)):
        assert way(device(thunderbolt, ports=gone)) == Way("", "192.168.1.7", 8103)


def test_without_wires_the_way_is_the_usual_one() -> None:
    tunnelled = device().model_copy(update={"link_address": "9.9.9.9", "link_port": 443})
    assert way(tunnelled) == Way("", "9.9.9.9", 443)
    assert (direct_host(tunnelled), chosen_far(tunnelled)) == ("192.168.1.7", "")


def test_the_sentence_says_what_there_was_to_choose() -> None:
    fast, slow = wire("10.77.1.2", 0.3, 1000, in_use=True), wire("192.168.1.7", 5.0, 20)
    assert why(device(fast)) == ""
    assert why(device(fast, slow)) == (
        "pixel: tensors go over 10.77.1.2 (ethernet, eth0: 0.3 ms, 1000 MB/s), the best of those "
        "that work (others: 192.168.1.7 (ethernet, eth0: 5 ms, 20 MB/s))."
    )
    assert "you chose it" in why(device(fast, slow, chosen="10.77.1.2"))
    gone = why(device(fast, wire("192.168.1.7", problem="no answer"), chosen="192.168.1.7"))
    assert gone == (
        "pixel: 192.168.1.7, which you chose, cannot be used now (no answer); tensors go to "
        "10.77.1.2."
    )


def test_what_was_measured_over_another_wire_does_not_count() -> None:
    now = datetime(2026, 11, 1, tzinfo=UTC)
    stale = partial(why_stale, now.isoformat(), now, keeps=timedelta(days=1))
    assert stale(far=("10.0.0.2", "10.1.0.2")) == (
        "it was measured over 10.0.0.2, now tensors go over 10.1.0.2"
    )
    for same in (("10.0.0.2", "10.0.0.2"), ("", "10.1.0.2"), ("10.0.0.2", "")):
        assert stale(far=same) == ""


# -- RDMA -----------------------------------------------------------------------------------------

ACTIVE = RdmaEnd("the main host", "active", engine_has_it=True)
PEER = RdmaEnd("studio", "active", engine_has_it=True)


def test_rdma_is_used_where_both_ends_prove_it() -> None:
    decision = decide("auto", is_direct=True, near=ACTIVE, far=PEER, ports_meet=True)
    assert decision.is_used
    assert "stays on TCP" in decision.why
    assert not decide("off", is_direct=True, near=ACTIVE, far=PEER, ports_meet=True).is_used


@pytest.mark.parametrize(
    ("near_end", "far_end", "meet", "direct", "reason"),
    [
        (ACTIVE, replace(PEER, state="down"), True, True, "studio has RDMA ports that are down"),
        (ACTIVE, replace(PEER, state=""), True, True, "studio has no RDMA device"),
        (replace(ACTIVE, engine_has_it=None), PEER, True, True, "not known whether the engine of"),
        (ACTIVE, replace(PEER, engine_has_it=False), True, True, "studio was built without it"),
        (ACTIVE, PEER, False, True, "no wire connects the RDMA ports"),
        (ACTIVE, PEER, True, False, "a link carries TCP only"),
    ],
)
def test_without_a_proof_it_is_tcp_with_a_note(
    near_end: RdmaEnd, far_end: RdmaEnd, meet: bool, direct: bool, reason: str
) -> None:
    decision = decide("auto", is_direct=direct, near=near_end, far=far_end, ports_meet=meet)
    assert not decision.is_used
    assert decision.why.startswith("TCP instead of RDMA: ")
    assert reason in decision.why


def test_nobody_hears_of_rdma_who_has_none() -> None:
    ends = RdmaEnd("a", "", engine_has_it=False), RdmaEnd("b", "", engine_has_it=None)
    for is_direct, meet in product((True, False), repeat=2):
        found = decide("auto", is_direct=is_direct, near=ends[0], far=ends[1], ports_meet=meet)
        assert (found.is_used, found.why) == (False, "")
        wanted = decide("require", is_direct=is_direct, near=ends[0], far=ends[1], ports_meet=meet)
        assert "a has no RDMA device" in wanted.why


def test_rdma_goes_over_the_wire_between_two_rdma_ports() -> None:
    plain, ported = wire("192.168.1.7", 0.2, in_use=True), wire("10.77.1.2", 0.3)
    found = device(plain, ported)
    assert found.facts is not None
    with_port = [replace(a, has_rdma=a.address == "10.77.1.2") for a in found.facts.addresses]
    found = found.model_copy(update={"facts": replace(found.facts, addresses=with_port)})
    assert rdma_wire(found, frozenset({"10.0.0.1"})) == ported
    assert rdma_wire(found, frozenset({"10.9.9.9"})) is None
    assert rdma_wire(device(plain, ported), frozenset({"10.0.0.1"})) is None
