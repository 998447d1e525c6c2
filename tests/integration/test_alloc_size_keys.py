"""Keys of the GET_ALLOC_SIZE questions that real launches ask a real rpc-server."""

import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab.capture import CHUNK_BYTES, Recorded, Recorder, captured, our_flags, read

from agents.contract import EngineFacts
from agents.rpc_commands import Limits
from agents.rpc_events import Request, Response
from agents.rpc_protocol import Command
from supervisor.link.alloc_sizes import AllocSizes, question_key


@dataclass(frozen=True)
class Asked:
    """One question and the rpc-server's answer."""

    body: bytes
    key: bytes
    size_bytes: int


def asked_on(recorded: Recorded) -> list[Asked]:
    reading = read(recorded, Limits(), CHUNK_BYTES)
    bodies = [
        event.body
        for event in reading.requests
        if isinstance(event, Request) and event.command == Command.GET_ALLOC_SIZE
    ]
    answers = [
        event.body
        for event in reading.responses
        if isinstance(event, Response) and event.command == Command.GET_ALLOC_SIZE
    ]
    generation = reading.conversation.requests.generation
    assert generation is not None
    return [
        Asked(body, question_key(body, generation), *struct.unpack("<Q", answer))
        for body, answer in zip(bodies, answers, strict=True)
    ]


def asked(worker: Recorder) -> list[Asked]:
    return [one for recorded in worker.connections for one in asked_on(recorded)]


async def launch(engine: EngineFacts, model: Path, folder: Path, *flags: str) -> list[Asked]:
    folder.mkdir()
    [worker] = await captured(engine, model, folder, workers=1, flags=list(flags))
    return asked(worker)


def learned(path: Path, launches: list[list[Asked]]) -> AllocSizes:
    """What a process knows that starts after these launches."""
    sizes = AllocSizes(path)
    for one in (one for questions in launches for one in questions):
        sizes.learn(one.key, one.size_bytes)
    sizes.close()
    return AllocSizes(path)


@pytest.mark.parametrize("is_ours", [True, False], ids=["our flags", "default flags"])
async def test_a_second_launch_asks_nothing_new(
    engine: EngineFacts, demo_model: Path, tmp_path: Path, is_ours: bool
) -> None:
    flags = our_flags(engine) if is_ours else []
    first = await launch(engine, demo_model, tmp_path / "first", *flags)
    second = await launch(engine, demo_model, tmp_path / "second", *flags)
    assert len(second) == len(first) > 10
    assert not {one.body for one in first} & {one.body for one in second}, "all bytes are new"
    sizes = learned(tmp_path / "sizes", [first])
    assert [sizes.get(one.key) for one in second] == [one.size_bytes for one in second]
    keys = {one.key for one in first}
    print(
        f"{len(first)} questions, {len(keys)} keys, answers {sorted({o.size_bytes for o in first})}"
    )
    sizes.close()


async def test_questions_with_other_answers_have_other_keys(
    engine: EngineFacts, demo_model: Path, tmp_path: Path
) -> None:
    variants = [("-ub", "128"), ("-c", "2048"), ("-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on")]
    ours = our_flags(engine)
    launches = [await launch(engine, demo_model, tmp_path / "plain", *ours)]
    launches += [
        await launch(engine, demo_model, tmp_path / "".join(flags), *ours, *flags)
        for flags in variants
    ]
    answers = defaultdict[bytes, set[int]](set)
    new = []
    for questions in launches:
        new.append(len({one.key for one in questions} - set(answers)))
        for one in questions:
            answers[one.key].add(one.size_bytes)
    assert all(len(sizes) == 1 for sizes in answers.values()), "no key has two answers"
    assert all(new), "each of these launches asks something that the others do not"
    assert len({one.size_bytes for one in launches[1]} - {o.size_bytes for o in launches[0]}) > 0
    print(f"{[len(questions) for questions in launches]} questions, new keys {new}")
