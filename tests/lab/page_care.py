"""Devices of the invented home that need care, what the doctor finds there, and an engine shelf."""

from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from agents.contract import EngineInstall, Finding, InstallState, Verdict
from lab.page_home import ATTIC, DESK, MAC, OLD_PHONE, PIXEL, Kind, device_json, engine
from supervisor.core.entities import Wire

Json = dict[str, Any]

RELEASE: Final = "b10516"
NEWER: Final = "b10603"
MAIN_VARIANT: Final = "ubuntu-x64"
VARIANTS: Final = {"linux": "ubuntu-vulkan-x64", "macos": "macos-arm64", "android": "android-arm64"}
ARCHIVE_BYTES: Final = 92_274_688


def device_with(kind: Kind, now: datetime, facts: Json | None = None, **changes: Any) -> Json:
    """A device whose engine is a release; ``facts`` are fields of its facts, as JSON."""
    body = device_json(kind, now, **changes)
    known = asdict(engine(release=RELEASE, variant=VARIANTS[kind.platform]))
    return {**body, "facts": {**body["facts"], "engine": known, **(facts or {})}}


def care_devices(now: datetime) -> list[Json]:
    """Parked and hot ones, some that get an engine, some with several networks."""
    parked = (
        "its battery has 18 % left and is not charging; it takes work again when it charges, or "
        "from 25 % on"
    )
    none = "no llama.cpp programs there"
    gets = f"{none}; it gets llama.cpp {RELEASE} from the main host"
    why = (
        "its programs do not start here: exit status 1; Android 8 is older than the release needs, "
        "which is Android 9"
    )
    failed = f"{none}; llama.cpp {RELEASE} did not get there: {why} (it is tried again in 300 s)"
    # fmt: off
    getting: Json = {"doing": f"getting llama.cpp {RELEASE}", "is_measured": False,
                     "state": "unusable", "reason": gets}
    # fmt: on
    nothing: Json = {"engine": None}
    return [
        device_with(DESK, now),
        device_with(MAC, now, {"fast_cores": 4, "wires": [asdict(each) for each in MAC_FINDINGS]},
                    wires=mac_wires()),
        device_with(PIXEL, now, {"fast_cores": 5, "temperature_c": 44, "derate": 0.7,
                                 "derate_reason": "hot (44 °C)"}, wires=phone_wires()),
        device_with(OLD_PHONE, now, {"fast_cores": 4, "parked": parked, "temperature_c": 31},
                    state="parked", reason=parked),
        device_with(ATTIC, now,
                    engine_install=_install(NEWER, InstallState.FETCHING, 0.44)),
        device_with(_another(PIXEL, "tablet", 43), now, nothing, **getting,
                    engine_install=_install(RELEASE, InstallState.FETCHING, 0.71)),
        device_with(_another(PIXEL, "pixel-6", 44), now, nothing, **getting,
                    engine_install=_install(RELEASE, InstallState.PROVING, 1)),
        device_with(_another(OLD_PHONE, "kitchen-phone", 45), now, nothing, is_measured=False,
                    state="unusable", reason=failed, engine_install=EngineInstall(
                        RELEASE, InstallState.FAILED, error_code="engine_unusable", detail=why)),
    ]  # fmt: skip


def _another(kind: Kind, name: str, host: int) -> Kind:
    return Kind(**{**kind.__dict__, "name": name, "address": f"192.168.1.{host}"})


def _install(build: str, state: InstallState, part: float) -> EngineInstall:
    return EngineInstall(build, state, int(ARCHIVE_BYTES * part), ARCHIVE_BYTES)


def mac_wires() -> tuple[Wire, ...]:
    """Four networks, one of which leads nowhere."""
    return (
        Wire(near="10.55.0.1", far="10.55.0.2", kind="thunderbolt", interface="en5",
             round_trip_ms=0.21, up_bytes_per_s=1.27e9, in_use=True),
        Wire(near="192.168.1.10", far="192.168.1.21", kind="ethernet", interface="en0",
             round_trip_ms=0.34, up_bytes_per_s=117.6e6),
        Wire(near="192.168.1.10", far="192.168.1.121", kind="wifi", interface="en1",
             round_trip_ms=4.1, up_bytes_per_s=41e6),
        Wire(near="169.254.8.1", far="169.254.77.3", kind="bridge", interface="bridge0",
             problem="169.254.77.3 does not answer; it is self-assigned: no cable, or no address "
             "was given"),
    )  # fmt: skip


def phone_wires() -> tuple[Wire, ...]:
    return (
        Wire(near="192.168.1.10", far="192.168.1.34", kind="wifi", interface="wlan0",
             round_trip_ms=5.8, up_bytes_per_s=38e6, in_use=True),
    )  # fmt: skip


MAC_FINDINGS: Final = (
    Finding("thunderbolt_bridge", "Thunderbolt bridge", Verdict.WARNING,
            "en6 is a port of bridge0; a ring of cables over bridges stops the whole network",
            "remove the bridge in System Settings; each port is a service of its own then"),
    Finding("rdma", "RDMA", Verdict.OK, "there is none; TCP is used"),
)  # fmt: skip


# -- the doctor --------------------------------------------------------------------------------

WELL: Final = (
    ("python", "Python", "3.14.6"),
    ("agent", "Agent", "0.1.0 runs, process 4711"),
    ("engine", "Engine", f"{RELEASE}, RPC 7.0.0"),
    ("rpc_ports", "Ports of engines", "all of 8110 to 8199 are free"),
    ("firewall", "Firewall", "lets the agent's ports through"),
    ("main_host", "Way to the main host", "192.168.1.10:8101 answers, and reaches us"),
    ("clock", "Clock", "0.2 s behind the main host's"),
    ("memory", "Memory", "9.8 of 15.5 GiB can be taken"),
    ("disk", "Disk", "61 GiB free"),
)
_BATTERY: Final = Finding(
    "battery", "Battery", Verdict.BLOCKS, "18 %, below the floor of 20 %, and not charging",
    "plug it in; it takes work again at 25 %",
)  # fmt: skip
_WAKE: Final = Finding(
    "wake_lock", "Wake lock", Verdict.WARNING,
    "none is held; with the screen off the round trip rises to 300 ms and more",
    "run termux-wake-lock, or start the agent by the join line",
)  # fmt: skip
_PHANTOM: Final = Finding(
    "phantom_processes", "Phantom processes", Verdict.UNKNOWN,
    "this Android does not tell whether it ends child processes",
    'switch on Developer options, "Disable child process restrictions"',
)  # fmt: skip
_ENGINE: Final = Finding(
    "engine", "Engine", Verdict.BLOCKS, "none was found, and b10516 does not start here",
    "use a phone with Android 9 or newer",
)  # fmt: skip
_SLEEP: Final = Finding(
    "sleep", "Sleep", Verdict.WARNING, "it sleeps after 10 min without a user",
    "sudo pmset -c sleep 0",
)  # fmt: skip
WRONG: Final[dict[str, tuple[Finding, ...]]] = {
    "mac-mini": (_SLEEP,),
    "pixel-8": (_WAKE,),
    "old-phone": (_PHANTOM, _WAKE, _BATTERY),
    "kitchen-phone": (_ENGINE, _WAKE),
}


def findings(name: str) -> tuple[Finding, ...]:
    """What the doctor finds on a device of the home."""
    wrong = WRONG.get(name, ())
    taken = {each.check for each in wrong}
    well = [Finding(check, title, Verdict.OK, found)
            for check, title, found in WELL if check not in taken]  # fmt: skip
    return (*well, *wrong)
