"""What was measured of devices and links, and when it stops being true."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from pydantic import Field

from agents.contract import EngineFacts
from supervisor.core.entities import AgentId, FrozenModel, MeasuredSpeed


class DeviceMeasured(FrozenModel):
    """Speed of one ggml device, measured by its agent through its own rpc-server."""

    agent_id: AgentId
    ggml_device: str
    taken_at: str = Field(description="ISO 8601 with time zone")
    rpc_protocol: str
    engine_build: str
    temperature_c: float | None = None
    decode_bytes_per_s: dict[str, float] = Field(description="by ggml type")
    prefill_flop_per_s: dict[str, float] = Field(description="by ggml type")
    op_overhead_s: float = Field(ge=0, description="fixed time of one operation of a graph")
    hop_overhead_s: float = Field(ge=0, description="fixed time of one token beyond the round trip")
    sustained_factor: float = Field(
        default=1.0, gt=0, le=1, description="of the speeds, under steady load"
    )
    attention_flop_per_s: float = Field(default=0.0, ge=0, description="of one token; 0: unknown")
    cache_bytes_per_s: float = Field(default=0.0, ge=0, description="keys and values; 0: unknown")
    prefill_attention_flop_per_s: float = Field(default=0.0, ge=0, description="0: unknown")
    correction: float = Field(
        default=1.0, gt=0, description="what runs took divided by what was predicted"
    )


class LinkMeasured(FrozenModel):
    """The path from the main host to one device's rpc-server."""

    agent_id: AgentId
    taken_at: str
    rtt_p50_s: float = Field(ge=0)
    rtt_p90_s: float = Field(ge=0)
    up_bytes_per_s: float = Field(gt=0)
    down_bytes_per_s: float = Field(gt=0)
    far: str = Field(default="", description="address of the device that it goes to")


def why_stale(
    taken_at: str,
    now: datetime,
    *,
    keeps: timedelta,
    build: tuple[str, str] = ("", ""),
    protocol: tuple[str, str] = ("", ""),
    far: tuple[str, str] = ("", ""),
) -> str:
    """Why a measurement no longer counts, or nothing.

    Args:
        taken_at: When it was taken.
        now: With a time zone.
        keeps: How long a measurement is believed.
        build: Engine build then and now; unknown ones are empty and match.
        protocol: RPC protocol then and now.
        far: The address that the link goes to, then and now.
    """
    if all(protocol) and protocol[0] != protocol[1]:
        return f"it was measured with RPC {protocol[0]}, now it is {protocol[1]}"
    if all(build) and build[0] != build[1]:
        return f"it was measured with build {build[0]}, now it is {build[1]}"
    if all(far) and far[0] != far[1]:
        return f"it was measured over {far[0]}, now tensors go over {far[1]}"
    age = now - datetime.fromisoformat(taken_at)
    if age > keeps:
        return f"it was measured {age.days} days ago"
    return ""


def measured_speed(
    devices: Sequence[DeviceMeasured],
    link: LinkMeasured | None,
    engine: EngineFacts | None,
    now: datetime,
    keeps: timedelta,
    far: str = "",
) -> MeasuredSpeed | None:
    """What was measured of one device, in short; ``None``: it never was as a whole.

    Args:
        devices: Its ggml devices, in any order.
        link: The link to it.
        engine: That it has now; ``None``: unknown, and then it is no reason for anything.
        now: With a time zone.
        keeps: How long a measurement is believed.
        far: Address that its tensors go to now; empty: unknown.
    """
    fastest = max(devices, key=_decode_bytes_per_s, default=None)
    if fastest is None or link is None:
        return None
    build, protocol = (engine.build, engine.rpc_protocol) if engine else ("", "")
    stale = why_stale(
        fastest.taken_at,
        now,
        keeps=keeps,
        build=(fastest.engine_build, build),
        protocol=(fastest.rpc_protocol, protocol),
    )
    return MeasuredSpeed(
        decode_bytes_per_s=_decode_bytes_per_s(fastest),
        up_bytes_per_s=link.up_bytes_per_s,
        down_bytes_per_s=link.down_bytes_per_s,
        round_trip_ms=round(link.rtt_p50_s * 1e3, 3),
        taken_at=fastest.taken_at,
        stale=stale or why_stale(link.taken_at, now, keeps=keeps, far=(link.far, far)),
    )


def _decode_bytes_per_s(measured: DeviceMeasured) -> float:
    """The most of any type, as it is under steady load."""
    return max(measured.decode_bytes_per_s.values(), default=0.0) * measured.sustained_factor
