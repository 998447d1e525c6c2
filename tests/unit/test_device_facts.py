"""Facts about this device where the platform tells little: nothing fails, nothing is made up."""

import json
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import accelerators, cores, facts, open_files, power
from agents.facts import FactsReader
from agents.worker_threads import WorkerThreads


@pytest.fixture
def termux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A phone as far as the environment says; its programs are in that folder."""
    monkeypatch.setenv("PREFIX", "/data/data/com.termux/files/usr")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


# -- what it is ------------------------------------------------------------------------------------


def test_a_phone_is_known_by_its_prefix_or_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFIX", raising=False)
    assert facts.platform_name() in ("linux", "macos")
    with monkeypatch.context() as patch:
        patch.setenv("PREFIX", "/data/data/com.termux/files/usr")  # Python up to 3.12
        assert facts.is_phone()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "android")  # from 3.13 on
        assert facts.is_phone()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "getandroidapilevel", lambda: 24, raising=False)
        assert facts.is_phone()


def test_a_phone_is_called_after_its_model(termux: Path) -> None:
    program(termux, "getprop", '[ "$1" = ro.product.model ] && echo "SM-S918B (Galaxy)"')
    assert facts.device_name() == "sm-s918b-galaxy"


def test_a_phone_that_does_not_tell_its_model_has_a_name_all_the_same(
    termux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    assert facts.device_name() == "phone"
    program(termux, "getprop", "echo")
    assert facts.device_name() == "phone"


# -- battery ---------------------------------------------------------------------------------------


async def test_a_reader_on_a_phone_parks_it_and_lets_it_come_back(termux: Path) -> None:
    now_s = 0.0
    battery = power.BatteryReader("android", lambda: now_s)
    reader = FactsReader("id", "phone", None, 2, battery, power.Limits(floor_percent=30))

    def says(percent: float, heat_c: float) -> None:
        state = {"percentage": percent, "plugged": "UNPLUGGED", "temperature": heat_c}
        program(termux, "termux-battery-status", f"echo '{json.dumps(state)}'")

    says(29, 43)
    found = await reader.read([])
    assert (found.battery_percent, found.battery_charging, found.temperature_c) == (29, False, 43)
    assert "29 % left" in found.parked
    assert (found.derate, found.derate_reason) == (0.7, "hot (43 °C)")
    says(36, 30)
    assert "29 % left" in (await reader.read([])).parked, "it was asked just now"
    now_s += 60
    await battery.read()
    found = await reader.read([])
    assert (found.parked, found.derate, found.derate_reason) == ("", 1.0, "")


async def test_a_reader_on_a_device_without_a_battery_is_never_parked(termux: Path) -> None:
    found = await FactsReader("id", "phone", None).read([])
    assert (found.parked, found.derate, found.battery_percent) == ("", 1.0, None)
    assert found.cores == len(os.sched_getaffinity(0))


async def test_where_loads_are_secret_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "getloadavg")
    assert facts.load_average() is None


# -- accelerators ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "machine", "files", "found"),
    [
        ("macos", "arm64", [], ["metal"]),
        ("macos", "x86_64", [], []),
        ("linux", "x86_64", [], []),
        ("linux", "x86_64", ["dev/nvidiactl"], ["cuda"]),
        ("linux", "x86_64", ["usr/lib/x86_64-linux-gnu/libcuda.so.1"], ["cuda"]),
        ("linux", "x86_64", ["usr/lib/wsl/lib/libcuda.so.1"], ["cuda"]),
        ("linux", "x86_64", ["bin/nvidia-smi"], ["cuda"]),
        ("linux", "aarch64", ["usr/lib/aarch64-linux-gnu/libvulkan.so.1"], []),
        ("linux", "x86_64", ["dev/dri/renderD128"], []),
        ("linux", "x86_64", ["dev/dri/card0", "usr/lib64/libvulkan.so.1"], []),
        ("linux", "x86_64", ["dev/dri/renderD128", "usr/lib64/libvulkan.so.1"], ["vulkan"]),
        (
            "linux",
            "x86_64",
            ["dev/nvidiactl", "dev/dri/renderD128", "usr/lib64/libvulkan.so.1"],
            ["cuda", "vulkan"],
        ),
        ("android", "aarch64", [], []),
    ],
)
def test_what_an_engine_could_use_is_seen_from_the_files(
    tmp_path: Path, platform: str, machine: str, files: list[str], found: list[str]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": str(tmp_path / "bin")}
    assert accelerators.found(platform, machine, environment, tmp_path) == found


def test_a_library_in_a_folder_of_its_own_is_found(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/libcuda.so.1").touch()
    environment = {"PATH": "", "LD_LIBRARY_PATH": f":{tmp_path}/own"}
    assert accelerators.found("linux", "x86_64", environment, tmp_path) == ["cuda"]
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/ld.so.cache").write_bytes(b"..\0libcuda.so.1\0/opt/nvidia/libcuda.so.1\0")
    assert accelerators.found("linux", "x86_64", {}, tmp_path) == ["cuda"]


# -- open files ------------------------------------------------------------------------------------


def raised_in_child(soft: int, hard: int) -> tuple[int, int]:
    """What a process with these limits returns, and the limit that it then has."""
    text = (
        "import resource; from agents.open_files import raise_limit; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        "print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60
    )
    returned, limit = done.stdout.split()
    return int(returned), int(limit)


def test_the_limit_of_open_files_is_raised_as_far_as_it_may() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = open_files.WANTED if hard == resource.RLIM_INFINITY else min(hard, open_files.WANTED)
    assert raised_in_child(256, most) == (most, most)
    assert raised_in_child(256, 512) == (512, 512)
    assert raised_in_child(300, 300) == (300, 300)


# -- threads and where they run --------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n")


class Phone:
    """Its last core is fast, and its others, if any, are not."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed

    def __call__(self) -> cores.Cores:
        numbers = range(self.allowed)
        clocks = {number: 2800 if number == self.allowed - 1 else 1800 for number in numbers}
        return cores.cores(numbers, 8, None, clocks)


def test_an_rpc_server_on_a_phone_is_pinned_to_the_fast_cores(
    monkeypatch: pytest.MonkeyPatch, child: int
) -> None:
    asked = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, mask: asked.append((pid, set(mask))))
    threads = WorkerThreads(None, is_phone=True, look=Phone(4))
    assert threads.choose() == threads.next() == threads.latest == 1
    threads.place(child)
    assert asked == [(child, {3})]
    assert threads.choose(asked=3) == threads.latest == 3
    threads.place(child)
    assert len(asked) == 1, "three threads on one core would wait for each other"


def test_cores_that_the_system_took_away_are_noticed_at_the_next_start() -> None:
    phone = Phone(3)
    threads = WorkerThreads(None, is_phone=False, look=phone)
    assert threads.latest == 3
    phone.allowed = 1
    assert (threads.latest, threads.next()) == (3, 1)
    assert threads.choose() == threads.latest == 1
    assert WorkerThreads(4, is_phone=False, look=phone).choose() == 4


def test_a_phone_that_forbids_to_pin_goes_on_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, child: int
) -> None:
    def forbidden(_pid: int, _mask: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    threads = WorkerThreads(None, is_phone=True, look=Phone(2))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            threads.choose()
            threads.place(child)
    assert [record.message for record in caplog.records] == ["rpc_server.not_pinned"]
