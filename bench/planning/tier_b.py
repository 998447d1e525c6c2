"""Tier B: predicted memory against the engine's own figures, for 8 shapes of models.

    uv run python bench/planning/tier_b.py
    uv run python bench/planning/tier_b.py --all --json tier_b.json

Every shape by context, ubatch, KV type and 1 to 4 devices; the models are sparse files made from
their headers, the devices stand-ins, so this needs no memory and no network.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from shapes import SHAPES, Shape, header

from agents import engine as engines
from agents.contract import EngineFacts
from agents.rpc_protocol import DeviceMemory
from supervisor.adapters.fit_params import NO_OVERRIDE, EngineOptions, engine_memory
from supervisor.adapters.gguf import read_header
from supervisor.adapters.sparse_model import sparse_model
from supervisor.core.engine_memory import MIB, EngineUse
from supervisor.core.memory import Position, Run, compute_bytes, feed_forward_bytes, kv_bytes
from supervisor.core.model_shape import ModelShape, shape_of
from supervisor.errors import EngineError

CONTEXTS = (4096, 32768)
UBATCHES = (512, 128)
KV_TYPES = ("f16", "q8_0")
DEVICES = (1, 2, 3, 4)
ALLOWED_SHARE, ALLOWED_BYTES = 0.02, 16 * MIB
ROOM = DeviceMemory(1 << 42, 1 << 42)


@dataclass(frozen=True)
class Case:
    """One run of the engine."""

    model: str
    ctx_tokens: int
    ubatch: int
    kv_type: str
    split: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One device of a case, in bytes; the engine's parts are rounded down to a MiB each."""

    case: Case
    device: int
    engine: EngineUse
    predicted: EngineUse

    @property
    def difference_bytes(self) -> int:
        """Without what may be rounding: up to a MiB in each of three parts."""
        low = self.engine.total_bytes - 3 * MIB
        sum_ = total(self.predicted)
        return min(sum_ - low, 0) or max(sum_ - self.engine.total_bytes, 0)

    @property
    def share(self) -> float:
        return self.difference_bytes / self.engine.total_bytes

    @property
    def is_close(self) -> bool:
        return abs(self.share) <= ALLOWED_SHARE or abs(self.difference_bytes) <= ALLOWED_BYTES


def total(use: EngineUse) -> int:
    return use.model_bytes + use.context_bytes + use.compute_bytes


def cases(shape: Shape) -> Iterator[Case]:
    for ctx, ubatch, kv_type, count in product(CONTEXTS, UBATCHES, KV_TYPES, DEVICES):
        base, more = divmod(shape.layers + 1, count)
        split = tuple(base + (index >= count - more) for index in range(count))
        yield Case(shape.name, ctx, ubatch, kv_type, split)


def predicted(shape: ModelShape, case: Case) -> list[EngineUse]:
    """The closed forms of ``supervisor/core/memory.py``, without pipeline copies."""
    run = Run(ctx_tokens=case.ctx_tokens, kv_type=case.kv_type, ubatch=case.ubatch)
    found, first = [], 0
    for index, count in enumerate(case.split):
        is_last = index == len(case.split) - 1
        layers = shape.layers[first : first + count - is_last]
        first += count
        position = Position.OUTPUT if is_last else Position.MIDDLE if index else Position.FIRST
        widest = max((feed_forward_bytes(shape, layer, run) for layer in layers), default=0)
        weights = sum(layer.size_bytes for layer in layers)
        found.append(
            EngineUse(
                f"RPC{index}",
                weights + (shape.output.size_bytes if is_last else 0),
                sum(kv_bytes(layer, run) for layer in layers),
                compute_bytes(shape, run, position, widest),
            )
        )
    return found


async def rows_of(engine: EngineFacts, path: Path, shape: ModelShape, case: Case) -> list[Row]:
    options = EngineOptions(
        case.ctx_tokens,
        sum(case.split),
        case.split,
        ubatch=case.ubatch,
        kv_type_k=case.kv_type,
        kv_type_v=case.kv_type,
        overrides=(NO_OVERRIDE,),
        extra=("-fa", "on"),
    )
    workers = [[ROOM]] * len(case.split)
    said = await engine_memory(engine, path, workers, options, inherited=engines.inherited())
    pairs = zip(said.devices, predicted(shape, case), strict=True)
    return [Row(case, index, *pair) for index, pair in enumerate(pairs)]


async def run() -> list[Row]:
    inherited = engines.inherited()
    engine = await engines.inspect(engines.discover(inherited)[0], inherited)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for made in SHAPES:
            path = sparse_model([header(made)], Path(folder))
            tensors = read_header(path)
            shape = shape_of(
                tensors.metadata,
                [(t.name, t.shape, t.type_id, t.size_bytes) for t in tensors.tensors],
            )
            for case in cases(made):
                try:
                    rows += await rows_of(engine, path, shape, case)
                except EngineError as exc:
                    print(f"{case}: {exc}", file=sys.stderr)
    return rows


def summary(rows: list[Row]) -> str:
    """Per model: how many devices, how many within the limits, and the worst of each part."""
    lines = [
        "| model | devices | within 2 % or 16 MiB | worst | model | context | compute |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row.case.model for row in rows):
        of_model = [row for row in rows if row.case.model == name]
        worst = max(of_model, key=lambda row: abs(row.difference_bytes))
        parts = " | ".join(
            f"{max((part_mib(row, part) for row in of_model), key=abs):+.0f} MiB"
            for part in ("model_bytes", "context_bytes", "compute_bytes")
        )
        lines.append(
            f"| {name} | {len(of_model)} | {sum(row.is_close for row in of_model)} "
            f"| {worst.difference_bytes / MIB:+.0f} MiB ({worst.share:+.1%}) | {parts} |"
        )
    return "\n".join(lines)


def part_mib(row: Row, part: str) -> float:
    """Predicted less engine, beyond what may be rounding."""
    difference: float = (getattr(row.predicted, part) - getattr(row.engine, part)) / MIB
    return min(difference, 0.0) or max(difference - 1, 0.0)


def table(rows: list[Row]) -> str:
    lines = [
        "| model | ctx | ubatch | KV | split | device | engine MiB (model, context, compute) "
        "| closed form | difference |",
        "|---|--:|--:|---|---|--:|---|---|--:|",
    ]
    for row in rows:
        case, said, ours = row.case, row.engine, row.predicted
        lines.append(
            f"| {case.model} | {case.ctx_tokens} | {case.ubatch} | {case.kv_type} "
            f"| {'+'.join(map(str, case.split))} | {row.device} | {in_mib(said)} | {in_mib(ours)} "
            f"| {row.difference_bytes / MIB:+.0f} MiB ({row.share:+.1%}) |"
        )
    return "\n".join(lines)


def in_mib(use: EngineUse) -> str:
    parts = (use.model_bytes, use.context_bytes, use.compute_bytes)
    return " ".join(f"{part / MIB:.0f}" for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="every device of every case")
    parser.add_argument("--json", type=Path, help="write all rows there")
    options = parser.parse_args()
    started_s = time.monotonic()
    rows = asyncio.run(run())
    elapsed_s = time.monotonic() - started_s
    print(table(rows) if options.all else summary(rows))
    runs = len({row.case for row in rows})
    print(
        f"\n{runs} cases, {sum(row.is_close for row in rows)} of {len(rows)} devices within the "
        f"limits, {elapsed_s / max(runs, 1) * 1e3:.0f} ms per case"
    )
    if options.json:
        options.json.write_text(
            json.dumps([{**asdict(r), "difference_bytes": r.difference_bytes} for r in rows])
        )


if __name__ == "__main__":
    main()
