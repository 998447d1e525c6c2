"""The comparison of two talks hides nothing but ids, times and durations."""

import pytest
from lab.transcripts import (
    Transcript,
    by_index,
    differences,
    events_of,
    normalised,
    without_timings,
)

ID, OTHER = "A1" * 16, "b2" * 16
TIMINGS = '"timings":{"cache_n":4,"prompt_ms":1.5,"predicted_n":3,"predicted_per_second":1e3}'


def normal(text: str) -> str:
    return normalised(text.encode()).decode()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f'{{"id":"chatcmpl-{ID}"}}', f'{{"id":"chatcmpl-{OTHER}"}}'),
        (
            f'{{"id":"fc_{ID}","call_id":"call_{ID}"}}',
            f'{{"id":"fc_{OTHER}","call_id":"call_{OTHER}"}}',
        ),
        ('{"created":1795256044,"a":1}', '{"created":1795256045,"a":1}'),
        (f"{{{TIMINGS}}}", f"{{{TIMINGS.replace('1.5', '27')}}}"),
    ],
)
def test_what_differs_each_time_is_equal(one: str, other: str) -> None:
    assert one != other
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f'{{"id":"chatcmpl-{ID}"}}', f'{{"id":"resp_{ID}"}}'),
        (f'{{"id":"{ID}"}}{{"id":"{ID}"}}', f'{{"id":"{ID}"}}{{"id":"{OTHER}"}}'),
        (f'{{"content":"{ID}"}}', f'{{"content":"{OTHER}"}}'),
        ('{"created":1795256044}', '{"created":"1795256044"}'),
        ('{"a":1,"b":2}', '{"b":2,"a":1}'),
        ('{"a":1}', '{"a": 1}'),
        (f"{{{TIMINGS}}}", f"{{{TIMINGS.replace(':3', ':4')}}}"),
        (f"{{{TIMINGS}}}", "{}"),
    ],
)
def test_what_is_different_stays_so(one: str, other: str) -> None:
    assert normal(one) != normal(other)


def test_an_event_has_its_blank_line() -> None:
    body = b"event: a\ndata: 1\n\n: wait\n\ndata: 2\n\ndata: 3"
    assert events_of(body) == (b"event: a\ndata: 1\n\n", b": wait\n\n", b"data: 2\n\n", b"data: 3")


def test_every_difference_is_shown() -> None:
    one = Transcript("POST", "/a", 200, "text/event-stream", ("data: 1\n\n", "data: 2\n\n"))
    other = Transcript("POST", "/a", 200, "text/event-stream", ("data: 1\n\ndata: 2\n\n",))
    assert differences([one], [one]) == []
    assert len(differences([one], [other])) == 4
    assert differences([one], []) != []


def test_timings_can_be_left_out_altogether() -> None:
    timed = Transcript("POST", "/a", 200, "", (f'{{"a":1,{TIMINGS}}}',))
    bare = Transcript("POST", "/a", 200, "", ('{"a":1}',))
    assert without_timings([timed]) == [bare]


def test_answers_that_race_keep_their_own_order() -> None:
    events = [
        f'data: {{"index":{index},"text":"{text}"}}\n\n' for index, text in ("1a", "0b", "1c")
    ]
    racing = Transcript("POST", "/a", 200, "", (*events, "data: [DONE]\n\n"))
    (told,) = by_index([racing])
    assert told.parts == (events[1], events[0], events[2], "data: [DONE]\n\n")
