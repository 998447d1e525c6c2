"""What the supervisor knows of each device that has joined, as the registry keeps it."""

from dataclasses import dataclass, field
from typing import Protocol

from agents.contract import DeviceFacts, EngineInstall, RpcServerStatus
from supervisor.core.entities import AgentId, DeploymentId, DeviceChoice, Wire
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.core.membership import DeviceCondition
from supervisor.ports import AgentPort


class RegistryStore(Protocol):
    """What the registry keeps."""

    def agents(self) -> list[tuple[AgentId, str, str, str, int]]: ...

    def save_agent(self, agent_id: AgentId, name: str, serial: str, joined_at: str) -> None: ...

    def save_agent_address(self, agent_id: AgentId, address: str, rest_port: int) -> None: ...

    def delete_agent(self, agent_id: AgentId) -> None: ...

    def forget_measurements(self, agent_id: AgentId) -> None: ...

    def forget_lesson(self, agent_id: AgentId) -> None: ...

    def device_measurements(self) -> list[DeviceMeasured]: ...

    def link_measurements(self) -> list[LinkMeasured]: ...

    def device_choices(self) -> list[DeviceChoice]: ...

    def save_device_choice(self, choice: DeviceChoice) -> None: ...

    def forget_device_choice(self, agent_id: AgentId) -> None: ...

    def save_token(
        self, token_hash: str, expires_at_s: float, uses: int | None, *, now_s: float
    ) -> None: ...

    def spend_token(self, token_hash: str, now_s: float) -> str: ...


@dataclass(slots=True)
class Entry:
    """One device: what was stored of it, what it said last, and what it is used for."""

    name: str
    serial: str
    choice: DeviceChoice
    address: str = ""
    rest_port: int = 0
    link_address: str = ""
    link_port: int = 0
    facts: DeviceFacts | None = None
    rpc_server: RpcServerStatus | None = None
    engine_install: EngineInstall | None = None
    engine_note: str = ""
    """What is done about an engine that cannot serve here, or why nothing can be."""
    heard_at_s: float = float("-inf")
    used_by: DeploymentId | None = None
    is_serving: bool = False
    """The deployment that uses it has loaded."""
    tasks: list[str] = field(default_factory=list)
    """What it does beside that; the newest is told."""
    measured: tuple[DeviceMeasured, ...] = ()
    link: LinkMeasured | None = None
    round_trip_ms: float | None = None
    wires: tuple[Wire, ...] = ()
    wire_failures: dict[str, str] = field(default_factory=dict)
    """Reason by far address, of wires that failed a launch and were not looked at since."""
    client: AgentPort | None = None
    condition: DeviceCondition = DeviceCondition.LOST
    doubt: str = ""
    doubted_at_s: float = float("-inf")


def remembered(store: RegistryStore) -> dict[AgentId, Entry]:
    """The devices that had joined before we started."""
    choices = {choice.agent_id: choice for choice in store.device_choices()}
    entries = {}
    for agent_id, name, serial, address, port in store.agents():
        choice = choices.get(agent_id) or DeviceChoice(agent_id=agent_id)
        entries[agent_id] = Entry(choice.name or name, serial, choice, address, port)
    for found in store.device_measurements():
        if found.agent_id in entries:
            entries[found.agent_id].measured += (found,)
    for link in store.link_measurements():
        if link.agent_id in entries:
            entries[link.agent_id].link = link
    return entries


def doing_now(entry: Entry) -> str:
    """What a device does now; a launch takes it whatever else it does."""
    if entry.used_by is not None:
        return f"{'serving' if entry.is_serving else 'loading'} {entry.used_by}"
    return entry.tasks[-1] if entry.tasks else ""


def may_be_in_name(character: str) -> bool:
    """Whether names of devices may have that: they stand in paths and in lists of names."""
    return character.isalnum() or character in "-_."
