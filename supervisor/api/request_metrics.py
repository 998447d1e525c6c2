"""Requests as Prometheus counts them."""

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from supervisor.core.gateway_routes import HEALTH_PATHS, MODELS_PATHS, ROUTES
from supervisor.core.request_record import RequestRecord

_OTHER: Final = "other"
_PATHS: Final = frozenset({path for _, path in ROUTES} | {*MODELS_PATHS, *HEALTH_PATHS})
"""The only values of the label ``path``, besides "other": anybody can make up a path."""

_SHORT_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LONG_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_TOKENS_PER_S: Final = (0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 200)


class RequestMetrics:
    """Counts requests as they end. Who asked is no label: there may be any number of keys."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *more: str) -> Counter:
            return Counter(f"supervisor_{name}", text, ("deployment", *more), registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            labels = ("deployment",)
            return Histogram(f"supervisor_{name}", text, labels, registry=registry, buckets=buckets)

        self._all = counter("requests_total", "Requests that ended.", "path", "status")
        self._retries = counter(
            "request_retries_total", "Times that a request was begun again, unseen by its client."
        )
        self._resumed = counter(
            "request_resumed_total", "Times that an answer was continued after a loss."
        )
        self._prompt = counter(
            "request_prompt_tokens_total", "Tokens of prompts, cached ones among them."
        )
        self._cached = counter(
            "request_cached_tokens_total", "Tokens of prompts that were in the cache."
        )
        self._generated = counter("request_generated_tokens_total", "Tokens of answers.")
        self._duration = histogram(
            "request_duration_seconds", "From the arrival of a request to its end.", _LONG_S
        )
        self._queue = histogram("request_queue_seconds", "Wait for a slot.", _SHORT_S)
        self._first_token = histogram(
            "time_to_first_token_seconds",
            "From the arrival of a streaming request to its first token.",
            _SHORT_S,
        )
        self._speed = histogram(
            "request_tokens_per_second",
            "Speed of an answer from its first token to its last.",
            _TOKENS_PER_S,
        )

    def note(self, record: RequestRecord) -> None:
        name = record.deployment
        path = record.path if record.path in _PATHS else _OTHER
        self._all.labels(name, path, str(record.status)).inc()
        self._retries.labels(name).inc(record.retries)
        self._resumed.labels(name).inc(record.resumed)
        self._prompt.labels(name).inc(record.prompt_tokens or 0)
        self._cached.labels(name).inc(record.cached_tokens or 0)
        self._generated.labels(name).inc(record.generated_tokens or 0)
        self._duration.labels(name).observe(record.total_s)
        self._queue.labels(name).observe(record.queue_s)
        if record.first_token_s is not None:
            self._first_token.labels(name).observe(record.first_token_s)
        if record.tokens_per_s is not None:
            self._speed.labels(name).observe(record.tokens_per_s)
