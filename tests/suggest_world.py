"""Repositories with several quantisations of real model shapes, and clusters to run them on."""

import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from agents import engine as engines
from agents.contract import DeviceFacts, EngineFacts, GgmlDevice
from supervisor.adapters.memory_oracle import MemoryOracle
from supervisor.adapters.models import read_any_model, read_model
from supervisor.adapters.sparse_model import PartStart, sparse_model
from supervisor.adapters.store import Store
from supervisor.core.entities import AgentId, Device
from supervisor.core.ggml_types import tensor_bytes
from supervisor.service.planning import Planner
from supervisor.service.tools import MainHost, Tools
from supervisor.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1] / "bench" / "planning"))

import shapes
from header import tokenizer
from shapes import SHAPES, Shape, string, text

__all__ = ["Shape", "tokenizer"]

GIB = 1 << 30
F32, F16, Q8_0, Q6_K = 0, 1, 8, 14
TYPES = {
    "Q2_K": 10,
    "Q3_K_M": 11,
    "Q4_K_M": 12,
    "Q5_K_M": 13,
    "Q6_K": Q6_K,
    "Q8_0": Q8_0,
    "F16": F16,
}
ALIGNMENT = 32

QWEN3_CODER_480B = Shape(
    "MoE 480B-A35B",
    "qwen3moe",
    62,
    6144,
    8192,
    96,
    8,
    128,
    151936,
    experts=160,
    expert_ff=2560,
    keys={"expert_count": 160, "expert_used_count": 8, "expert_feed_forward_length": 2560},
)
"""As published: https://huggingface.co/Qwen/Qwen3-Coder-480B-A35B-Instruct config.json."""


def named(part: str) -> Shape:
    return next(shape for shape in SHAPES if part in shape.name)


def model_files(
    shape: Shape,
    quantisation: str,
    tokenizer: Mapping[str, bytes] | None = None,
    *,
    stem: str = "Model",
    parts: int = 1,
    note: str = "",
) -> list[PartStart]:
    """The files of a model in a quantisation; a split one has its metadata in the first."""
    entries = list(_entries(shape, quantisation))
    metadata = dict(shapes._metadata(shape)) | dict(
        tokenizer or {"tokenizer.ggml.model": text("no_vocab")}
    )
    metadata["general.file_type"] = struct.pack("<II", 4, TYPES[quantisation])
    if note:
        metadata["quantize.imatrix.file"] = text(note)
    size = -(-len(entries) // parts)
    files = []
    for number in range(parts):
        own = entries[number * size : (number + 1) * size]
        keys = dict(metadata) if number == 0 else {}
        if parts > 1:
            keys["split.no"] = struct.pack("<IH", 2, number)
            keys["split.count"] = struct.pack("<IH", 2, parts)
            keys["split.tensors.count"] = struct.pack("<Ii", 5, len(entries))
        suffix = f"-{number + 1:05d}-of-{parts:05d}" if parts > 1 else ""
        files.append(_file(f"{stem}-{quantisation}{suffix}.gguf", keys, own))
    return files


def write_repository(
    folder: Path, shape: Shape, quantisations: Sequence[str], *, split_from_gib: float = 40
) -> None:
    """One folder of a hub: large files are split as real ones are."""
    folder.mkdir(parents=True)
    for quantisation in quantisations:
        whole = model_files(shape, quantisation)
        parts = 3 if sum(part.size_bytes for part in whole) > split_from_gib * GIB else 1
        note = "imatrix.dat" if TYPES[quantisation] >= 10 else ""
        sparse_model(model_files(shape, quantisation, parts=parts, note=note), folder)


def _entries(shape: Shape, quantisation: str) -> Iterator[tuple[str, tuple[int, ...], int]]:
    for name, dimensions, type_id in shapes._tensors(shape):
        if type_id == F32:
            yield name, dimensions, F32
            continue
        wanted = TYPES[quantisation]
        if name == "output.weight" and wanted not in (F16, Q8_0):
            wanted = Q6_K
        yield name, dimensions, Q8_0 if wanted >= 10 and dimensions[0] % 256 else wanted


def _file(
    name: str, metadata: Mapping[str, bytes], entries: Sequence[tuple[str, tuple[int, ...], int]]
) -> PartStart:
    start = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(metadata)))
    for key, value in metadata.items():
        start += string(key) + value
    offset = 0
    for tensor, dimensions, type_id in entries:
        layout = f"<I{len(dimensions)}QIQ"
        start += string(tensor)
        start += struct.pack(layout, len(dimensions), *dimensions, type_id, offset)
        offset += -(-tensor_bytes(type_id, dimensions) // ALIGNMENT) * ALIGNMENT
    start += bytes(-len(start) % ALIGNMENT)
    return PartStart(name, bytes(start), len(start) + offset)


# -- clusters ------------------------------------------------------------------------------------


def device(name: str, gib: float, *cards_gib: float, platform: str = "linux") -> Device:
    """A computer with so much memory to give, and graphics cards with theirs."""
    memory = int(gib * GIB)
    ggml = [GgmlDevice("CPU", total_bytes=memory, free_bytes=memory)]
    for number, card in enumerate(cards_gib):
        size = int(card * GIB)
        ggml.append(GgmlDevice(f"CUDA{number}", total_bytes=size, free_bytes=size))
    facts = DeviceFacts(
        agent_id=f"id-{name}",
        name=name,
        platform=platform,
        boot_id=f"boot-{name}",
        cores=8,
        memory_available_bytes=memory,
        ggml_devices=ggml,
    )
    return Device(
        id=AgentId(f"id-{name}"),
        name=name,
        address="10.0.0.2",
        rest_port=8102,
        state="ready",
        silent_s=0.0,
        facts=facts,
        rpc_server=None,
        round_trip_ms=0.5,
    )


CLUSTERS = {
    "laptop": ((device("laptop", 11),), 6.0),
    "desk": ((device("desktop", 30, 22), device("laptop", 12), device("phone", 6)), 16.0),
    "lab": (tuple(device(f"node-{n}", 120, 78) for n in range(3)), 60.0),
}
"""Devices, and GiB of the main host."""


@dataclass
class Registry:
    """Devices that spoke just now."""

    listed: list[Device] = field(default_factory=list)

    def devices(self) -> list[Device]:
        return list(self.listed)

    def find(self, name: str) -> Device:
        return next(each for each in self.listed if name in (each.name, each.id))


class Cluster:
    """A planner over one of the clusters, with the engine's real word on memory."""

    def __init__(self, name: str, engine: EngineFacts | None, cache: Path) -> None:
        devices, host_gib = CLUSTERS[name]
        cache.mkdir(parents=True, exist_ok=True)
        self.registry = Registry(list(devices))
        self.oracle = MemoryOracle(lambda: engine, engines.inherited())
        tools = SimpleNamespace(
            settings=Settings(data_folder=cache),
            registry=self.registry,
            store=Store(cache / f"{name}.db"),
            read_model=read_model,
            read_any_model=lambda given: read_any_model(given, cache),
            estimate_memory=self.oracle,
            host_available_bytes=lambda: int(host_gib * GIB),
            main_host=MainHost(
                name="host",
                boot_id="boot-host",
                platform="linux",
                cores=8,
                engine=engine,
                known_flags=frozenset(),
                inherited=engines.inherited(),
                folder=cache,
            ),
            read_option_files=None,
            projector_of=None,
            names_of=None,
        )
        self.tools = cast(Tools, tools)
        self.planner = Planner(self.tools)
