"""Findings of the doctor about the main host, and about devices as they are seen from there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import Field

from agents.contract import EngineFacts, Finding, Verdict
from supervisor.core.entities import Device, FrozenModel
from supervisor.core.membership import DeviceCondition, is_same_build

TITLES: Final[Mapping[str, str]] = {
    "supervisor": "Supervisor",
    "store": "Store",
    "dashboard": "Dashboard and API",
    "join_port": "Port for devices",
    "release": "Engine for devices",
    "model_fit": "Memory for the model",
    "examination": "Own findings",
    "membership": "Part of the cluster",
    "rest_api": "Agent, from here",
    "link": "Link, from here",
    "link_speed": "Speed of the link",
    "same_engine": "Same engine",
    "certificate": "Certificate",
    "model_share": "Its part of the model",
}
"""Of every check that only a main host can make."""

SLOW_ROUND_TRIP_MS: Final = 20.0
SLOW_BYTES_PER_S: Final = 3e6
"""Slower ones take an hour for 10 GiB of weights."""
CERTIFICATE_WARNS_S: Final = 30 * 86_400.0
_DAY_S: Final = 86_400.0


class DeviceFindings(FrozenModel):
    """What the doctor found of one device, or of the main host itself."""

    device: str = Field(description="its name; 'main host' is this one")
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Greeting:
    """What became of a TLS handshake with a device. ``problem`` says why there was none."""

    endpoint: str
    problem: str = ""
    round_trip_ms: float | None = None
    """Of the connection itself, before TLS."""
    not_after_s: float | None = None
    """When the certificate that it showed ends: seconds since 1970."""


def ok(check: str, found: str) -> Finding:
    return Finding(check, TITLES[check], Verdict.OK, found)


def warning(check: str, found: str, remedy: str = "") -> Finding:
    return Finding(check, TITLES[check], Verdict.WARNING, found, remedy)


def blocks(check: str, found: str, remedy: str = "") -> Finding:
    return Finding(check, TITLES[check], Verdict.BLOCKS, found, remedy)


def unknown(check: str, found: str, remedy: str = "") -> Finding:
    return Finding(check, TITLES[check], Verdict.UNKNOWN, found, remedy)


# -- the main host -----------------------------------------------------------------------------


def supervisor_runs(url: str) -> Finding:
    return ok("supervisor", f"runs; dashboard at {url}")


def store(problem: str) -> Finding:
    """Whether what must survive a crash is kept."""
    if problem:
        return blocks("store", problem, "free space in the data folder, or give us the right to it")
    return ok("store", "can be read and written")


def dashboard(host: str, url: str, keyless: str) -> Finding:
    """Who can reach the dashboard."""
    if host in ("127.0.0.1", "::1", "localhost"):
        return ok("dashboard", f"at {url}, for this host alone")
    return ok("dashboard", f"at {url}, on {host}: other hosts need the key ({keyless} without one)")


def join_port(endpoints: Sequence[str], problem: str) -> Finding:
    """Whether devices find us."""
    where = ", ".join(endpoints)
    if problem:
        return blocks("join_port", f"{where}: {problem}", "restart the supervisor")
    loopback = all(endpoint.startswith(("127.", "[::1]")) for endpoint in endpoints)
    only = ", which only programs of this host reach" if loopback else ""
    return ok("join_port", f"answers at {where}{only}")


def release(engine: EngineFacts | None) -> Finding:
    """Whether devices can be given the engine that runs here."""
    install = "'supervisor engine install' fetches a release for every platform"
    if engine is None or engine.problem:
        return warning("release", "there is no usable engine here to give to devices", install)
    if engine.release:
        return ok("release", f"release {engine.release}: devices get the same")
    name = engine.build or engine.version or "unknown"
    return ok("release", f"build {name} is no release: only devices like this host get it from us")


# -- a device ----------------------------------------------------------------------------------


def membership(device: Device) -> Finding:
    """Whether plans may use it."""
    if device.excluded:
        remedy = f"supervisor devices include {device.name}"
        return warning("membership", "you excluded it, so no plan uses it", remedy)
    if device.state == DeviceCondition.READY:
        doing = f"serves {device.used_by}" if device.used_by else device.doing or "idle"
        return ok("membership", f"ready, {doing}")
    said = f"{device.state}: {device.reason}"
    if device.state in (DeviceCondition.SUSPECT, DeviceCondition.PARKED):
        return warning("membership", said)
    return blocks("membership", said)


def rest_api(greeting: Greeting, error: str) -> Finding:
    """Whether its agent answers us: the handshake, and then the question what it finds itself."""
    if greeting.problem:
        return blocks(
            "rest_api",
            f"{greeting.endpoint} cannot be reached from here: {greeting.problem}",
            "check that the agent runs there, and that its firewall lets this port in",
        )
    if error:
        return warning("rest_api", f"{greeting.endpoint} greets but does not answer: {error}")
    return ok("rest_api", f"answers at {greeting.endpoint}")


def link(greeting: Greeting | None) -> Finding:
    """Whether tensors reach it."""
    if greeting is None:
        return ok("link", "it has none; only transport 'direct' works")
    if greeting.problem:
        return blocks(
            "link",
            f"{greeting.endpoint} cannot be reached from here: {greeting.problem}",
            "let this TCP port in on the device, or give it another with join --link-port",
        )
    return ok("link", f"greets at {greeting.endpoint}")


def link_speed(device: Device, greeting: Greeting | None) -> Finding:
    """Whether the network is fast enough, by what was measured, else by the greeting."""
    speed, told = device.speed, []
    now_ms = greeting.round_trip_ms if greeting else None
    if now_ms is not None:
        told.append(f"round trip {now_ms:.1f} ms now")
    if speed is not None:
        told.append(f"measured {speed.round_trip_ms:.1f} ms, {_rate(speed.up_bytes_per_s)} to it")
    if not told:
        return unknown("link_speed", "not reached now and never measured", "supervisor measure")
    said = "; ".join(told)
    if now_ms is not None and now_ms > SLOW_ROUND_TRIP_MS:
        return warning(
            "link_speed",
            f"{said}: every token waits for it; more than {SLOW_ROUND_TRIP_MS:.0f} ms is usually "
            "Wi-Fi that sleeps",
            _awake(device),
        )
    if speed is not None and speed.up_bytes_per_s < SLOW_BYTES_PER_S:
        hours = 10 * 2**30 / speed.up_bytes_per_s / 3600
        return warning("link_speed", f"{said}: {hours:.1f} h for 10 GiB of weights", "use a cable")
    return ok("link_speed", said)


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.1f} MB/s"


def _awake(device: Device) -> str:
    if device.facts is not None and device.facts.platform == "android":
        return "keep its screen on (dim), or use a cable: Wi-Fi sleeps while the screen is off"
    return "use a cable, or a better place for its Wi-Fi"


def same_engine(device: Device, host: EngineFacts | None) -> Finding:
    """Whether it runs the build of the main host; others give wrong results without a word."""
    own = device.facts.engine if device.facts else None
    if own is None or host is None:
        who = "the main host" if host is None else "it"
        return unknown("same_engine", f"{who} has no engine, or did not tell of it")
    told = f"build {own.build or '?'}, RPC {own.rpc_protocol or '?'}"
    here = f"build {host.build or '?'}, RPC {host.rpc_protocol or '?'}"
    is_same_rpc = not host.rpc_protocol or own.rpc_protocol == host.rpc_protocol
    if is_same_rpc and is_same_build(own.build, host.build):
        return ok("same_engine", told)
    remedy = f"supervisor engine use {host.release or host.build}"
    return blocks("same_engine", f"{told}, and the main host {here}", remedy)


def certificate(greeting: Greeting, now_s: float) -> Finding:
    """Whether the device's certificate goes on to be accepted."""
    if greeting.not_after_s is None:
        return unknown("certificate", "shows only when the agent can be reached")
    left_s = greeting.not_after_s - now_s
    if left_s <= 0:
        return blocks("certificate", "has ended", "join the device again")
    said = f"good for {left_s / _DAY_S:.0f} more days"
    if left_s < CERTIFICATE_WARNS_S:
        return warning("certificate", said, "join the device again before that")
    return ok("certificate", said)


def examination(error: str, *, is_old: bool = False) -> Finding:
    """In place of what a device would have found itself."""
    if is_old:
        return unknown("examination", "its agent is too old to examine itself", "join it again")
    return unknown("examination", f"it was not heard: {error}", "run 'agent.pyz doctor' on it")
