"""What the invented deployments answer, in the shapes of llama-server's stream."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final

ANSWER: Final = """A **tensor split** says how many layers each device holds. With 48 layers:

| device | layers | memory |
|---|---:|---|
| attic-pc | 27 | 9.5 GiB |
| mac-mini | 21 | 7.7 GiB |
| pixel-8 | 1 | 0.5 GiB |

1. Each token passes the devices *in this order*.
2. Only one activation of 20 KiB crosses each link.

```python
def share(layers: int, parts: list[float]) -> list[int]:
    return [round(layers * part / sum(parts)) for part in parts]  # <b>not bold</b>
```

Text is text: <img src="x" onerror="document.title = 'owned'"> and <script>alert(1)</script>, and
[a link](javascript:alert(1)) as well as [a good one](https://github.com/ggml-org/llama.cpp).

> Use `--tensor-split 27,21,1` to repeat it by hand.
"""
PIECES: Final = tuple(re.findall(r"\s*\S+|\s+$", ANSWER))
_PROMPT_TOKENS: Final = 24
_TOKEN_MS: Final = 149.0
_CREATED: Final = 1_777_887_000


def chunk(model: str, **fields: Any) -> bytes:
    """One event of a stream."""
    body = {
        "choices": [],
        "created": _CREATED,
        "id": "chatcmpl-vq8hN2c0HhX1fWcYyX0mK5nJ2r3b7p6S",
        "model": model,
        "system_fingerprint": "b1-0c1e570",
        "object": "chat.completion.chunk",
        **fields,
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"finish_reason": finish, "index": 0, "delta": delta}]}


def timings(tokens: int) -> dict[str, Any]:
    """As llama-server puts them into its last event."""
    return {
        "cache_n": 0,
        "prompt_n": _PROMPT_TOKENS,
        "prompt_ms": 412.7,
        "prompt_per_token_ms": 17.196,
        "prompt_per_second": 58.15,
        "predicted_n": tokens,
        "predicted_ms": round(tokens * _TOKEN_MS, 3),
        "predicted_per_token_ms": _TOKEN_MS,
        "predicted_per_second": round(1000 / _TOKEN_MS, 2),
    }


def usage(tokens: int) -> dict[str, Any]:
    return {
        "completion_tokens": tokens,
        "prompt_tokens": _PROMPT_TOKENS,
        "total_tokens": tokens + _PROMPT_TOKENS,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def whole(model: str) -> dict[str, Any]:
    """The answer to a request that does not stream."""
    message = {"role": "assistant", "content": ANSWER}
    return {
        "choices": [{"finish_reason": "stop", "index": 0, "message": message}],
        "created": _CREATED,
        "model": model,
        "object": "chat.completion",
        "usage": usage(len(PIECES)),
        "timings": timings(len(PIECES)),
    }


async def stream(model: str, *, with_usage: bool, pace_s: float) -> AsyncIterator[bytes]:
    """The events of one answer, ``pace_s`` seconds apart."""
    yield chunk(model, **choice({"role": "assistant", "content": None}))
    for piece in PIECES:
        await asyncio.sleep(pace_s)
        yield chunk(model, **choice({"content": piece}))
    last = {"timings": timings(len(PIECES))}
    yield chunk(model, **choice({}, "stop"), **({} if with_usage else last))
    if with_usage:
        yield chunk(model, usage=usage(len(PIECES)), **last)
    yield b"data: [DONE]\n\n"
