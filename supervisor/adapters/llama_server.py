"""The llama-server process and its HTTP interface."""

import asyncio
import contextlib
import logging
import re
import secrets
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from agents import privatefile, process
from agents.awake import Awake
from agents.errors import FolderNotWritable
from supervisor.core.entities import LaunchRecord
from supervisor.core.slots import SlotState
from supervisor.errors import EngineNotReady
from supervisor.ports import Answer, Generated, Health

log = logging.getLogger(__name__)

_METRIC = re.compile(r"^llamacpp:(\w+) ([-+.\deE]+)$", re.MULTILINE)

_KEY_END = "-llama"
"""llama-server writes the last four characters of its key into its log; these tell nothing."""


def load_or_make_engine_key(path: Path) -> str:
    """The key that our llama-servers ask for, readable by our user alone.

    It stays the same as long as the file does: one that an earlier run of us started knows it.

    Raises:
        FolderNotWritable: It cannot be stored.
    """
    try:
        if path.exists() and (kept := path.read_text().strip()):
            path.chmod(0o600)
            return kept
        key = f"sk-{secrets.token_urlsafe(32)}{_KEY_END}"
        privatefile.write(path, key)
    except OSError as exc:
        raise FolderNotWritable(f"cannot keep the key in {path}: {exc.strerror}") from exc
    return key


class LlamaServers:
    """Starts llama-server, and finds it again: it goes on serving when we are killed."""

    def __init__(self, ledger_path: Path, boot_id: str) -> None:
        self._ledger = process.ChildLedger(ledger_path, boot_id)
        self._awake: dict[int, Awake] = {}

    async def start(
        self, argv: Sequence[str], environment: Mapping[str, str], log_path: Path
    ) -> process.Child:
        """Start one.

        Raises:
            EngineMissing, EngineUnusable: The program is not there or does not run.
            FolderNotWritable: Its log, or the note of it, cannot be written.
        """
        child = await self._ledger.spawn(
            "llama-server",
            argv,
            log_path=log_path,
            environment=environment,
            parent_death_signal=None,
        )
        try:
            await self._hold_awake(child.pid)
        except asyncio.CancelledError:
            child.signal(signal.SIGKILL)  # nobody would know of it
            raise
        return child

    async def _hold_awake(self, pid: int) -> None:
        """What holds off sleep ends with its llama-server; one that lives on does so itself."""
        self._awake = {each: awake for each, awake in self._awake.items() if awake.is_held}
        awake = self._awake[pid] = Awake()
        await awake.hold(pid)

    def adopt(self, record: LaunchRecord) -> process.Running | None:
        """The process of a launch that an earlier run of us started, if it still runs.

        Its command line is the launch's own: the port in it is nobody else's while it lives.
        """
        return self._ledger.adopt(lambda child: tuple(child.argv) == record.argv)

    def sweep(self, unfinished: Iterable[LaunchRecord]) -> None:
        """End what was left of ``unfinished`` launches, none of which was adopted."""
        for left in self._ledger.sweep():
            log.warning("llama_server.orphan_killed", extra={"pid": left.pid})
        # We may have been killed between its start and the ledger's note of it; the record of the
        # launch is older than both.
        commands = {record.argv for record in unfinished if record.argv}
        for stray in psutil.process_iter(["cmdline"]) if commands else ():
            if tuple(stray.info["cmdline"] or ()) in commands:
                log.warning("llama_server.orphan_killed", extra={"pid": stray.pid})
                with contextlib.suppress(psutil.Error):
                    stray.kill()


class LlamaServerClient:
    """Asks one llama-server. Health never raises; the first completion does."""

    def __init__(self, port: int, key: str = "") -> None:
        """``key``: what it asks for, if it does."""
        self.base_url = f"http://127.0.0.1:{port}"
        # No TLS on loopback; loading all authorities would take 13 ms of every launch.
        self._http = httpx.AsyncClient(
            base_url=self.base_url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
            verify=False,  # noqa: S501
        )

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

    async def refuses_us(self, timeout_s: float) -> bool:
        """Whether it asks for another key than ours; ``/health`` asks for none."""
        try:
            response = await self._http.get("/v1/models", timeout=timeout_s)
        except httpx.TransportError:
            return False
        return response.status_code == httpx.codes.UNAUTHORIZED

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

    async def slots(self, timeout_s: float) -> tuple[SlotState, ...] | None:
        """``GET /slots``; ``None`` if it does not say: 501, 503, or nothing within the time.

        Engines before 2026-08 (PR 27041) do not answer while the devices compute a batch.
        """
        try:
            async with asyncio.timeout(timeout_s):  # httpx bounds each part, not the whole
                response = await self._http.get("/slots", timeout=timeout_s)
        except (httpx.TransportError, TimeoutError):
            return None
        if response.status_code != httpx.codes.OK:
            return None
        try:
            return tuple(_slot(each) for each in response.json())
        except (ValueError, TypeError, LookupError, AttributeError):
            return None


def _slot(shown: Mapping[str, Any]) -> SlotState:
    """Counts only: its ``params`` and, if somebody debugs llama-server, the prompt stay behind.

    ``next_token`` is an object or a list of one, by build; ``n_prompt_tokens`` are those in the
    cache, which grow with the answer, and are missing in older builds.
    """
    following = shown.get("next_token") or {}
    if isinstance(following, list):
        following = following[0]
    reused = int(shown.get("n_prompt_tokens_cache") or 0)
    return SlotState(
        id=int(shown["id"]),
        task=int(shown.get("id_task", -1)),
        is_busy=bool(shown["is_processing"]),
        decoded_tokens=int(following.get("n_decoded") or 0),
        prompt_tokens=max(int(shown.get("n_prompt_tokens") or 0) - reused, 0),
        prompt_done_tokens=int(shown.get("n_prompt_tokens_processed") or 0),
    )
