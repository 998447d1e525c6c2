"""What a device's own checks make of memory, power and platform, with recorded outputs."""

from pathlib import Path

from agents.contract import Finding, Verdict
from agents.doctor import android, linux, macos, memory_and_disk, power, termux
from agents.doctor.memory_and_disk import GIB, MIB
from agents.doctor.power import Battery
from agents.doctor.reading import Output

OK, WARNS, BLOCKS, UNKNOWN = Verdict.OK, Verdict.WARNING, Verdict.BLOCKS, Verdict.UNKNOWN
MISSING = Output(problem="dumpsys is not installed")
HUNG = Output(problem="pmset did not answer within 5 s")


def is_(finding: Finding | None, verdict: Verdict, *words: str) -> None:
    """Whether a finding has this verdict and these words; what is not well says what to do."""
    assert finding is not None
    assert finding.verdict is verdict, finding
    for word in words:
        assert word in f"{finding.found} {finding.remedy}", finding
    if verdict in (WARNS, BLOCKS):
        assert finding.remedy


# -- memory and disk ---------------------------------------------------------------------------


def test_memory() -> None:
    judge = memory_and_disk.memory
    is_(judge(8 * GIB, 4 * GIB, 8 * GIB, "linux"), OK, "4.0 GiB of 8.0 GiB")
    is_(judge(2 * GIB, 2 * GIB, 8 * GIB, "linux"), OK, "control group", "8.0 GiB")
    is_(judge(8 * GIB, 4 * GIB, 8 * GIB, "android"), OK, "left to Android")
    is_(judge(8 * GIB, 1 * GIB - 1, 8 * GIB, "linux"), WARNS)
    is_(judge(8 * GIB, 256 * MIB - 1, 8 * GIB, "linux"), BLOCKS)
    is_(judge(0, 0, 0, "macos"), UNKNOWN, "psutil")


def test_swap() -> None:
    judge = memory_and_disk.swap
    is_(judge(None, 0, is_compressed=False), UNKNOWN)
    is_(judge(0, 0, is_compressed=False), OK, "none")
    is_(judge(4 * GIB, 3 * GIB, is_compressed=True), OK, "zram")
    is_(judge(4 * GIB, 1 * GIB, is_compressed=False), OK)
    is_(judge(4 * GIB, 3 * GIB, is_compressed=False), WARNS)


def test_figures_of_swap_and_meminfo_are_read() -> None:
    text = "total = 2048.00M  used = 1012.50M  free = 1035.50M  (encrypted)\n"
    assert memory_and_disk.macos_swap(text) == (2048 * MIB, int(1012.5 * MIB))
    assert memory_and_disk.macos_swap("sysctl: unknown oid") is None
    assert (
        memory_and_disk.meminfo_bytes("MemTotal:  7 kB\nSwapTotal: 12 kB\n", "SwapTotal") == 12288
    )
    assert memory_and_disk.meminfo_bytes("MemTotal:  7 kB\n", "SwapTotal") is None


def test_disk() -> None:
    folder = Path("/data")
    is_(memory_and_disk.disk(2 * GIB, folder), OK)
    is_(memory_and_disk.disk(GIB - 1, folder), WARNS)
    is_(memory_and_disk.disk(100 * MIB - 1, folder), BLOCKS)


def test_gpu_memory() -> None:
    judge = macos.gpu_memory
    is_(judge(Output("0\n", 0), 16 * GIB, 11 * GIB), OK, "11.0 GiB", "iogpu.wired_limit_mb=N")
    is_(judge(Output("12288\n", 0), 16 * GIB), OK, "12.0 GiB")
    is_(judge(Output("15565\n", 0), 16 * GIB), WARNS, "sudo sysctl iogpu.wired_limit_mb=13107")
    is_(judge(Output("sysctl: unknown oid 'iogpu.wired_limit_mb'\n", 1), 16 * GIB), UNKNOWN)


# -- power -------------------------------------------------------------------------------------

PMSET_BATT = """\
Now drawing from 'Battery Power'
 -InternalBattery-0 (id=21233763)	83%; discharging; 5:12 remaining present: true
"""
PMSET = """\
System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 hibernatemode        3
 powernap             1
 disksleep            10
 sleep                1 (sleep prevented by caffeinate, powerd)
 displaysleep         10
"""


def test_battery() -> None:
    is_(power.battery(None), OK, "mains")
    is_(power.battery(Battery(83, True)), OK, "83 %")
    is_(power.battery(Battery(83, False)), WARNS, "charger")
    is_(power.battery(Battery(12, False)), WARNS, "low")
    is_(power.battery(Battery(12, None)), OK)
    is_(power.battery(Battery(None, None)), UNKNOWN)
    is_(power.battery(Battery(12, False), "battery at 12 %"), BLOCKS, "battery at 12 %")


def test_batteries_are_read() -> None:
    assert power.macos_battery(PMSET_BATT) == Battery(83, False)
    assert power.macos_battery(PMSET_BATT.replace("Battery P", "AC P")) == Battery(83, True)
    assert power.macos_battery("Now drawing from 'AC Power'\n") is None
    laptop = {
        "AC": {"type": "Mains", "online": "0"},
        "BAT0": {"type": "Battery", "capacity": "55", "status": "Discharging"},
        "hid-mouse": {"type": "Battery", "scope": "Device", "capacity": "3"},
    }
    assert power.linux_battery(laptop) == Battery(55, False)
    fed = laptop | {"AC": {"type": "Mains", "online": "1"}}
    assert power.linux_battery(fed) == Battery(55, True)
    assert power.linux_battery({"hid-mouse": laptop["hid-mouse"]}) is None
    told = '{"health": "GOOD", "percentage": 71, "plugged": "UNPLUGGED", "temperature": 31.2}'
    assert termux.battery_from(told) == (71.0, False)
    assert termux.battery_from(told.replace("UNPLUGGED", "PLUGGED_AC")) == (71.0, True)
    assert termux.battery_from("") is None


def test_sleep_of_macos() -> None:
    is_(power.macos_sleep(Output(PMSET, 0)), OK, "caffeinate")
    alone = PMSET.replace(" (sleep prevented by caffeinate, powerd)", "")
    is_(power.macos_sleep(Output(alone, 0)), WARNS, "after 1 min", "pmset -c sleep 0")
    is_(
        power.macos_sleep(Output(alone.replace("sleep                1", "sleep 0"), 0)),
        OK,
        "never",
    )
    is_(power.macos_sleep(Output(" SleepDisabled		1\n" + alone, 0)), OK, "never")
    is_(power.macos_sleep(HUNG), UNKNOWN, "within 5 s")


def test_sleep_of_linux() -> None:
    static, masked = Output("static\nstatic\n", 0), Output("masked\nmasked\n", 1)
    is_(power.linux_sleep(masked, "suspend", "'suspend'"), OK, "masked")
    is_(power.linux_sleep(static, ""), OK)
    is_(power.linux_sleep(static, "suspend"), WARNS, "systemctl mask")
    is_(power.linux_sleep(static, "ignore", "'suspend'\n"), WARNS, "gsettings")
    is_(power.linux_sleep(static, "ignore", "'nothing'\n"), OK)
    is_(power.linux_sleep(Output(problem="systemctl is not installed"), ""), OK, "no systemd")
    is_(power.linux_sleep(Output(problem="systemctl did not answer within 5 s"), ""), UNKNOWN)


def test_logind_settings_are_read_and_the_last_one_counts() -> None:
    texts = ["[Login]\n#IdleAction=ignore\nHandleLidSwitch=suspend\n", "HandleLidSwitch=ignore\n"]
    assert power.logind_setting("HandleLidSwitch", texts) == "ignore"
    assert power.logind_setting("IdleAction", texts) == ""


def test_lid() -> None:
    assert power.linux_lid(None, "", "") is None
    is_(power.linux_lid("state:      open\n", "", ""), WARNS, "HandleLidSwitch=ignore")
    is_(power.linux_lid("state:      closed\n", "ignore", ""), OK, "closed")
    is_(power.linux_lid("state:      open\n", "suspend", "ignore"), OK)
    assert power.macos_lid(has_battery=False) is None
    is_(power.macos_lid(has_battery=True), OK, "laptop")


# -- Android -----------------------------------------------------------------------------------


def test_phantom_processes() -> None:
    judge = android.phantom_processes
    is_(judge("30\n", "\n"), OK)
    is_(judge("34\n", "false\n"), OK)
    is_(judge("31\n", "\n"), WARNS, "max_phantom_processes")
    is_(judge("33\n", "\n"), WARNS, "settings_enable_monitor_phantom_procs false")
    is_(judge("35\n", "true\n"), WARNS, "Disable child process restrictions")
    is_(judge("", ""), UNKNOWN)


def test_wake_lock() -> None:
    held = "Wake Locks: size=1\n  PARTIAL_WAKE_LOCK 'com.termux:service-wakelock' ACQ=-8m\n"
    denied = Output("Permission Denial: can't dump PowerManager from pid=1, uid=10200\n", 0)
    is_(android.wake_lock(Output(held, 0), has_program=True), OK)
    is_(android.wake_lock(Output("Wake Locks: size=0\n", 0), has_program=True), WARNS)
    is_(android.wake_lock(denied, has_program=True), UNKNOWN, "notification")
    is_(android.wake_lock(MISSING, has_program=True), UNKNOWN)
    is_(android.wake_lock(MISSING, has_program=False), WARNS, "pkg install")


def test_battery_exemption() -> None:
    system = "system-excidle,com.android.shell,2000\nsystem,com.android.providers.downloads,10012\n"
    is_(android.battery_exemption(Output(system + "user,com.termux,10200\n", 0)), OK)
    is_(android.battery_exemption(Output(system, 0)), WARNS, "Unrestricted")
    is_(android.battery_exemption(Output("Permission Denial: can't dump\n", 0)), UNKNOWN)


def test_termux_origin() -> None:
    is_(android.termux_origin({"TERMUX_VERSION": "0.118.3", "TERMUX_APK_RELEASE": "F_DROID"}), OK)
    play = {"TERMUX_VERSION": "googleplay.2025.10.05"}
    is_(android.termux_origin(play), WARNS, "F-Droid")
    is_(android.termux_origin({"TERMUX_APP__APK_RELEASE": "GOOGLE_PLAY_STORE"}), WARNS)
    is_(android.termux_origin({}), UNKNOWN)


def test_termux_api() -> None:
    hung = Output(problem="termux-battery-status did not answer within 5 s")
    absent = Output(problem="termux-battery-status is not installed")
    is_(android.termux_api(Output('{"percentage": 71, "plugged": "UNPLUGGED"}', 0)), OK)
    is_(android.termux_api(hung), WARNS, "within 5 s", "open it once")
    is_(android.termux_api(absent), WARNS, "pkg install termux-api")


def test_termux_boot() -> None:
    script = Path("/home/.termux/boot/10-llama-rpc-agent")
    is_(android.termux_boot(script, is_there=True, is_executable=True), OK)
    is_(android.termux_boot(script, is_there=True, is_executable=False), WARNS, "chmod")
    is_(android.termux_boot(script, is_there=False, is_executable=False), WARNS, "invite")


# -- macOS and Linux ---------------------------------------------------------------------------


def test_launch_item() -> None:
    one, other = (
        Path("/Users/a/Library/LaunchAgents/x.plist"),
        Path("/Library/LaunchDaemons/x.plist"),
    )
    is_(macos.launch_item([], [other]), OK, "daemon")
    is_(macos.launch_item([one], []), WARNS, "LaunchAgent")
    is_(macos.launch_item([], []), OK, "service install")


def test_linger() -> None:
    is_(linux.linger("", Output()), OK)
    is_(linux.linger("a.service", Output("Linger=yes\n", 0)), OK)
    is_(linux.linger("a.service", Output("Linger=no\n", 0)), WARNS, "enable-linger")
    is_(linux.linger("a.service", Output(problem="loginctl is not installed")), UNKNOWN)


def test_memory_of_the_service() -> None:
    judge = linux.service_memory
    is_(judge("", Output(), 0), OK)
    is_(judge("a.service", Output("MemoryHigh=infinity\nMemoryMax=infinity\n", 0), 8 * GIB), OK)
    tight = Output(f"MemoryHigh=infinity\nMemoryMax={2 * GIB}\n", 0)
    is_(judge("a.service", tight, 8 * GIB), WARNS, "2.0 GiB", "systemctl --user edit a.service")
    is_(judge("a.service", tight, 3 * GIB), OK)
    is_(judge("a.service", HUNG, 8 * GIB), UNKNOWN)


def test_wsl() -> None:
    two = "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@f9c826d3017f)"
    assert linux.wsl("Linux version 6.12.0-arch1", "") is None
    is_(linux.wsl(two, "mirrored\n"), OK)
    is_(linux.wsl(two, "nat\n"), WARNS, "networkingMode=mirrored")
    is_(linux.wsl("Linux version 4.4.0-19041-Microsoft (Microsoft@Microsoft.com)", ""), BLOCKS)
