"""One request on its way through one engine after another, until it is answered."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from supervisor.core.answer_numbers import AnswerNumbers
from supervisor.core.api_errors import error_body, error_event
from supervisor.core.calls import Call, with_members
from supervisor.core.continuing.events import EventSplitter
from supervisor.core.continuing.transcript import (
    Continue,
    Hopeless,
    Outcome,
    Restart,
    Transcript,
    asked_upstream,
    transcript_of,
)
from supervisor.core.folding.fold import Fold, can_fold, fold_of, stream_members
from supervisor.core.gateway_routes import Work
from supervisor.core.request_record import RequestRecord
from supervisor.errors import AnswerLost, EngineUnreachable
from supervisor.ports import EngineCut, EnginePassage, UpstreamAnswer
from supervisor.service.lanes import Seat
from supervisor.service.outlet import EVENTS, Outlet

log = logging.getLogger(__name__)

_LOSSES: Final = 4
"""Engines that may end with the same request, and without a token of it, one after the other. The
request is then the probable reason, and the next engine is spared."""

_WHOLE_BYTES: Final = 256 * 1024
"""Answers up to this size are sent when they are complete, so that a loss can be made good."""

_JSON: Final = ("content-type", "application/json; charset=utf-8")

_COUNT_S: Final = 30.0


class _CannotFold(Exception):
    """The stream does not tell what the whole answer would; the engine has to be asked for that."""


class Exchange:
    """A request, what was said of its answer so far, and its numbers."""

    def __init__(self, call: Call, engines: EnginePassage, outlet: Outlet) -> None:
        self.call = call
        self._engines = engines
        self._outlet = outlet
        self._body = call.body
        self._transcript: Transcript | None = None
        self._fold: Fold | None = None
        if call.route.work is Work.GENERATES and call.parsed is not None:
            self._ask_for_events(call, call.parsed)
        self._numbers = AnswerNumbers()
        self._seat: Seat | None = None
        self._at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._came_at_s = time.monotonic()
        self._first_token_s: float | None = None
        self._last_token_s = 0.0
        self._retries = 0
        self._resumed = 0
        self._losses = 0
        self._fruitless = 0
        """Losses since the last token."""
        self._tokens_at_loss = 0
        self.queue_s = 0.0
        self.deployment = ""
        """That it waits for, or is answered by."""

    def _ask_for_events(self, call: Call, parsed: Mapping[str, Any]) -> None:
        """Also for a client that wants a whole answer: so it can be continued, and ended.

        llama-server notices the leave of a client that streams at the next token, and that of
        another one not while others are answered.
        """
        api, path = call.route.api, call.route.path
        members: Mapping[str, Any] = {}
        if not call.is_stream:
            if not can_fold(api, path, parsed):
                return
            self._fold = fold_of(api, path, parsed)
            members = stream_members(api)
        wanted = {**parsed, **members}
        self._transcript = transcript_of(api, path, wanted)
        asked = asked_upstream(api, wanted)
        more = {key: value for key, value in asked.items() if key not in wanted}
        self._body = with_members(call.body, {**members, **more})

    async def through(self, seat: Seat) -> None:
        """Have it answered by the engine of a seat.

        Raises:
            EngineCut: The engine ended, or is not there; see :meth:`lost`.
            AnswerLost: What was sent cannot be continued.
        """
        self._seat = seat
        if self._losses:
            await self._prepare_again(seat)
        try:
            await self._ask(seat)
        except _CannotFold:
            self._transcript, self._fold, self._body = None, None, self.call.body
            await self._ask(seat)

    async def _ask(self, seat: Seat) -> None:
        method, headers = self.call.route.method, {"content-type": self.call.content_type}
        opened = self._engines.opened(seat.port, method, self.call.target, headers, self._body)
        async with opened as answer:
            if self._transcript is not None and _is_events(answer):
                await self._stream(self._transcript, answer)
            elif self._outlet.has_begun:
                self._end_with_error(await _whole(answer.chunks))
            else:
                await self._pass_on(answer)

    async def _stream(self, transcript: Transcript, answer: UpstreamAnswer) -> None:
        splitter, outlet, fold = EventSplitter(), self._outlet, self._fold
        if fold is None and not outlet.has_begun:
            outlet.begin(answer.status, answer.headers)
        async for chunk in answer.chunks:
            for event in splitter.feed(chunk):
                sent = transcript.take(event)
                if fold is None:
                    outlet.put(sent)
                elif not _took(fold, sent):
                    raise _CannotFold
            if transcript.has_begun:
                self._last_token_s = time.monotonic()
                if self._first_token_s is None:
                    self._first_token_s = self._last_token_s
            if outlet.is_full:
                await outlet.room()
        if not transcript.is_complete:
            raise EngineCut("its answer ended early")
        if fold is None:
            outlet.put(splitter.rest)
            return
        try:
            status, body = fold.answer()
        except ValueError as exc:
            raise _CannotFold from exc
        outlet.begin(status, [_JSON, ("content-length", str(len(body)))])
        outlet.put(body)

    async def _pass_on(self, answer: UpstreamAnswer) -> None:
        """An answer that is no stream of events. A small one goes as a whole, or not at all."""
        outlet, first = self._outlet, bytearray()
        async for chunk in answer.chunks:
            if outlet.has_begun:
                outlet.put(chunk)
                await outlet.room()
                continue
            first += chunk
            if len(first) > _WHOLE_BYTES:
                outlet.begin(answer.status, answer.headers)
                outlet.put(bytes(first))
        if not outlet.has_begun:
            outlet.begin(answer.status, answer.headers)
            outlet.put(bytes(first))
            self._numbers = AnswerNumbers.of(bytes(first))

    def _end_with_error(self, body: bytes) -> None:
        """The engine refuses what its client was told already would be answered by events."""
        api = self.call.route.api
        try:
            told: Any = json.loads(body)
        except ValueError:
            told = None
        if not isinstance(told, Mapping):
            told = error_body(api, 502, EngineUnreachable.code, "llama-server gave no answer")
        self._outlet.put(error_event(api, told))

    # -- after a loss ------------------------------------------------------------------------

    def lost(self, reason: str) -> None:
        """The engine of the last seat ended.

        Raises:
            AnswerLost: What was sent cannot be continued.
            EngineUnreachable: This request probably ended the engine.
        """
        assert self._seat is not None
        tokens = (self._transcript.numbers.generated_tokens or 0) if self._transcript else 0
        self._losses += 1
        self._fruitless = self._fruitless + 1 if tokens == self._tokens_at_loss else 1
        self._tokens_at_loss = tokens
        extra = {"deployment": self._seat.deployment, "reason": reason, "tokens": tokens}
        log.warning("request.engine_lost", extra=extra)
        if self._outlet.has_begun and not self._outlet.is_events:
            raise AnswerLost("llama-server ended in the middle of this answer; send it again")
        self._check_hope()
        if self._fruitless >= _LOSSES:
            raise EngineUnreachable(
                f"llama-server of {self._seat.deployment} ended {self._fruitless} times with this "
                "request and without a token of it; see 'supervisor status' for the cause"
            )

    def _check_hope(self) -> None:
        if self._transcript is None:
            return
        following = self._transcript.cut()
        if isinstance(following, Hopeless) and self._fold is not None:
            assert self.call.parsed is not None
            self._ask_for_events(self.call, self.call.parsed)  # nothing was sent: begin anew
        else:
            _raise_if_hopeless(following)

    async def _prepare_again(self, seat: Seat) -> None:
        """Ask for the rest of an answer, or for all of it if nothing can be seen of it yet."""
        transcript = self._transcript
        if transcript is None:
            self._retries += 1
            return
        text = transcript.uncounted_text
        counted = await self._count(seat, text) if text else None
        following = _raise_if_hopeless(transcript.cut(counted))
        if isinstance(following, Continue):
            self._resumed += 1
        else:
            self._retries += 1
        self._body = json.dumps(following.body).encode()

    async def _count(self, seat: Seat, text: str) -> int | None:
        """Tokens of a text, as the engine sees it."""
        body = json.dumps({"content": text, "add_special": False}).encode()
        headers = {"content-type": "application/json"}
        try:
            async with asyncio.timeout(_COUNT_S):
                opened = self._engines.opened(seat.port, "POST", "/tokenize", headers, body)
                async with opened as answer:
                    return len(json.loads(await _whole(answer.chunks))["tokens"])
        except (ValueError, LookupError, TypeError, TimeoutError):
            return None

    # -- numbers -----------------------------------------------------------------------------

    def record(self, status: int, code: str) -> RequestRecord:
        """What is kept of it."""
        told = self._transcript.numbers if self._transcript else self._numbers
        first_s = self._first_token_s
        waited_s = None if first_s is None else round(first_s - self._came_at_s, 4)
        return RequestRecord(
            at=self._at,
            deployment=self.deployment,
            launch_id=self._seat.launch_id if self._seat else None,
            path=self.call.route.path,
            caller=self.call.caller.name,
            is_stream=self.call.is_stream,
            status=status,
            code=code,
            queue_s=round(self.queue_s, 4),
            # Of a whole answer the client sees no first token, though it was asked for as a stream.
            first_token_s=waited_s if self.call.is_stream else None,
            total_s=round(time.monotonic() - self._came_at_s, 4),
            prompt_tokens=told.prompt_tokens,
            cached_tokens=told.cached_tokens,
            generated_tokens=told.generated_tokens,
            tokens_per_s=_rate(told.generated_tokens, first_s, self._last_token_s),
            retries=self._retries,
            resumed=self._resumed,
        )


def _raise_if_hopeless(following: Outcome) -> Continue | Restart:
    if isinstance(following, Hopeless):
        raise AnswerLost(
            "llama-server ended in the middle of this answer, which cannot be continued: "
            f"{following.reason}; send the request again"
        )
    return following


def _rate(tokens: int | None, first_s: float | None, last_s: float) -> float | None:
    if tokens is None or tokens < 2 or first_s is None or last_s <= first_s:
        return None
    return round((tokens - 1) / (last_s - first_s), 2)


def _took(fold: Fold, sent: bytes) -> bool:
    """Put events into a whole answer; whether it is still what the engine itself would say."""
    try:
        for event in EventSplitter().feed(sent):
            fold.take(event)
    except ValueError:
        return False
    return fold.is_exact


def _is_events(answer: UpstreamAnswer) -> bool:
    content_type = dict(answer.headers).get("content-type", "")
    return answer.status == 200 and content_type.startswith(EVENTS)


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])
