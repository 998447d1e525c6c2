"""Battery and heat: what a reading means, and that reading it never holds anybody up."""

import asyncio
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import power, short_commands
from agents.power import Battery, BatteryReader, Condition, Limits, judge

NORMAL = Limits()


def on_phone(*readings: Battery, limits: Limits = NORMAL) -> Condition:
    """What a phone makes of readings, one after the other."""
    condition = Condition()
    for reading in readings:
        condition = judge(condition, reading, limits, is_phone=True)
    return condition


def at(percent: float | None, charging: bool | None = False, heat_c: float | None = 30) -> Battery:
    return Battery(percent, charging, heat_c)


@pytest.mark.parametrize(
    ("readings", "is_parked"),
    [
        ([at(60)], False),
        ([at(20)], False),
        ([at(19.9)], True),
        ([at(3, charging=True)], False),
        ([at(19), at(24.9)], True),  # it has to be well above the floor again
        ([at(19), at(25)], False),
        ([at(22)], False),  # on its way down it is not parked before the floor
        ([at(19), at(19, charging=True)], False),
        ([at(19), at(19, charging=True), at(19)], True),
        ([at(19), at(19, charging=True), at(22, charging=False)], False),
        ([at(19, charging=None)], False),
        ([at(None)], False),
        ([at(19), at(None)], False),
        ([Battery()], False),
    ],
)
def test_a_device_with_a_low_battery_is_parked(readings: list[Battery], is_parked: bool) -> None:
    assert bool(on_phone(*readings).parked) is is_parked


def test_a_parked_device_says_why_and_until_when() -> None:
    assert on_phone(at(14)).parked == (
        "its battery has 14 % left and is not charging; it takes work again when it charges, or "
        "from 25 % on"
    )
    assert on_phone(at(9, heat_c=48)).parked == (
        "its battery has 9 % left and is not charging; it takes work again when it charges, or "
        "from 25 % on, and its battery is too hot, 48 °C; it takes work again below 42 °C"
    )


def test_the_floor_is_the_owners() -> None:
    assert on_phone(at(14), limits=Limits(floor_percent=10)).parked == ""
    assert on_phone(at(1), limits=Limits(floor_percent=0)).parked == ""
    assert "from 100 % on" in on_phone(at(90), limits=Limits(floor_percent=95)).parked
    assert on_phone(at(90), at(100), limits=Limits(floor_percent=98)).parked == ""


@pytest.mark.parametrize(
    ("heats", "is_parked", "derate"),
    [
        ([41.9], False, 1.0),
        ([42.0], False, 0.7),
        ([46.9], False, 0.7),
        ([47.0], True, 0.7),
        ([47.0, 42.0], True, 0.7),  # not back before it is no longer hot
        ([47.0, 41.9], False, 0.7),
        ([47.0, 41.9, 43.0], False, 0.7),
        ([42.0, 41.0], False, 0.7),
        ([42.0, 39.9], False, 1.0),
        ([41.0], False, 1.0),
        ([47.0, None], False, 1.0),
    ],
)
def test_a_hot_phone_is_slower_and_a_hotter_one_parked(
    heats: list[float | None], is_parked: bool, derate: float
) -> None:
    found = on_phone(*(at(80, heat_c=heat) for heat in heats))
    assert (bool(found.parked), found.derate) == (is_parked, derate)
    assert bool(found.derate_reason) == (derate < 1)


def test_heat_is_said_with_its_number() -> None:
    assert on_phone(at(80, heat_c=44.2)).derate_reason == "hot (44 °C)"
    hot = on_phone(at(80, heat_c=50), limits=Limits(hot_c=45))
    assert hot.parked == "its battery is too hot, 50 °C; it takes work again below 45 °C"


def test_the_heat_of_a_computer_is_not_that_of_a_battery() -> None:
    found = judge(Condition(), at(80, heat_c=90), NORMAL, is_phone=False)
    assert found == Condition()


@given(
    st.lists(
        st.builds(
            Battery,
            st.none() | st.floats(0, 100),
            st.none() | st.booleans(),
            st.none() | st.floats(-20, 90),
        ),
        max_size=8,
    )
)
def test_what_is_unknown_never_parks(readings: list[Battery]) -> None:
    found = on_phone(*readings, Battery())
    assert found == Condition()


# -- what commands print ---------------------------------------------------------------------------

PIXEL = {
    "health": "GOOD",
    "percentage": 71,
    "plugged": "PLUGGED_AC",
    "status": "CHARGING",
    "temperature": 31.5,
    "current": 1234,
}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, Battery(71.0, True, 31.5)),
        ({"plugged": "UNPLUGGED", "status": "DISCHARGING"}, Battery(71.0, False, 31.5)),
        ({"status": "DISCHARGING"}, Battery(71.0, False, 31.5)),  # the supply is too weak
        ({"status": "NOT_CHARGING"}, Battery(71.0, True, 31.5)),  # full enough
        ({"status": "FULL"}, Battery(71.0, True, 31.5)),
        ({"plugged": None, "status": None}, Battery(71.0, None, 31.5)),
        ({"temperature": None}, Battery(71.0, True, None)),
    ],
)
def test_the_answer_of_termux_is_read(change: dict[str, object], found: Battery) -> None:
    assert power.termux_battery(json.dumps({**PIXEL, **change})) == found


@pytest.mark.parametrize("text", ["", "not json", "[]", "null", "{}", '{"percentage": "much"}'])
def test_what_is_no_answer_is_unknown(text: str) -> None:
    assert power.termux_battery(text).is_unknown


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=4653155)\t85%; "
            "discharging; 4:32 remaining present: true\n",
            Battery(85.0, False),
        ),
        (
            "Now drawing from 'AC Power'\n -InternalBattery-0 (id=4653155)\t100%; charged; "
            "0:00 remaining present: true\n",
            Battery(100.0, True),
        ),
        ("Now drawing from 'AC Power'\n", Battery()),
        ("", Battery()),
    ],
)
def test_the_answer_of_a_mac_is_read(text: str, found: Battery) -> None:
    assert power.mac_battery(text) == found


# -- reading ---------------------------------------------------------------------------------------


class Termux:
    """A phone's command for the battery: a program on PATH, and a clock of our own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self._folder = folder
        self._program = folder / "termux-battery-status"
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        self.says(percentage=50, plugged="UNPLUGGED", temperature=30)
        self.reader = BatteryReader("android", lambda: self.now_s)

    def says(self, **state: object) -> None:
        self._write(f"echo '{json.dumps(state)}'")

    def fails(self) -> None:
        self._write("exit 1")

    def hangs(self) -> None:
        """As a script that waits for a program that waits for ever."""
        self._write(f"sleep 600 & echo $! > {self._folder}/child; wait")

    def _write(self, line: str) -> None:
        self._program.write_text(f"#!/bin/sh\necho x >> {self._folder}/asked\n{line}\n")
        self._program.chmod(0o755)

    def asked(self) -> int:
        path = self._folder / "asked"
        return len(path.read_text().split()) if path.exists() else 0

    def child(self) -> int:
        return int((self._folder / "child").read_text())


@pytest.fixture
def termux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Termux:
    return Termux(tmp_path, monkeypatch)


async def test_a_phone_is_asked_once_a_minute_at_most(termux: Termux) -> None:
    assert await termux.reader.read() == Battery(50.0, False, 30.0)
    termux.says(percentage=40, plugged="UNPLUGGED", temperature=30)
    termux.now_s += 59
    assert (await termux.reader.read()).percent == 50
    assert termux.asked() == 1
    termux.now_s += 1
    assert (await termux.reader.read()).percent == 40
    assert termux.asked() == 2


async def test_two_who_want_to_know_ask_once(termux: Termux) -> None:
    found = await asyncio.gather(termux.reader.read(), termux.reader.read())
    assert [each.percent for each in found] == [50, 50]
    assert termux.asked() == 1


async def test_a_command_that_fails_is_left_alone_for_longer_and_longer(termux: Termux) -> None:
    termux.fails()
    for pause_s in (120, 240, 480, 900, 900):
        before = termux.asked()
        assert (await termux.reader.read()).is_unknown
        assert termux.asked() == before + 1
        termux.now_s += pause_s - 1
        await termux.reader.read()
        assert termux.asked() == before + 1
        termux.now_s += 1
    termux.says(percentage=30, plugged="UNPLUGGED", temperature=30)
    assert (await termux.reader.read()).percent == 30
    termux.now_s += 60
    await termux.reader.read()
    assert termux.asked() == 7


async def test_what_was_read_last_counts_for_a_while(termux: Termux) -> None:
    await termux.reader.read()
    termux.fails()
    termux.now_s += 1700
    assert (await termux.reader.read()).percent == 50
    termux.now_s += 101
    assert (await termux.reader.read()).is_unknown


async def test_a_command_that_hangs_is_killed_with_all_that_it_started(
    termux: Termux, monkeypatch: pytest.MonkeyPatch
) -> None:
    termux.hangs()

    async def run(argv: list[str]) -> str:
        return await short_commands.output_soon(argv, 1.0)

    reader = BatteryReader("android", lambda: termux.now_s, run)
    assert (await reader.read()).is_unknown
    assert not is_alive(termux.child())


async def test_nobody_waits_who_does_not_want_to(termux: Termux) -> None:
    termux.hangs()
    termux.reader.refresh()
    termux.reader.refresh()
    assert termux.reader.last().is_unknown
    deadline_s = time.monotonic() + 10
    while not (termux.asked() and (termux._folder / "child").exists()):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)
    await termux.reader.close()
    assert not is_alive(termux.child())
    assert termux.asked() == 1


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that was killed may still wait for its new parent."""
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.02)
    return True


class Sensors:
    """psutil as it answers on a device with a battery and one sensor of heat."""

    def __init__(self, *percents: float, heat_c: float = 40.0) -> None:
        self._percents = list(percents)
        self._heat_c = heat_c

    def sensors_battery(self) -> SimpleNamespace:
        percent = self._percents.pop(0)
        return SimpleNamespace(percent=percent, power_plugged=False)

    def sensors_temperatures(self) -> dict[str, list[SimpleNamespace]]:
        return {"chip": [SimpleNamespace(current=self._heat_c)]}


async def test_a_phone_without_the_command_is_not_judged_by_other_sensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(power, "psutil", Sensors(3, heat_c=90))
    reader = BatteryReader("android", time.monotonic)
    assert (await reader.read()).is_unknown


async def test_a_computer_is_asked_through_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "psutil", Sensors(80, 70))
    reader = BatteryReader("linux", lambda: 0.0)
    reader.refresh()
    reader.refresh()
    assert reader.last() == Battery(80, False, 40)
    assert (await reader.read()).percent == 70, "a measurement wants to know the heat of now"


@pytest.mark.parametrize("error", [OSError, RuntimeError, AttributeError, NotImplementedError])
def test_psutil_may_fail_in_any_way(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise error(name)

    monkeypatch.setattr(power, "psutil", Broken())
    assert power.psutil_battery() == Battery()
    monkeypatch.setattr(power, "psutil", None)
    assert power.psutil_battery() == Battery()


# -- short commands --------------------------------------------------------------------------------


def test_a_short_command_says_something_or_nothing() -> None:
    assert short_commands.output(["echo", "yes"]) == "yes\n"
    assert short_commands.output(["no-such-program-anywhere"]) == ""
    assert short_commands.output(["sh", "-c", "exit 3"]) == ""


def test_who_leaves_its_pipe_to_another_is_not_waited_for(tmp_path: Path) -> None:
    """The shell is gone at once; what it started holds the pipe, in its group."""
    line = f"sleep 600 & echo $! > {tmp_path}/child"
    assert short_commands.output(["sh", "-c", line], 0.5) == ""
    assert not is_alive(int((tmp_path / "child").read_text()))
