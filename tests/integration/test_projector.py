"""A projector on the real engine: found beside its model, planned for, and given an image."""

import base64
import os
import random
import struct
import zlib
from math import prod
from pathlib import Path

from cluster import Cluster
from hub_stand_in import hub_stand_in
from made_gguf import BOOL, FLOAT32, STRING, array, gguf, text, u32
from made_gguf import pair as pair_of

from supervisor.adapters.gguf import read_header

WIDTH, HIDDEN, PATCH, IMAGE = 32, 64, 14, 28
READY_S = 120.0


def write_projector(path: Path, model: Path) -> Path:
    """A CLIP of two layers and the projector of LLaVA behind it, of random numbers."""
    header = read_header(model)
    inner = int(str(header.metadata[f"{header.architecture}.embedding_length"]))
    sizes = {
        "image_size": IMAGE,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": HIDDEN,
        "block_count": 2,
        "projection_dim": inner,
        "attention.head_count": 2,
    }
    grey = struct.pack("<3f", 0.5, 0.5, 0.5)
    pairs = [
        pair_of("general.architecture", STRING, text("clip")),
        pair_of("clip.has_vision_encoder", BOOL, b"\1"),
        pair_of("clip.projector_type", STRING, text("mlp")),
        pair_of("clip.use_gelu", BOOL, b"\1"),
        *(u32(f"clip.vision.{name}", size) for name, size in sizes.items()),
        pair_of("clip.vision.attention.layer_norm_epsilon", FLOAT32, struct.pack("<f", 1e-5)),
        array("clip.vision.image_mean", FLOAT32, 3, grey),
        array("clip.vision.image_std", FLOAT32, 3, grey),
    ]
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (PATCH, PATCH, 3, WIDTH),
        "v.position_embd.weight": (WIDTH, (IMAGE // PATCH) ** 2),
    }
    layers: dict[str, tuple[int, ...]] = {"mm.0": (WIDTH, inner), "mm.2": (inner, inner)}
    for block in ("v.blk.0", "v.blk.1"):
        layers |= {f"{block}.attn_{which}": (WIDTH, WIDTH) for which in ("q", "k", "v", "out")}
        layers |= {f"{block}.ffn_up": (WIDTH, HIDDEN), f"{block}.ffn_down": (HIDDEN, WIDTH)}
        norms = (f"{block}.{norm}.{kind}" for norm in ("ln1", "ln2") for kind in ("weight", "bias"))
        shapes |= dict.fromkeys(norms, (WIDTH,))
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[1:]}
    rng, tensors, data = random.Random(7), [], b""
    for name, shape in shapes.items():
        tensors.append((name, shape, 0, len(data)))
        data += struct.pack(f"<{prod(shape)}f", *(rng.gauss(0, 0.05) for _ in range(prod(shape))))
        data += bytes(-len(data) % 32)
    path.write_bytes(gguf(pairs, tensors, data_bytes=0) + data)
    return path


def picture() -> str:
    """A red square as a data URL."""

    def part(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", IMAGE, IMAGE, 8, 2, 0, 0, 0)
    rows = (b"\0" + b"\xff\0\0" * IMAGE) * IMAGE
    png = b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows))
    return "data:image/png;base64," + base64.b64encode(png + part(b"IEND", b"")).decode()


async def test_a_projector_comes_with_its_model_and_reads_images(
    cluster: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    repo = tmp_path / "hub" / "owner" / "Sees-GGUF"
    repo.mkdir(parents=True)
    model = repo / "Sees-Q8_0.gguf"
    model.write_bytes(demo_model.read_bytes())
    file = write_projector(repo / "mmproj-Sees-F16.gguf", model)
    with hub_stand_in(tmp_path / "hub") as made:
        environment = {
            "HF_ENDPOINT": made.endpoint,
            "HF_HUB_CACHE": str(cluster.folder / "hub"),
            "NO_PROXY": "127.0.0.1",
            "HF_TOKEN": "",
        }
        await cluster.supervisor(environment=environment)
        await cluster.agent("one")
        body = {"model": "owner/Sees-GGUF", "name": "test", "ctx_tokens": 512}
        assert (await cluster.http.post("/api/deployments", json=body)).status_code == 201
        deployment = await cluster.settled(within_s=READY_S)
    assert deployment["state"] == "ready", deployment["reason"]
    flag, path, host = deployment["plan"]["option_words"]
    assert (flag, Path(path).name, host) == ("--mmproj", file.name, "--no-mmproj-offload")
    assert (await cluster.http.get("/props")).json()["modalities"]["vision"]
    seen = {"type": "image_url", "image_url": {"url": picture()}}
    with_picture = await prompt_tokens(cluster, [seen, {"type": "text", "text": "Hi"}])
    assert with_picture - await prompt_tokens(cluster, "Hi") >= (IMAGE // PATCH) ** 2


async def prompt_tokens(cluster: Cluster, content: object) -> int:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
    answer = await cluster.http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["prompt_tokens"])


async def test_a_projector_for_which_there_is_no_memory_is_left_out(
    cluster: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vision"
    folder.mkdir()
    model = folder / "vision.gguf"
    model.write_bytes(demo_model.read_bytes())
    file = write_projector(folder / "mmproj-vision.gguf", model)
    os.truncate(file, 1 << 41)  # sparse
    await cluster.supervisor(model_folders=str(folder))
    await cluster.agent("one")
    plan = (await cluster.http.post("/api/plan", json={"model": str(model)})).json()["plan"]
    assert plan["option_words"] == []
    assert any("Without the projector mmproj-vision.gguf" in said for said in plan["reasons"])
    asked = {"model": str(model), "mmproj": str(file)}
    answer = await cluster.http.post("/api/plan", json=asked)
    assert answer.json()["code"] == "insufficient_memory", "who asks for it gets it or nothing"
