"""Events cut out of what an engine sends, and what is in them."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.continuing import events
from supervisor.core.continuing.events import (
    EventSplitter,
    data_start,
    made_event,
    split_timings,
    tokens_in,
)

STREAMS = st.lists(st.sampled_from([b"data: {}", b"\n", b"\n\n", b": ping", b"\xf0\x9f", b"a"]))


@given(stream=STREAMS.map(b"".join), cuts=st.lists(st.integers(0, 60)))
def test_events_do_not_depend_on_how_the_bytes_come(stream: bytes, cuts: list[int]) -> None:
    whole, pieces = EventSplitter(), EventSplitter()
    expected = whole.feed(stream)
    places = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    found = [event for start, end in pairwise(places) for event in pieces.feed(stream[start:end])]
    assert found == expected
    assert pieces.rest == whole.rest
    assert b"".join(found) + pieces.rest == stream
    assert all(event.endswith(b"\n\n") and b"\n\n" not in event[:-2] for event in found)


def test_comments_are_events_and_a_partial_event_is_kept() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b":\n\ndata: 1\n\nda") == [b":\n\n", b"data: 1\n\n"]
    assert splitter.rest == b"da"
    assert splitter.feed(b"ta: 2\n") == []
    assert splitter.feed(b"\n") == [b"data: 2\n\n"]
    assert splitter.rest == b""


def test_an_event_without_an_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_PARTIAL_BYTES", 10)
    splitter = EventSplitter()
    assert splitter.feed(b"x" * 10) == []
    assert splitter.feed(b"\n\n" + b"y" * 5) == [b"x" * 10 + b"\n\n"]
    with pytest.raises(ValueError, match="no end after 11 bytes"):
        splitter.feed(b"y" * 6)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b'data: {"a":1}\n\n', b'{"a":1}\n\n'),
        (b'event: x\ndata: {"a":1}\n\n', b'{"a":1}\n\n'),
        (b"data: [DONE]\n\n", None),
        (b": abc{}\n\n", None),
        (b":\n\n", None),
        (b"event: x\n\n", None),
    ],
)
def test_where_the_data_begins(event: bytes, data: bytes | None) -> None:
    start = data_start(event)
    assert (event[start:] if start >= 0 else None) == data


TIMINGS = '"timings":{"cache_n":3,"prompt_n":4,"predicted_n":17,"predicted_ms":1.5}'


@pytest.mark.parametrize("more", ["", ',"prompt_progress":{"total":9}'])
@given(text=st.text())
def test_timings_are_found_whatever_the_text_is(text: str, more: str) -> None:
    texts = [text, f"{text},{TIMINGS}", "}}\n\n,"]
    head = json.dumps({"choices": [{"text": part} for part in texts]}, ensure_ascii=False)[:-1]
    event = f"data: {head},{TIMINGS}{more}}}\n\n".encode(errors="replace")
    without, timings = split_timings(event)
    assert without == f"data: {head}{more}}}\n\n".encode(errors="replace")
    assert json.loads(timings)["predicted_n"] == tokens_in(timings) == 17
    assert split_timings(without) == (without, b"")


def test_timings_without_a_count() -> None:
    assert tokens_in(b'{"prompt_n":4}') is None


def test_an_event_of_our_own() -> None:
    assert made_event({"a": "é"}) == b'data: {"a":"\\u00e9"}\n\n'
    assert made_event({"a": 1}, "ping") == b'event: ping\ndata: {"a":1}\n\n'
