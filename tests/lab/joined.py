"""The part of a main host that an agent knows, in this process: registry and join address."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cluster import Program, eventually

from agents import ports, tls, web
from agents.cli import CODE_VARIABLE
from agents.contract import RpcServerSpec, RpcServerStatus, WorkerState
from agents.join import JoinCode
from supervisor.adapters.agent_client import AgentClient
from supervisor.adapters.authority import Authority
from supervisor.adapters.store import Store
from supervisor.api.join_api import create_join_app
from supervisor.core.entities import AgentId, Device
from supervisor.ports import AgentPort
from supervisor.service.events import EventBus
from supervisor.service.registry import Registry
from supervisor.settings import Settings

LOOPBACK: Final = "127.0.0.1"


class JoinedHost:
    """Ends and starts again on the same port; agents are programs of their own."""

    def __init__(self, folder: Path, *, heartbeat_s: float = 5.0, lease_s: float = 300.0) -> None:
        self.folder = folder
        self.settings = Settings(data_folder=folder, heartbeat_s=heartbeat_s, lease_s=lease_s)
        self.authority = Authority(folder / "authority")
        self.agents: list[Program] = []
        self._store = Store(folder / "supervisor.db")
        self._clients: list[AgentClient] = []
        self.port = 0
        """Kept from the first start on."""
        self._web: web.Web | None = None
        self._serving: asyncio.Task[None] | None = None
        self.registry = self._registry()

    def _registry(self) -> Registry:
        return Registry(self.settings, self._store, self.authority, self._connect, EventBus())

    def _connect(self, agent_id: str, name: str, address: str, port: int) -> AgentPort:
        authority = self.authority
        context = tls.client_context(
            authority.certificate_pem, authority.supervisor_certificate, authority.supervisor_key
        )
        return AgentClient(agent_id, name, address, port, context)

    # -- this side -------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen; whoever was heard before has to be heard anew."""
        listener = ports.listen(LOOPBACK, self.port, "agents")
        self.port = listener.getsockname()[1]
        self.registry = self._registry()
        app = create_join_app(
            self.registry,
            self.authority.certificate_pem,
            lambda _: None,
            self.settings.heartbeat_s,
            self.settings.lease_s,
        )
        self._web = web.mutual_tls(
            app,
            certificate=self.authority.supervisor_certificate,
            key=self.authority.supervisor_key,
            authority=self.authority.certificate_path,
            need_client=False,
        )
        self._serving = asyncio.create_task(self._web.serve(sockets=[listener]))

        async def is_up() -> bool:
            return self._web is not None and self._web.started

        await eventually(is_up, within_s=10, what="the join address listens")

    async def stop(self) -> None:
        """No agent is answered any more."""
        if self._web is not None and self._serving is not None:
            self._web.should_exit = True
            await self._serving
            await self.registry.close()
            self._web = self._serving = None

    async def close(self) -> None:
        for agent in self.agents:
            if agent.process.poll() is None:
                agent.process.terminate()
        for agent in self.agents:
            try:
                await asyncio.to_thread(agent.process.wait, 15)
            except subprocess.TimeoutExpired:
                agent.process.kill()
                agent.process.wait()
        await self.stop()
        self._store.close()

    # -- its agents ------------------------------------------------------------------------

    def code(self, port: int) -> JoinCode:
        """A join code that leads to that port."""
        token, _ = self.registry.new_token(hours=1)
        return JoinCode((f"{LOOPBACK}:{port}",), token, self.authority.fingerprint)

    async def agent(self, name: str, *extra: str, enter: Sequence[str] = ()) -> Program:
        """Start an agent and wait until it is heard; ``enter`` is put before its command."""
        log = self.folder / f"{name}.log"
        argv = [sys.executable, "-m", "agents", "join", "-", "--data", str(self.folder / name)]
        argv += ["--name", name, "--threads", "1", "--store-gib", "0", *extra]
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*enter, *argv],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, CODE_VARIABLE: str(self.code(self.port))},
                start_new_session=True,
            )
        program = Program(name, process, self.folder / name, log)
        self.agents.append(program)
        await self.heard(name, within_s=20)
        return program

    def device(self, name: str) -> Device:
        return self.registry.find(name)

    async def heard(self, name: str, *, within_s: float) -> Device:
        """The device, once it was heard."""

        async def is_heard() -> Device | None:
            found = [d for d in self.registry.devices() if d.name == name]
            return found[0] if found and found[0].state != "lost" else None

        device: Device = await eventually(is_heard, within_s=within_s, what=f"{name} is heard")
        return device

    def client(self, name: str) -> AgentPort:
        return self.registry.agent(AgentId(self.device(name).id))

    async def serve(self, name: str, generation: int = 1) -> RpcServerStatus:
        """Have the device start its rpc-server."""
        spec = RpcServerSpec(generation, LOOPBACK, launch=str(generation), main_host="lab")
        status = await self.client(name).start_rpc_server(spec, wait_s=20)
        assert status.state is WorkerState.READY, status.detail
        return status

    async def told(self, name: str, state: WorkerState, *, within_s: float) -> RpcServerStatus:
        """The word of a heartbeat on the rpc-server, once it is that."""

        async def is_told() -> RpcServerStatus | None:
            status = self.device(name).rpc_server
            return status if status is not None and status.state is state else None

        found: RpcServerStatus = await eventually(
            is_told, within_s=within_s, what=f"{name} says that its rpc-server is {state}"
        )
        return found
