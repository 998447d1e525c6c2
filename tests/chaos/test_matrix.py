"""Every fault: its cause, how soon it is known and served again, and that nothing is left or lost.

    pytest -m chaos

runs all; without ``-m`` only the rows that are most likely in life are.
"""

from pathlib import Path

import pytest

from chaos.forbidden import NotPermitted
from chaos.matrix import ROWS
from chaos.rows import Row
from chaos.world import world

pytestmark = [pytest.mark.chaos, pytest.mark.alone]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=() if row.is_fast else pytest.mark.whole_matrix)
        for row in ROWS
    ],
)
async def test_a_cluster_survives(row: Row, random_model: Path, tmp_path: Path) -> None:
    try:
        async with world(tmp_path, random_model, row.setup) as made:
            outcome = await row.run(made)
    except NotPermitted as exc:
        pytest.skip(f"not permitted here: {exc}")
    print(row.title, outcome)
    assert not row.judge(outcome)
