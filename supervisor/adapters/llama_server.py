"""The llama-server process and its HTTP interface."""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from agents import process
from supervisor.errors import EngineNotReady
from supervisor.ports import Answer, Generated, Health

log = logging.getLogger(__name__)

_METRIC = re.compile(r"^llamacpp:(\w+) ([-+.\deE]+)$", re.MULTILINE)


class LlamaServerStarter:
    """Starts llama-server so that none is left behind.

    On Linux the kernel ends it with us, whatever ends us; elsewhere our next start does.
    """

    def __init__(self, ledger_path: Path) -> None:
        self._ledger = process.ChildLedger(ledger_path)
        for record in self._ledger.sweep():
            log.warning("llama_server.orphan_killed", extra={"pid": record.pid})

    async def start(
        self, argv: Sequence[str], environment: Mapping[str, str], log_path: Path
    ) -> process.Child:
        """Start one.

        Raises:
            EngineMissing, EngineUnusable: The program is not there or does not run.
            FolderNotWritable: Its log, or the note of it, cannot be written.
        """
        return await self._ledger.spawn(
            "llama-server", argv, log_path=log_path, environment=environment
        )


class LlamaServerClient:
    """Asks one llama-server. Health never raises; the first completion does."""

    def __init__(self, port: int) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        # No TLS on loopback; loading all authorities would take 13 ms of every launch.
        self._http = httpx.AsyncClient(base_url=self.base_url, trust_env=False, verify=False)  # noqa: S501

    async def close(self) -> None:
        await self._http.aclose()

    async def health(self, timeout_s: float) -> Health:
        """``GET /health``: 200 is ready, 503 is still loading."""
        try:
            response = await self._http.get("/health", timeout=timeout_s)
        except httpx.TransportError:
            return Health.DOWN
        if response.status_code == httpx.codes.OK:
            return Health.READY
        return Health.LOADING

    async def first_completion(self, timeout_s: float) -> Answer:
        """One token, which proves what ``/health`` cannot: that every worker computes.

        Raises:
            EngineNotReady: No answer in time, an error, or no token.
        """
        request = {"prompt": "Hello", "n_predict": 1, "temperature": 0, "cache_prompt": False}
        started_s = time.monotonic()
        try:
            response = await self._http.post("/completion", json=request, timeout=timeout_s)
            body: Any = response.json()
        except (httpx.TransportError, ValueError) as exc:
            raise EngineNotReady(
                f"the first completion failed after {time.monotonic() - started_s:.1f} s "
                f"({str(exc) or type(exc).__name__}); see the log of llama-server"
            ) from exc
        if response.status_code != httpx.codes.OK:
            text = body.get("error", {}).get("message", "") if isinstance(body, dict) else ""
            raise EngineNotReady(
                f"the first completion got HTTP {response.status_code}: {text}; see the log"
            )
        timings = body.get("timings", {})
        tokens = int(timings.get("predicted_n") or body.get("tokens_predicted") or 0)
        if tokens < 1:
            raise EngineNotReady("the first completion returned no token; see the log")
        return Answer(tokens, timings.get("predicted_per_second"))

    async def generated(self) -> Generated | None:
        """What it has generated so far, from ``/metrics``; ``None`` if it does not say."""
        try:
            response = await self._http.get("/metrics", timeout=2.0)
        except httpx.TransportError:
            return None
        figures = dict(_METRIC.findall(response.text))
        if "tokens_predicted_total" not in figures:
            return None
        speed = float(figures.get("predicted_tokens_seconds", 0))
        return Generated(
            tokens=int(float(figures["tokens_predicted_total"])),
            seconds=float(figures.get("tokens_predicted_seconds_total", 0)),
            tokens_per_second=speed or None,
        )
