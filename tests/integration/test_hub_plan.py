"""A model that is not downloaded is planned by its header alone, and by the engine itself."""

import sys
from pathlib import Path

import pytest
from hub_stand_in import hub_stand_in, nobodys_account

from agents import engine as engines
from agents.contract import EngineFacts
from agents.rpc_protocol import DeviceMemory
from supervisor.adapters.fit_params import EngineOptions, engine_memory
from supervisor.adapters.models import read_model, read_remote_model
from supervisor.adapters.sparse_model import sparse_model

sys.path.insert(0, str(Path(__file__).parents[2] / "bench" / "planning"))

from header import tokenizer
from shapes import SHAPES, Shape, header

__all__ = ["nobodys_account"]

ROOM = DeviceMemory(1 << 40, 1 << 40)
DENSE = next(shape for shape in SHAPES if "70B" in shape.name)
EXPERTS = next(shape for shape in SHAPES if "30B-A3B" in shape.name)


@pytest.mark.parametrize("shape", [DENSE, EXPERTS], ids=lambda shape: shape.name)
async def test_the_engine_plans_with_what_was_read_of_the_hub(
    engine: EngineFacts, tmp_path: Path, shape: Shape
) -> None:
    served = tmp_path / "hub" / "owner" / "Model-GGUF"
    served.mkdir(parents=True)
    here = sparse_model([header(shape, tokenizer(shape.vocabulary))], served)
    with hub_stand_in(tmp_path / "hub") as made:
        remote = read_remote_model("owner/Model-GGUF", tmp_path / "kept", made.hub())
    local = read_model(str(here))
    assert remote.shape == local.shape
    middle = (shape.layers + 1) // 2
    options = EngineOptions(8192, shape.layers + 1, (middle, shape.layers + 1 - middle))
    workers = [[ROOM], [ROOM]]
    inherited = engines.inherited()
    found = await engine_memory(engine, remote.file, workers, options, inherited=inherited)
    assert found == await engine_memory(engine, local.file, workers, options, inherited=inherited)
    assert sum(device.model_bytes for device in found.devices) > 0.75 * here.stat().st_size
    assert made.stored_bytes <= 12 << 20
