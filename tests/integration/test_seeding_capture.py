"""What real rpc-servers receive is what ``core.seeding`` said they would, and in that order."""

import asyncio
import contextlib
import random
import re
import signal
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path

import httpx
import pytest
from cluster import eventually
from lab.capture import CHUNK_BYTES, Recorded, Recorder, child, read, recorder
from made_gguf import BOOL, FLOAT32, INT32, STRING, Tensor, array, gguf, pair, text, u16, u32
from planning_world import device as offer
from planning_world import host as main_host
from planning_world import speed, wired

from agents import ports
from agents.chunks import SMALLEST_TENSOR_BYTES, ChunkName, hash_chunks
from agents.command import rpc_server_argv
from agents.contract import DeviceFacts, EngineFacts, GgmlDevice
from agents.rpc_commands import Limits, TensorData
from agents.rpc_events import End, Piece, Request, RequestBegin
from agents.rpc_protocol import Command, Outcome, probe
from supervisor.adapters.gguf import LocalSource, parse_part, read_header
from supervisor.adapters.models import read_model
from supervisor.core import launch_plan
from supervisor.core.commands import known_flags, llama_server_argv
from supervisor.core.entities import AgentId, DeploymentSpec, Device, Plan
from supervisor.core.memory import GIB
from supervisor.core.offers import Place, places_of
from supervisor.core.planning import HOST, Overrides, Planned, PlanRequest
from supervisor.core.search import plan as search
from supervisor.core.seeding import FileTensor, sending_order, tensors_by_agent
from supervisor.link.model_chunks import ModelChunks

F32 = 0
NAME_AT, NAME_BYTES = 228, 64
"""Of the name in ``struct rpc_tensor``, which ends at a zero."""
LAYERS = 6


# -- models ----------------------------------------------------------------------------------------


def tokenizer() -> list[bytes]:
    """Only bytes, but enough that the embeddings count as large."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, *[6] * 256]
    count = len(tokens)
    return [
        pair("tokenizer.ggml.model", STRING, text("llama")),
        array("tokenizer.ggml.tokens", STRING, count, b"".join(map(text, tokens))),
        array("tokenizer.ggml.scores", FLOAT32, count, bytes(4 * count)),
        array("tokenizer.ggml.token_type", INT32, count, struct.pack(f"<{count}i", *types)),
        u32("tokenizer.ggml.bos_token_id", 1),
        u32("tokenizer.ggml.eos_token_id", 2),
        pair("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
    ]


@dataclass
class Made:
    """A model of random weights, its tensors in no order at all."""

    architecture: str
    shapes: dict[str, tuple[int, ...]]
    numbers: dict[str, int] = field(default_factory=dict)

    def metadata(self) -> list[bytes]:
        numbers = {
            "block_count": LAYERS,
            "context_length": 1024,
            "embedding_length": 256,
            "feed_forward_length": 256,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "rope.dimension_count": 64,
            **self.numbers,
        }
        epsilon = f"{self.architecture}.attention.layer_norm_rms_epsilon"
        return [
            pair("general.architecture", STRING, text(self.architecture)),
            *(u32(f"{self.architecture}.{key}", value) for key, value in numbers.items()),
            pair(epsilon, FLOAT32, struct.pack("<f", 1e-5)),
        ]

    def write(self, folder: Path, parts: int = 1) -> Path:
        """Returns the first part."""
        rng = random.Random(1)
        names = list(self.shapes)
        rng.shuffle(names)
        paths = [folder / f"m-{n + 1:05d}-of-{parts:05d}.gguf" for n in range(parts)]
        for number, path in enumerate(paths):
            split = [u16("split.no", number), u16("split.count", parts)]
            split.append(pair("split.tensors.count", INT32, struct.pack("<i", len(names))))
            metadata = self.metadata() + (tokenizer() if number == 0 else [])
            path.write_bytes(self._file(metadata + split, names[number::parts], rng))
        return paths[0]

    def _file(self, metadata: list[bytes], names: list[str], rng: random.Random) -> bytes:
        tensors: list[Tensor] = []
        data = b""
        for name in names:
            shape = self.shapes[name]
            tensors.append((name, shape, F32, len(data)))
            data += weights(prod(shape), rng) if len(shape) > 1 else struct.pack("<f", 1) * shape[0]
        return gguf(metadata, tensors, data_bytes=0) + data


def weights(count: int, rng: random.Random) -> bytes:
    """Floats between 0.008 and 0.03, of either sign."""
    data = bytearray(rng.randbytes(4 * count))
    data[3::4] = rng.randbytes(count).translate(bytes([0x3C, 0xBC] * 128))
    return bytes(data)


def blocks(**stems: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the attention and of ``stems``, in every block, and of what is around them."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (256, 259),
        "output_norm.weight": (256,),
    }
    common = {
        "attn_norm": (256,),
        "ffn_norm": (256,),
        "attn_q": (256, 256),
        "attn_k": (256, 128),
        "attn_v": (256, 128),
        "attn_output": (256, 256),
    }
    for layer in range(LAYERS):
        found |= {f"blk.{layer}.{stem}.weight": shape for stem, shape in (common | stems).items()}
    return found


DENSE = blocks(ffn_gate=(256, 256), ffn_up=(256, 256), ffn_down=(256, 256))
EXPERTS = blocks(
    ffn_gate_inp=(256, 4),
    ffn_gate_exps=(256, 128, 4),
    ffn_up_exps=(256, 128, 4),
    ffn_down_exps=(128, 256, 4),
)
OUTPUT = {"output.weight": (256, 259)}
UNTIED = Made("llama", DENSE | OUTPUT)
TIED = Made("llama", DENSE)
GEMMA = Made("gemma", DENSE)
MIXTURE = Made(
    "llama",
    EXPERTS | OUTPUT,
    {"expert_count": 4, "expert_used_count": 2, "feed_forward_length": 128},
)


# -- plans -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A model and what the operator wants of its plan."""

    model: Made
    wishes: Mapping[str, object]
    cards: tuple[str, ...] = ("CPU",)
    """The ggml devices of worker a; its rpc-server is given the processor for each."""
    parts: int = 1
    host_gb_per_s: float = 1.0


PAIR = {"order": ("a", "b"), "pin_output": "b"}
ON_HOST = {"order": ("a", "b"), "split": (3, 4), "pin_output": HOST}
CASES = {
    "even": Case(UNTIED, PAIR | {"split": (3, 4)}),
    "uneven": Case(UNTIED, PAIR | {"split": (5, 2)}),
    "in another order": Case(
        UNTIED, {"order": ("b", "a"), "split": (2, 5), "pin_output": "a"}, parts=2
    ),
    "one worker": Case(UNTIED, {"order": ("a",), "pin_output": "a"}),
    "the output alone": Case(
        UNTIED, {"order": ("a", "b", "c"), "split": (2, 4, 1), "pin_output": "c"}
    ),
    "layers on the host": Case(
        TIED, {"devices": (HOST, "a", "b"), "pin_output": "b"}, host_gb_per_s=500
    ),
    "output on the host": Case(UNTIED, ON_HOST),
    "tied": Case(TIED, PAIR | {"split": (2, 5)}),
    "tied, output on the host": Case(TIED, ON_HOST, parts=3),
    "experts": Case(MIXTURE, PAIR | {"split": (4, 3)}),
    "experts, output on the host": Case(MIXTURE, ON_HOST),
    "gemma": Case(GEMMA, PAIR | {"split": (4, 3)}),
    "two devices": Case(
        UNTIED,
        {"order": ("a/CUDA0", "b", "a/CUDA1"), "split": (3, 2, 2), "pin_output": "a/CUDA1"},
        cards=("CUDA0", "CUDA1"),
    ),
}


def places(name: str, cards: tuple[str, ...]) -> list[Place]:
    """Those of a worker."""
    facts = DeviceFacts(
        agent_id=name,
        name=name,
        platform="linux",
        boot_id=name,
        memory_available_bytes=8 * GIB,
        ggml_devices=[GgmlDevice(card, free_bytes=8 * GIB) for card in cards],
    )
    device = Device(
        id=AgentId(name),
        name=name,
        address="127.0.0.1",
        rest_port=1,
        state="ready",
        silent_s=0.0,
        facts=facts,
        rpc_server=None,
    )
    return places_of(device)


def planned(model: Path, case: Case) -> Plan:
    """As the supervisor plans it."""
    spec = DeploymentSpec(model=str(model), ctx_tokens=512)
    found = read_model(spec.model)
    own = [*places("a", case.cards), *places("b", ("CPU",)), *places("c", ("CPU",))]
    request = PlanRequest(
        shape=found.shape,
        devices=tuple(offer(place.name, 8, speed(5, 50), wired()) for place in own),
        host=main_host(8, case.host_gb_per_s),
        wanted=launch_plan.wanted(spec),
        overrides=Overrides.model_validate(case.wishes),
        rules=launch_plan.rules(floor_bytes=0, sampling=False, is_checked=True),
    )
    answer = search(request)
    assert isinstance(answer, Planned), answer
    by_name = {place.name: place for place in own}
    return launch_plan.launch_plan(found.facts, spec, request, answer.best, by_name)


def file_tensors(model: Path) -> list[FileTensor]:
    """Of all parts of a model, in the order of the headers."""
    found = []
    for path in read_header(model).parts:
        with path.open("rb") as file:
            source = LocalSource(str(path), path.stat().st_size, file)
            found += [
                FileTensor(each.name, path, each.offset_bytes, each.size_bytes)
                for each in parse_part(source).tensors
            ]
    return found


# -- what happened ---------------------------------------------------------------------------------


Sent = tuple[str, tuple[ChunkName, ...]]
"""A tensor's name, and the names of its chunks."""


def received(worker: Recorder) -> list[Sent]:
    """Whatever is large enough for chunks, up to the first graph."""
    return [sent for record in worker.connections for sent in before_graphs(record)]


def before_graphs(record: Recorded) -> Iterator[Sent]:
    about: TensorData | None = None
    name, data = "", b""
    for event in read(record, Limits(), CHUNK_BYTES).requests:
        match event:
            case Request(Command.GRAPH_COMPUTE) | RequestBegin(Command.GRAPH_COMPUTE):
                return
            case RequestBegin(Command.SET_TENSOR, _, head, TensorData() as about):
                name = head[NAME_AT : NAME_AT + NAME_BYTES].partition(b"\0")[0].decode()
                data = head
            case Piece(piece):
                data += piece
            case End() if about and about.data_bytes >= SMALLEST_TENSOR_BYTES:
                yield name, tuple(hash_chunks(memoryview(data)[-about.data_bytes :]))


def foretold(plan: Plan, model: Path, cache: Path) -> dict[AgentId, list[Sent]]:
    """The same from the plan and the files."""
    tensors = file_tensors(model)
    chunks = ModelChunks(cache, {tensor.file for tensor in tensors})

    def named(tensor: FileTensor) -> Sent:
        names = [chunks.name_of(place) for place, _ in chunks.chunks_of([tensor])]
        return tensor.name, tuple(name for name in names if name)

    found = tensors_by_agent(plan, tensors)
    return {agent: [named(tensor) for tensor in sent] for agent, sent in found.items()}


def filled_buffers(log: Path) -> list[str]:
    """Endpoints as llama-server lists their buffers, which is the order that it fills them in."""
    return re.findall(r"RPC\d+\[(.*?)\] model buffer size", log.read_text(errors="replace"))


@contextlib.asynccontextmanager
async def worker(engine: EngineFacts, devices: int, log: Path) -> AsyncIterator[Recorder]:
    """An rpc-server that offers the processor several times, behind a relay."""
    reservation = ports.reserve("127.0.0.1")
    port = reservation.port
    argv = rpc_server_argv(engine.rpc_server, "127.0.0.1", port, 1, ["CPU"] * devices)
    with child(argv, log):

        async def is_ready() -> bool:
            return (await probe("127.0.0.1", port, deadline_s=1)).outcome is Outcome.READY

        await eventually(is_ready, within_s=10, what="the rpc-server answers")
        async with recorder(port) as made:
            yield made
    reservation.release()


async def launch(engine: EngineFacts, plan: Plan, endpoints: dict[AgentId, str], log: Path) -> None:
    """Load and answer once, with the command that a launch of the plan runs."""
    reservation = ports.reserve("127.0.0.1")
    argv = llama_server_argv(
        engine.llama_server,
        plan,
        endpoints,
        port=reservation.port,
        known=known_options(engine.llama_server),
        alias="test",
    )
    with child(argv, log) as process:
        url = f"http://127.0.0.1:{reservation.port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:

            async def is_up() -> bool:
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                with contextlib.suppress(httpx.TransportError):
                    return (await http.get("/health")).status_code == 200
                return False

            await eventually(is_up, within_s=60, what=f"llama-server is up ({log})")
            answer = await http.post("/completion", json={"prompt": "so", "n_predict": 2})
            assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 30) == 0, log.read_text()[-2000:]
    reservation.release()


@cache
def known_options(program: str) -> frozenset[str]:
    result = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
    return known_flags(result.stdout)


@pytest.mark.parametrize("name", CASES)
async def test_workers_receive_what_was_foretold(
    engine: EngineFacts, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    model = case.model.write(tmp_path, case.parts)
    plan = planned(model, case)
    assert plan.host.layers == 0 or name == "layers on the host"
    assert plan.host.has_output is name.endswith("output on the host")
    log = tmp_path / "llama-server.log"
    async with contextlib.AsyncExitStack() as stack:
        workers = {
            agent: await stack.enter_async_context(
                worker(
                    engine,
                    sum(shard.agent_id == agent for shard in plan.shards),
                    tmp_path / f"{agent}.log",
                )
            )
            for agent in plan.agent_ids
        }
        endpoints = {agent: f"127.0.0.1:{made.port}" for agent, made in workers.items()}
        await launch(engine, plan, endpoints, log)
    expected = foretold(plan, model, tmp_path / "cache")
    assert {agent: received(made) for agent, made in workers.items()} == expected
    assert all(expected.values())
    assert filled_buffers(log) == [endpoints[agent] for agent in sending_order(plan, endpoints)]
