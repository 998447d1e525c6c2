"""What Android forbids, as far as Linux can forbid it too: an agent has to serve all the same.

The phone is a mount namespace: no ``/tmp``, files of ``/proc`` that nobody may read, cores of two
kinds, and a bare Python that says ``android``. Its battery is a script that can be told to hang.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster import START_S, Cluster, Program, eventually

from agents.cli import CODE_VARIABLE
from agents.contract import EngineFacts
from supervisor.adapters import agent_archive
from supervisor.demo_model import SENTENCE

PLACE = Path("/mnt")
"""Where the phone's files are in its namespace."""

PREFIX = "data/data/com.termux/files/usr"
HOME = "data/data/com.termux/files/home"
HIDDEN = ("stat", "uptime", "loadavg", "vmstat")
NAMESPACE = """
set -e
mount --bind "$1" /mnt
mount --bind "$2" /mnt/engine
mount --bind "$3" "$TMPDIR"  # where all agents of this host lock their ports
for file in stat uptime loadavg vmstat; do mount --bind /mnt/forbidden "/proc/$file"; done
mount --rbind /mnt/cpu /sys/devices/system/cpu
mount -t tmpfs -o ro,mode=0555 none /tmp
shift 3
# Without those capabilities root may not read what nobody may.
exec setpriv --bounding-set=-dac_override,-dac_read_search "$@"
"""

SITE = """
import os, sys, sysconfig

sysconfig.get_config_vars()  # whose file is called after the platform that it was made on
sys.platform = "android"
sys.getandroidapilevel = lambda: 24
for name in ("getloadavg", "link", "pidfd_open"):
    if hasattr(os, name):
        delattr(os, name)

def forbid(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc/net", "/sys/class/power_supply")):
        raise PermissionError(13, "Permission denied", str(arguments[0]))

sys.addaudithook(forbid)
"""

GETPROP = """#!/bin/sh
case "$1" in
  ro.product.model) echo "Pixel 7 Pro" ;;
  ro.build.version.release) echo 16 ;;
esac
"""

BATTERY = """#!/bin/sh
echo asked >> "$HOME/asked"
if [ -f "$HOME/battery.json" ]; then cat "$HOME/battery.json"; else sleep 1000; fi
"""

IMPATIENT = """
import sys
sys.path.insert(0, "/mnt/agent.pyz")
from agents import power
power.COMMAND_EVERY_S = 0.5
from agents.cli import main
sys.exit(main())
"""
"""The agent, which asks for the battery twice a second instead of once a minute."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an interpreter without any package."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent_archive.build(tmp_path_factory.mktemp("archive"))


class Phone:
    """A phone's files, and the programs that run as if they were on it."""

    def __init__(self, folder: Path, engine: EngineFacts) -> None:
        self.folder = folder
        self.home = folder / HOME
        self._libraries = Path(engine.folder).parent
        self._programs = Path(engine.folder).name

    def has_battery(self, percent: float, *, charging: bool, heat_c: float = 30.0) -> None:
        """What its battery says from now on; before, it hangs."""
        plugged = "PLUGGED_USB" if charging else "UNPLUGGED"
        status = "CHARGING" if charging else "DISCHARGING"
        said = {"percentage": percent, "plugged": plugged, "status": status, "temperature": heat_c}
        made = self.home / "battery.json.new"
        made.write_text(json.dumps(said))
        made.replace(self.home / "battery.json")

    def asked(self) -> int:
        """How often its battery was asked for."""
        path = self.home / "asked"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def environment(self) -> dict[str, str]:
        place, prefix = PLACE, PLACE / PREFIX
        return {
            "HOME": str(place / HOME),
            "PREFIX": str(prefix),
            "TMPDIR": str(prefix / "tmp"),
            "PATH": f"{prefix}/bin:/bin:/usr/bin",
            "PYTHONPATH": str(place / "site"),
            "LLAMA_CPP_BIN": str(place / "engine" / self._programs),
            "TMPDIR_MARK_OF_TESTS": os.environ["TMPDIR_MARK_OF_TESTS"],
        }

    def argv(self, *command: str) -> list[str]:
        """``command`` on the phone; every program on the way to it becomes the next."""
        folders = [str(self.folder), str(self._libraries), tempfile.gettempdir()]
        return ["unshare", "-m", "sh", "-c", NAMESPACE, "sh", *folders, *command]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*command),
            cwd="/",
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )

    def python(self, program: str) -> subprocess.CompletedProcess[str]:
        return self.run("/mnt/bare/bin/python3", "-c", program)

    async def join(self, cluster: Cluster, *arguments: str) -> Program:
        """Start the agent with the code in its environment."""
        log = cluster.folder / "phone.log"
        command = self.argv("/mnt/bare/bin/python3", *arguments)
        environment = {**self.environment, CODE_VARIABLE: await cluster.code()}
        with log.open("ab") as file:
            process = subprocess.Popen(
                command,
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        program = Program("phone", process, self.folder, log)
        cluster.programs.append(program)
        return program


@pytest.fixture
def phone(tmp_path: Path, bare: Path, archive: Path, engine: EngineFacts) -> Iterator[Phone]:
    folder = tmp_path / "phone-files"
    binaries = folder / PREFIX / "bin"
    for made in (binaries, folder / PREFIX / "tmp", folder / HOME, folder / "engine"):
        made.mkdir(parents=True)
    shutil.copytree(bare, folder / "bare", symlinks=True)
    shutil.copy(archive, folder / "agent.pyz")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    for name, text in {"getprop": GETPROP, "termux-battery-status": BATTERY}.items():
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    (folder / "forbidden").touch()
    (folder / "forbidden").chmod(0)
    two_kinds_of_cores(folder / "cpu")
    made_phone = Phone(folder, engine)
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("util-linux is not installed")
    if (done := made_phone.run("true")).returncode:
        pytest.skip(f"not permitted here: mount namespaces ({done.stderr.strip()})")
    yield made_phone


def two_kinds_of_cores(folder: Path) -> None:
    """What the kernel says of cores, with the first one slower than all others."""
    for name in ("online", "possible", "present"):
        made = folder / name
        made.parent.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            made.write_text((Path("/sys/devices/system/cpu") / name).read_text())
    allowed = sorted(os.sched_getaffinity(0))
    for number in allowed:
        clock = folder / f"cpu{number}" / "cpufreq" / "cpuinfo_max_freq"
        clock.parent.mkdir(parents=True)
        clock.write_text("1800000\n" if number == allowed[0] else "2800000\n")


def fast_cores() -> set[int]:
    allowed = sorted(os.sched_getaffinity(0))
    return set(allowed[1:] or allowed)


# -- the phone is one ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*(f"/proc/{name}" for name in HIDDEN), "/proc/net/tcp"])
def test_the_phone_hides_what_android_hides(phone: Phone, path: str) -> None:
    done = phone.python(f"open({path!r})")
    assert done.returncode == 1
    assert "PermissionError" in done.stderr, done.stderr


def test_the_phone_has_no_place_for_temporary_files_but_its_own(phone: Phone) -> None:
    done = phone.python("import tempfile; print(tempfile.gettempdir()); open('/tmp/x', 'w')")
    assert done.stdout.strip() == f"{PLACE}/{PREFIX}/tmp"
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize("package", ["pydantic", "psutil", "httpx", "agents"])
def test_the_phone_has_a_bare_python(phone: Phone, package: str) -> None:
    done = phone.python(f"import sys; assert sys.platform == 'android'; import {package}")
    assert f"No module named '{package}'" in done.stderr


# -- and serves ------------------------------------------------------------------------------------


async def test_an_agent_on_a_phone_joins_and_serves(
    cluster: Cluster, phone: Phone, demo_model: Path
) -> None:
    await cluster.supervisor()
    program = await phone.join(cluster, "/mnt/agent.pyz", "join", "-")
    facts = (await ready(cluster, program, "pixel-7-pro"))["facts"]

    assert facts["platform"] == "android"
    assert facts["fast_cores"] == facts["threads"] == len(fast_cores())
    assert facts["memory_available_bytes"] > 0
    assert facts["load_average"] is None
    assert (facts["battery_percent"], facts["temperature_c"], facts["parked"]) == (None, None, "")
    assert phone.asked() == 1
    assert children_of(program) == [], "the battery's command was not ended"

    assert (await cluster.launch(demo_model)).status_code == 201
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE

    (worker,) = children_of(program)
    assert "rpc-server" in worker.name()
    assert worker.cmdline()[worker.cmdline().index("-t") + 1] == str(len(fast_cores()))
    tasks = [int(task.name) for task in Path(f"/proc/{worker.pid}/task").iterdir()]
    assert [os.sched_getaffinity(task) for task in tasks] == [fast_cores()] * len(tasks)
    assert "Traceback" not in program.said()
    assert "rpc_server.not_pinned" not in program.said()


async def ready(cluster: Cluster, program: Program, name: str) -> dict[str, Any]:
    async def is_ready() -> dict[str, Any] | None:
        assert program.process.poll() is None, program.said()
        device = await cluster.device(name)
        return device if device and device["state"] == "ready" else None

    found: dict[str, Any] = await eventually(is_ready, within_s=90, what=f"{name} is ready")
    return found


def children_of(program: Program) -> list[psutil.Process]:
    """Everything that runs beside the one Python."""
    found = psutil.Process(program.process.pid).children(recursive=True)
    return [child for child in found if is_alive(child)]


def is_alive(process: psutil.Process) -> bool:
    """What has ended may wait for its new parent to take note."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


async def test_a_phone_that_is_told_to_stop_leaves_nothing_behind(
    cluster: Cluster, phone: Phone
) -> None:
    """Also not the command that hangs just then."""
    await cluster.supervisor()
    program = await phone.join(cluster, "/mnt/agent.pyz", "join", "-")

    async def has_asked() -> bool:
        assert program.process.poll() is None, program.said()
        return phone.asked() > 0

    await eventually(has_asked, within_s=90, what="the battery is asked for")
    family = children_of(program)
    assert await asyncio.to_thread(program.stop, signal.SIGTERM) == 0
    assert family, "the command had ended before"
    assert [child for child in family if is_alive(child)] == []


async def test_a_phone_whose_agent_is_killed_gives_its_memory_back(
    cluster: Cluster, phone: Phone, demo_model: Path
) -> None:
    """Android ends either of the two processes; the other one would hold the weights for ever."""
    await cluster.supervisor()
    phone.has_battery(80, charging=True)
    program = await phone.join(cluster, "/mnt/agent.pyz", "join", "-")
    await ready(cluster, program, "pixel-7-pro")
    assert (await cluster.launch(demo_model)).status_code == 201
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    (worker,) = children_of(program)
    program.process.kill()

    async def is_gone() -> bool:
        return not is_alive(worker)

    await eventually(is_gone, within_s=START_S, what="the rpc-server ends")


# -- battery ---------------------------------------------------------------------------------------


async def impatient(cluster: Cluster, phone: Phone) -> Program:
    program = await phone.join(cluster, "-c", IMPATIENT, "join", "-", "--name", "phone")
    await ready(cluster, program, "phone")
    return program


async def test_what_serves_is_moved_off_a_phone_with_a_low_battery(
    cluster: Cluster, phone: Phone, demo_model: Path
) -> None:
    await cluster.supervisor(heartbeat_s=0.5, rejoin="never")
    phone.has_battery(60, charging=False)
    await asyncio.gather(impatient(cluster, phone), cluster.agent("two"))
    assert (await cluster.launch(demo_model)).status_code == 201
    before = await cluster.settled()
    assert before["state"] == "ready", before["reason"]
    assert {shard["device"] for shard in before["plan"]["shards"]} == {"phone", "two"}

    phone.has_battery(14, charging=False)
    device = await cluster.device_state("phone", "parked")
    assert "14 % left and is not charging" in device["reason"]

    async def has_moved() -> dict[str, Any] | None:
        found: dict[str, Any] = (await cluster.http.get("/api/deployments/test")).json()
        has_changed = found["state"] == "ready" and found["launch_id"] != before["launch_id"]
        return found if has_changed else None

    after = await eventually(has_moved, within_s=90, what="it is moved")
    assert {shard["device"] for shard in after["plan"]["shards"]} == {"two"}
    why = " ".join(after["plan"]["reasons"])
    assert "phone is left out: its battery has 14 % left" in why
    assert after["failures"] == 0
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE
    record = (await cluster.http.get(f"/api/launches/{before['launch_id']}")).json()
    assert record["error_code"] == "device_parked"

    phone.has_battery(18, charging=False)  # better, but not yet well: nothing flaps
    await eventually(battery_is(cluster, 18), within_s=60, what="the new figure is told")
    assert (await cluster.device("phone") or {})["state"] == "parked"
    refused = await cluster.launch(demo_model, name="other", devices=["phone"])
    assert refused.json()["code"] == "device_parked", refused.text

    phone.has_battery(19, charging=True)
    await cluster.device_state("phone", "ready", within_s=60)
    still = (await cluster.http.get("/api/deployments/test")).json()
    assert still["launch_id"] == after["launch_id"]


def battery_is(cluster: Cluster, percent: float) -> Any:
    async def check() -> bool:
        device = await cluster.device("phone")
        return device is not None and device["facts"]["battery_percent"] == percent

    return check


async def test_what_cannot_be_moved_goes_on_with_a_warning(
    cluster: Cluster, phone: Phone, demo_model: Path
) -> None:
    await cluster.supervisor(heartbeat_s=0.5)
    phone.has_battery(60, charging=False)
    await impatient(cluster, phone)
    assert (await cluster.launch(demo_model)).status_code == 201
    before = await cluster.settled()
    assert before["state"] == "ready", before["reason"]

    phone.has_battery(60, charging=False, heat_c=48)
    device = await cluster.device_state("phone", "parked")
    assert "too hot, 48 °C" in device["reason"]
    (warning,) = await eventually(warnings_of(cluster), within_s=60, what="a warning")
    assert "phone: its battery is too hot, 48 °C" in warning
    assert "there is no plan without phone" in warning
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE

    phone.has_battery(60, charging=False, heat_c=41)
    device = await cluster.device_state("phone", "ready", within_s=60)
    assert (device["facts"]["derate"], device["facts"]["derate_reason"]) == (0.7, "hot (41 °C)")

    async def is_over() -> bool:
        return not await warnings_of(cluster)()

    await eventually(is_over, within_s=60, what="the warning goes")
    after = (await cluster.http.get("/api/deployments/test")).json()
    assert (after["state"], after["launch_id"]) == ("ready", before["launch_id"])
    plan = await cluster.http.post("/api/plan", json={"model": str(demo_model), "ctx_tokens": 512})
    assert "phone" in plan.text


def warnings_of(cluster: Cluster) -> Any:
    async def read() -> list[str]:
        found = (await cluster.http.get("/api/deployments/test")).json()
        return [str(text) for text in found["warnings"]]

    return read
