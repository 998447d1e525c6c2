"""What of a request is looked into: its patience, and addresses that the engine would fetch."""

from typing import Any

import pytest

from supervisor.core.calls import remote_media, wait_s


@pytest.mark.parametrize(
    ("prefer", "limit_s", "expected_s"),
    [
        ("", None, 300),
        ("wait=30", None, 30),
        ("respond-async, wait = 2.5", None, 2.5),
        ("wait=0", None, 0),
        ("wait=900", 60, 60),
        ("", 60, 60),
        ("wait=10", 60, 10),
        ("wait=soon", None, 300),
    ],
)
def test_header_key_and_setting_say_how_long_a_request_waits(
    prefer: str, limit_s: float | None, expected_s: float
) -> None:
    assert wait_s(prefer, limit_s, 300) == expected_s


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


ADDRESS = "http://10.0.0.1/secret"

REMOTE = [
    user({"type": "image_url", "image_url": {"url": ADDRESS}}),
    user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
    user({"type": "input_audio", "input_audio": {"data": ADDRESS}}),
    user({"type": "video_url", "video_url": {"url": ADDRESS}}),
    user({"type": "image", "source": {"type": "url", "url": ADDRESS}}),
    user({"type": "tool_result", "content": [{"type": "image", "source": {"url": ADDRESS}}]}),
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": ADDRESS}]}]},
    # Whatever begins with "http" is an address for llama-server.
    user({"type": "image_url", "image_url": {"url": "httpx"}}),
]

HARMLESS = [
    user({"type": "text", "text": ADDRESS}),
    user({"type": "image_url", "image_url": {"url": "data:image/png;base64,aHR0cA=="}}),
    user({"type": "tool_use", "input": {"source": ADDRESS, "image_url": ADDRESS}}),
    {"messages": [{"role": "user", "content": ADDRESS}], "tools": [{"url": ADDRESS}]},
    {"prompt": ADDRESS},
    {"messages": 5, "input": None},
]


@pytest.mark.parametrize("body", REMOTE, ids=str)
def test_media_at_an_address_is_found(body: dict[str, Any]) -> None:
    assert remote_media(body)


@pytest.mark.parametrize("body", HARMLESS, ids=str)
def test_what_the_engine_does_not_fetch_is_let_through(body: dict[str, Any]) -> None:
    assert remote_media(body) is None
