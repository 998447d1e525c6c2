"""A repository with more models than can be shown: the best is found all the same."""

import re
from collections.abc import Awaitable, Callable, Hashable
from pathlib import Path
from typing import cast

import pytest

from supervisor.core.model_reference import OfferedModel
from supervisor.core.suggesting import ModelFit
from supervisor.ports import Model
from supervisor.service.fitting import Fitter
from supervisor.service.suggesting import MOST_OF_REPO, Suggester, SuggestWish

GIB = 1 << 30


class Planned:
    """Says of each model what its size means for a cluster of some GiB; nothing is read."""

    has_engine = True

    def __init__(self, room_gib: int, fast_gib: int) -> None:
        self.room_gib, self.fast_gib = room_gib, fast_gib
        self.asked: list[str] = []

    async def of(
        self,
        version: Hashable,
        name: str,
        ctx_tokens: int | None,
        ctx_train_tokens: int | None,
        read: Callable[[], Awaitable[Model]],
    ) -> ModelFit:
        self.asked.append(name)
        found = re.search(r"model-(\d+)", name)
        assert found is not None
        gib = int(found[1])
        speed = 6.0 if gib <= self.fast_gib else 1.0
        return ModelFit(ctx_tokens=8192, fits=gib <= self.room_gib, tokens_per_s=speed)


class Many:
    """The repository, and the hub that has it."""

    repo = "owner/Many-GGUF"
    ctx_train_tokens = None

    def __init__(self, count: int) -> None:
        self.models = tuple(
            OfferedModel(
                reference=f"{self.repo}/model-{gib}.gguf",
                label=f"model-{gib}",
                size_bytes=gib * GIB,
                parts=1,
            )
            for gib in range(1, count + 1)
        )

    async def open(self, repo: str) -> "Many":
        return self

    def version(self, reference: str) -> str:
        return reference

    async def begin(self) -> None:
        """Nothing has to be read."""

    async def read(self, reference: str, folder: Path) -> Model:
        raise AssertionError("nobody asks for a header")


@pytest.mark.parametrize(
    ("count", "room", "fast", "best"),
    [
        (200, 150, 90, 90),
        (200, 150, 170, 150),
        (200, 300, 300, 200),
        (200, 3, 2, 2),
        (40, 30, 9, 9),
    ],
)
async def test_of_many_models_the_largest_good_one_is_found(
    tmp_path: Path, count: int, room: int, fast: int, best: int
) -> None:
    planned, many = Planned(room, fast), Many(count)
    of = Suggester(cast(Fitter, planned), many, tuple, tmp_path / "kept")
    found = await of.suggest(SuggestWish(many.repo), lambda _: None)
    assert [row.label for row in found.suggestions if row.is_recommended] == [f"model-{best}"]
    assert len(found.suggestions) == min(count, MOST_OF_REPO)
    assert len(set(planned.asked)) <= MOST_OF_REPO + 10
    left_out = count - MOST_OF_REPO
    assert found.notes == (
        (f"{left_out} more models of {many.repo} are larger or smaller by far.",)
        if left_out > 0
        else ()
    )


async def test_nothing_of_many_fits(tmp_path: Path) -> None:
    planned, many = Planned(0, 0), Many(200)
    of = Suggester(cast(Fitter, planned), many, tuple, tmp_path / "kept")
    found = await of.suggest(SuggestWish(many.repo), lambda _: None)
    assert not any(row.is_recommended for row in found.suggestions)
    assert found.suggestions[-1].label == "model-1", "the smallest is the one to speak of"
