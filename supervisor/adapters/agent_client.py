"""HTTP client of one agent, over mutual TLS."""

import json
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from agents import local_network, tls
from agents.contract import (
    DeviceFacts,
    EngineFacts,
    EngineInstall,
    EngineOffer,
    Finding,
    MeasurementProblem,
    MeasurementProgress,
    MeasurementResult,
    MeasurementSpec,
    MeasurementUpdate,
    RpcServerSpec,
    RpcServerStatus,
)
from agents.errors import MeasurementUnsupported, PeerUnsupported
from agents.own_networks import own_addresses
from agents.peer_messages import FetchOrder, FetchStatus, PeerGrant
from supervisor.errors import AgentRefused, AgentUnreachable

T = TypeVar("T")

_FACTS = TypeAdapter(DeviceFacts)
_STATUS = TypeAdapter(RpcServerStatus)
_INSTALL = TypeAdapter(EngineInstall)
_ENGINE = TypeAdapter(EngineFacts)
_FETCH = TypeAdapter(FetchStatus)
_UPDATE: TypeAdapter[MeasurementUpdate] = TypeAdapter(MeasurementUpdate)

_FINDINGS = TypeAdapter(list[Finding])

_CONNECT_S = 3.0
_ANSWER_S = 10.0
_PROOF_S = 90.0
"""A phone starts each of an engine's programs once before it takes it."""
_EXAMINATION_S = 30.0
"""A device has 20 s for its checks."""
_KEEP_ALIVE_S = 60.0
_TRIES = 3


class AgentClient:
    """Calls one agent. Calls are repeated on transport errors, which all but measuring bear."""

    def __init__(
        self, agent_id: str, name: str, address: str, port: int, context: ssl.SSLContext
    ) -> None:
        self.name = name
        self.endpoint = f"{address}:{port}"
        self._sni = {"sni_hostname": tls.agent_name(agent_id)}
        host = f"[{address}]" if ":" in address else address
        self._http = httpx.AsyncClient(
            base_url=f"https://{host}:{port}",
            verify=context,
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            limits=httpx.Limits(keepalive_expiry=_KEEP_ALIVE_S),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def facts(self) -> DeviceFacts:
        return self._read(_FACTS, await self._call("GET", "/facts"))

    async def start_rpc_server(self, spec: RpcServerSpec, *, wait_s: float) -> RpcServerStatus:
        answer = await self._call(
            "PUT",
            "/rpc-server",
            params={"wait_s": wait_s},
            json=asdict(spec),
            timeout=_ANSWER_S + wait_s,
        )
        return self._read(_STATUS, answer)

    async def rpc_server(self, *, wait_s: float = 0.0) -> RpcServerStatus:
        answer = await self._call(
            "GET", "/rpc-server", params={"wait_s": wait_s}, timeout=_ANSWER_S + wait_s
        )
        return self._read(_STATUS, answer)

    async def stop_rpc_server(self, generation: int) -> RpcServerStatus:
        answer = await self._call("DELETE", "/rpc-server", params={"generation": generation})
        return self._read(_STATUS, answer)

    async def log(self, offset: int) -> Mapping[str, object]:
        answer: Mapping[str, object] = await self._call(
            "GET", "/rpc-server/log", params={"offset": offset}
        )
        return answer

    async def examine(self) -> list[Finding]:
        return self._read(_FINDINGS, await self._call("GET", "/doctor", timeout=_EXAMINATION_S))

    async def offer_engine(self, offer: EngineOffer) -> EngineInstall:
        try:
            answer = await self._call("PUT", "/engine", json=asdict(offer))
        except AgentRefused as exc:
            if "HTTP 404" not in str(exc):
                raise
            raise AgentRefused(
                f"the agent of {self.name} is too old to take an engine; update it", exc.code
            ) from exc
        return self._read(_INSTALL, answer)

    async def engine_install(self) -> EngineInstall | None:
        answer = await self._call("GET", "/engine")
        return None if answer is None else self._read(_INSTALL, answer)

    async def use_engine(self, build: str) -> EngineFacts:
        body, timeout_s = {"build": build}, _ANSWER_S + _PROOF_S
        answer = await self._call("POST", "/engine/use", json=body, timeout=timeout_s)
        return self._read(_ENGINE, answer)

    async def grant(self, grant: PeerGrant) -> None:
        await self._call_of_peers("PUT", "/grants", json=asdict(grant))

    async def fetch(self, order: FetchOrder) -> FetchStatus:
        answer = await self._call_of_peers("PUT", "/fetches", json=asdict(order))
        return self._read(_FETCH, answer)

    async def fetch_status(self, fetch_id: str) -> FetchStatus:
        return self._read(_FETCH, await self._call("GET", f"/fetches/{fetch_id}"))

    async def end_fetch(self, fetch_id: str) -> FetchStatus:
        return self._read(_FETCH, await self._call("DELETE", f"/fetches/{fetch_id}"))

    async def _call_of_peers(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            return await self._call(method, path, **arguments)
        except AgentRefused as exc:
            if "HTTP 404" not in str(exc):
                raise
            raise AgentRefused(
                f"the agent of {self.name} is too old to exchange weights with other devices; "
                "update it",
                PeerUnsupported.code,
            ) from exc

    async def measure(
        self, spec: MeasurementSpec
    ) -> AsyncGenerator[MeasurementProgress | MeasurementResult, None]:
        """Progress, then the result; the agent repeats itself, so silence means that it is gone.

        Never repeated: a measurement that is cut off is one that was not made.
        """
        try:
            async with self._http.stream(
                "POST", "/measurement", json=asdict(spec), extensions=self._sni
            ) as response:
                if response.status_code >= 400:
                    await response.aread()
                    raise self._no_measurement(response)
                async for line in response.aiter_lines():
                    update = self._read_update(line)
                    yield update
                    if isinstance(update, MeasurementResult):
                        return
        except httpx.TransportError as exc:
            raise await self._unreachable(exc) from exc
        raise AgentUnreachable(
            f"the agent of {self.name} ended its answer before the measurement was done; "
            "see its log, and measure again"
        )

    def _no_measurement(self, response: httpx.Response) -> AgentRefused:
        if response.status_code == 404:
            return AgentRefused(
                f"the agent of {self.name} is too old to measure; update it",
                MeasurementUnsupported.code,
            )
        return self._refusal(response)

    def _read_update(self, line: str) -> MeasurementProgress | MeasurementResult:
        try:
            parsed = json.loads(line)
        except ValueError:
            parsed = line  # no update either, and told in the same way
        update = self._read(_UPDATE, parsed)
        if isinstance(update, MeasurementProblem):
            raise AgentRefused(f"{self.name}: {update.detail}", update.error_code)
        return update

    async def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type(httpx.TransportError),
                stop=stop_after_attempt(_TRIES),
                wait=wait_random_exponential(0.1, max=1),
                reraise=True,
            ):
                with attempt:
                    response = await self._http.request(
                        method, path, extensions=self._sni, **arguments
                    )
        except httpx.TransportError as exc:
            raise await self._unreachable(exc) from exc
        except RuntimeError as exc:
            if not self._http.is_closed:
                raise
            # While we tried again: the device was removed, or its agent is elsewhere now.
            raise AgentUnreachable(
                f"the agent of {self.name} is no longer at {self.endpoint}; try again"
            ) from exc
        if response.status_code >= 400:
            raise self._refusal(response)
        return response.json()

    async def _unreachable(self, exc: httpx.TransportError) -> AgentUnreachable:
        if denied := await local_network.denial(exc, self.endpoint, own=own_addresses):
            error = AgentUnreachable(f"the agent of {self.name} cannot be asked: {denied}")
            error.code = denied.code
            return error
        return AgentUnreachable(
            f"the agent of {self.name} does not answer at {self.endpoint} "
            f"({str(exc) or type(exc).__name__}); check that it runs and its network"
        )

    def _refusal(self, response: httpx.Response) -> AgentRefused:
        try:
            body = response.json()
            code, detail = str(body["code"]), str(body["detail"])
        except (ValueError, KeyError, TypeError):
            code, detail = "error", f"HTTP {response.status_code}"
        return AgentRefused(f"{self.name}: {detail}", code)

    def _read(self, adapter: TypeAdapter[T], answer: Any) -> T:
        try:
            return adapter.validate_python(answer)
        except ValidationError as exc:
            raise AgentRefused(
                f"the agent of {self.name} sent what we cannot read ({exc.errors()[0]['msg']}); "
                "update it",
                "bad_message",
            ) from exc
