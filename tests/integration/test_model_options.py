"""Model options and settings of models on the real engine, through supervisor and workers."""

import asyncio
import json
import os
import random
import shlex
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from cluster import Cluster
from made_gguf import STRING, gguf, text
from made_gguf import pair as pair_of

from supervisor.adapters.gguf import read_header

HI = [{"role": "user", "content": "Hi"}]
TEMPLATE = "{% for m in messages %}[{{ m['role'] | upper }}]{{ m['content'] }}{% endfor %}[GO]"
READY_S = 120.0


async def ready(cluster: Cluster, model: Path, **spec: Any) -> dict[str, Any]:
    answer = await cluster.launch(model, **spec)
    assert answer.status_code == 201, answer.text
    deployment = await cluster.settled(within_s=READY_S)
    assert deployment["state"] == "ready", deployment["reason"]
    return deployment


async def refusal(cluster: Cluster, model: Path, **spec: Any) -> tuple[str, str]:
    """Code and sentence of a launch that is refused before anything starts."""
    answer = await cluster.launch(model, **spec)
    assert 400 <= answer.status_code < 500, answer.text
    assert (await cluster.http.get("/api/deployments")).json() == []
    body = answer.json()
    return body["code"], body["detail"]


async def prompt_of(cluster: Cluster) -> str:
    answer = await cluster.http.post("/apply-template", json={"messages": HI})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["prompt"])


async def defaults(cluster: Cluster) -> dict[str, Any]:
    """What llama-server samples with when a request does not say."""
    shown = (await cluster.http.get("/props")).json()["default_generation_settings"]
    return dict(shown.get("params", shown))


async def keep(cluster: Cluster, model: Path, **values: Any) -> httpx.Response:
    params = {"model": str(model)}
    return await cluster.http.put("/api/models/settings", params=params, json=values)


async def stop(cluster: Cluster) -> None:
    assert (await cluster.http.post("/api/deployments/test/stop")).status_code == 200
    assert (await cluster.http.delete("/api/deployments/test")).status_code == 204


def write_adapter(path: Path, model: Path, *, rank: int = 4) -> Path:
    """A LoRA of random numbers for what every layer adds."""
    rng, tensors, data = random.Random(7), [], b""
    header = read_header(model)
    shapes = {t.name: t.shape for t in header.tensors}
    for layer in range(header.block_count):
        name = f"blk.{layer}.ffn_down.weight"
        inputs, outputs = shapes[name]
        for suffix, shape in (("lora_a", (inputs, rank)), ("lora_b", (rank, outputs))):
            tensors.append((f"{name}.{suffix}", shape, 0, len(data)))
            count = shape[0] * shape[1]
            data += struct.pack(f"<{count}f", *(rng.gauss(0, 1) for _ in range(count)))
            data += bytes(-len(data) % 32)
    pairs = [
        pair_of("general.architecture", STRING, text(header.architecture)),
        pair_of("general.type", STRING, text("adapter")),
        pair_of("adapter.type", STRING, text("lora")),
        pair_of("adapter.lora.alpha", 6, struct.pack("<f", 4.0)),
    ]
    file = gguf(pairs, tensors, data_bytes=0)
    path.write_bytes(file + data)
    return path


# -- options ---------------------------------------------------------------------------------------


async def test_a_template_file_and_options_reach_the_engine(
    pair: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own template.jinja"
    file.write_text(TEMPLATE)
    deployment = await ready(
        pair,
        demo_model,
        chat_template_file=str(file),
        sampling={"temperature": 0.25},
        engine_options=["--top-k=7", "no-context-shift"],
    )
    assert await prompt_of(pair) == "[USER]Hi[GO]"
    assert abs((await defaults(pair))["temperature"] - 0.25) < 1e-6
    assert (await defaults(pair))["top_k"] == 7
    reasons = " ".join(deployment["plan"]["reasons"])
    assert "own template.jinja" in reasons
    assert "--top-k" in reasons

    # The record repeats it: the same words, quoted for a shell.
    record = (await pair.http.get(f"/api/launches/{deployment['launch_id']}")).json()
    argv = record["argv"]
    assert argv[argv.index("--chat-template-file") + 1] == str(file)
    path = f"/api/launches/{deployment['launch_id']}/shell"
    own = (await pair.http.get(path)).json()["commands"][-1]["command"]
    words = shlex.split(own)
    assert words[-len(argv) + argv.index("-np") :] == argv[argv.index("-np") :]
    planned = await pair.http.post("/api/plan", json=deployment["spec"] | {"name": None})
    assert planned.status_code == 409 or "--top-k 7" in planned.text


async def test_what_cannot_be_is_refused_before_anything_starts(
    pair: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    code, told = await refusal(pair, demo_model, engine_options=["--port=1"])
    assert (code, "only the gateway" in told) == ("engine_option_refused", True)
    code, told = await refusal(pair, demo_model, engine_options=["--hf-token=hf_secret"])
    assert (code, "secret" in told) == ("engine_option_refused", False)
    code, told = await refusal(pair, demo_model, engine_options=["--cache-resue=256"])
    assert (code, "did you mean --cache-reuse?" in told) == ("engine_option_refused", True)
    code, told = await refusal(pair, demo_model, chat_template="chatmi")
    assert (code, "did you mean chatml?" in told) == ("engine_option_refused", True)

    broken = tmp_path / "broken.jinja"
    broken.write_text("a\n{% for m in messages ")
    code, told = await refusal(pair, demo_model, chat_template_file=str(broken))
    assert code == "option_file_unusable"
    assert f"{{% in line 2 of {broken} is never closed" in told
    for field in ("mmproj", "lora"):
        value = str(demo_model) if field == "mmproj" else [{"path": str(demo_model)}]
        code, told = await refusal(pair, demo_model, **{field: value})
        assert (code, "a GGUF file of" in told) == ("option_file_unusable", True)


async def test_scaled_positions_reach_beyond_the_training(pair: Cluster, demo_model: Path) -> None:
    trained = read_header(demo_model).context_length or 0
    for rope in ({"scale": 2}, {"scaling": "yarn", "scale": 2}, None):
        deployment = await ready(pair, demo_model, ctx_tokens=2 * trained, rope=rope)
        shown = (await pair.http.get("/props")).json()["default_generation_settings"]
        assert shown["n_ctx"] == (2 * trained if rope else trained)
        assert ("newer builds" in " ".join(deployment["plan"]["reasons"])) == (rope is None)
        await stop(pair)


async def test_metadata_and_a_grammar_reach_the_engine(
    pair: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    grammar = tmp_path / "own.gbnf"
    grammar.write_text('root ::= "yes" | "no"')
    ids = []
    for begins in ("true", "false"):
        override = [f"tokenizer.ggml.add_bos_token=bool:{begins}"]
        options = [f"--grammar-file={grammar}"]
        await ready(pair, demo_model, override_kv=override, engine_options=options)
        body = {"content": "Hi", "add_special": True}
        ids.append((await pair.http.post("/tokenize", json=body)).json()["tokens"])
        assert await pair.complete() in ("yes", "no")
        await stop(pair)
    assert ids[0][1:] == ids[1]
    grammar.write_text("root ::= ((")
    answer = await pair.launch(demo_model, engine_options=[f"--grammar-file={grammar}"])
    assert answer.status_code == 201, answer.text
    deployment = await pair.settled(within_s=READY_S)
    assert deployment["error_code"] == "engine_refused_flag", deployment["reason"]
    assert "failed to parse grammar" in deployment["reason"]


async def test_a_template_that_the_engine_refuses_is_named(
    pair: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "strange.jinja"
    file.write_text("{% for m in messages %}{{ m.content }}{% endif %}")
    answer = await pair.launch(demo_model, chat_template_file=str(file))
    assert answer.status_code == 201, answer.text
    deployment = await pair.settled(within_s=READY_S)
    assert deployment["state"] == "failed"
    assert deployment["error_code"] == "chat_template_broken", deployment["reason"]
    assert str(file) in deployment["reason"]
    assert "correct that file" in deployment["cause"]["remedy"]


async def test_an_adapter_changes_the_answer_and_is_counted(
    pair: Cluster, random_model: Path, tmp_path: Path
) -> None:
    """Its tensors go where the layers are: to both workers, through their links."""
    file = write_adapter(tmp_path / "adapter.gguf", random_model)
    before = await ready(pair, random_model)
    plain = await pair.complete(tokens=12)
    await stop(pair)
    after = await ready(pair, random_model, lora=[{"path": str(file), "scale": 2.0}])
    assert await pair.complete(tokens=12) != plain
    pairs = zip(before["plan"]["shards"], after["plan"]["shards"], strict=True)
    grown = [b["weight_bytes"] - a["weight_bytes"] for a, b in pairs]
    assert all(more > 0 for more in grown)
    assert sum(grown) <= file.stat().st_size < sum(grown) + 8192 * len(grown)
    assert "adapter.gguf" in " ".join(after["plan"]["reasons"])
    await stop(pair)
    await ready(pair, random_model, lora=[{"path": str(file), "scale": 0.0}])
    assert await pair.complete(tokens=12) == plain


# -- settings of a model ---------------------------------------------------------------------------


async def test_settings_of_a_model_are_taken_unless_the_caller_says_otherwise(
    pair: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    link = tmp_path / "other name.gguf"
    link.symlink_to(demo_model)
    kept = await keep(pair, link, ctx_tokens=1024, kv_type="q8_0", engine_options=["--top-k=9"])
    assert kept.status_code == 200, kept.text
    assert kept.json()["model"] == str(demo_model.resolve())
    listed = (await pair.http.get("/api/models/settings")).json()
    assert listed == [kept.json()]

    planned = await pair.http.post("/api/plan", json={"model": str(demo_model)})
    plan = planned.json()["plan"]
    assert (plan["ctx_tokens"], plan["kv_type"]) == (1024, "q8_0")
    assert "Context 1,024: your setting for this model." in plan["reasons"]
    assert "--top-k 9" in planned.json()["commands"][-1]["command"]

    # ``launch`` of the tests gives a context, which wins.
    deployment = await ready(pair, demo_model)
    assert deployment["spec"]["ctx_tokens"] == 512
    assert deployment["spec"]["kv_type"] == "q8_0"
    assert (await defaults(pair))["top_k"] == 9
    reasons = " ".join(deployment["plan"]["reasons"])
    assert "KV cache q8_0: your setting" in reasons
    assert "Context" not in reasons.partition("KV cache q8_0: your setting")[0][-60:]

    # What runs keeps what it was launched with.
    params = {"model": str(demo_model)}
    assert (await pair.http.delete("/api/models/settings", params=params)).status_code == 204
    assert (await pair.http.get("/api/models/settings", params=params)).json()[0]["values"] == {}
    assert (await pair.http.post("/api/deployments/test/restart")).status_code == 200
    again = await pair.settled(within_s=READY_S)
    assert again["plan"]["kv_type"] == "q8_0"


async def test_settings_that_cannot_be_are_refused(pair: Cluster, demo_model: Path) -> None:
    for values, code in (
        ({"ctx_tokens": 1}, "bad_request"),
        ({"name": "x"}, "bad_request"),
        ({"engine_options": ["--rpc=h:1"]}, "engine_option_refused"),
        ({"chat_template_file": "/nowhere.jinja"}, "option_file_unusable"),
    ):
        answer = await keep(pair, demo_model, **values)
        assert answer.status_code == 422, answer.text
        assert answer.json()["code"] == code
    answer = await keep(pair, Path("/nowhere/m.gguf"), slots=2)
    assert answer.json()["code"] == "model_missing"
    assert (await pair.http.get("/api/models/settings")).json() == []


async def test_a_launch_on_demand_takes_the_settings(cluster: Cluster, demo_model: Path) -> None:
    await cluster.supervisor(on_demand_models="true", model_folders=str(demo_model.parent))
    await cluster.agent("one")
    await keep(cluster, demo_model, ctx_tokens=768, sampling={"top_k": 3}, ttl_s=1234)
    body = {"model": demo_model.stem, "prompt": "Hello", "max_tokens": 2}
    answer = await cluster.http.post("/v1/completions", json=body, timeout=READY_S)
    assert answer.status_code == 200, answer.text
    (deployment,) = (await cluster.http.get("/api/deployments")).json()
    assert deployment["spec"]["ctx_tokens"] == 768
    assert deployment["spec"]["ttl_s"] == 1234
    assert deployment["plan"]["ctx_tokens"] == 768
    assert (await defaults(cluster))["top_k"] == 3


# -- the command line ------------------------------------------------------------------------------


async def run(cluster: Cluster, *words: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "supervisor", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200", "SUPERVISOR_URL": cluster.url},
        check=False,
    )


async def as_json(cluster: Cluster, *words: str) -> Any:
    done = await run(cluster, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_the_command_line_gives_options_and_keeps_settings(
    pair: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    adapter = write_adapter(tmp_path / "adapter.gguf", demo_model)
    model = str(demo_model)
    given: tuple[str, ...] = (
        "--chat-template-file",
        str(tmp_path / "own.jinja"),
        "--lora",
        f"{adapter}:0.5",
    )
    given += ("--option", "top-k=4", "--option=--no-context-shift", "--mmproj", "")
    planned = await as_json(pair, "plan", model, *given)
    command = planned["commands"][-1]["command"]
    assert f"--jinja --chat-template-file {tmp_path}/own.jinja" in command
    assert f"--lora-scaled {adapter}:0.5" in command
    assert "--top-k 4 --no-context-shift" in command
    assert planned["plan"]["ctx_tokens"] == 4096
    refused = await run(pair, "launch", model, "--option", "port=1")
    assert refused.returncode == 1
    assert "--port cannot be passed to llama-server: only the gateway" in refused.stderr

    kept = ("models", "settings", model)
    shown = await as_json(pair, *kept, "--ctx", "768", "--option", "top-k=6", "--set", "users=2")
    assert shown[0]["values"] == {"ctx_tokens": 768, "engine_options": ["top-k=6"], "users": 2}
    planned = await as_json(pair, "plan", model)
    assert planned["plan"]["ctx_tokens"] == 768
    planned = await as_json(pair, "launch", model, "--dry-run", "--ctx", "1024")
    assert planned["plan"]["ctx_tokens"] == 1024
    assert "--top-k 6" in planned["commands"][-1]["command"]
    shown = await as_json(pair, *kept, "--unset", "ctx", "--unset", "option")
    assert shown[0]["values"] == {"users": 2}
    listed = await run(pair, "models", "settings")
    assert "users" in listed.stdout
    assert (await run(pair, *kept, "--unset", "slots")).returncode == 2
    assert (await as_json(pair, *kept, "--unset", "all"))[0]["values"] == {}
    assert await as_json(pair, "models", "settings") == []


async def test_a_projector_beside_the_model_is_planned_for(
    pair: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    model, beside = tmp_path / "vision.gguf", tmp_path / "mmproj-vision.gguf"
    model.write_bytes(demo_model.read_bytes())
    asked = {"model": str(model), "ctx_tokens": 512}
    plain = (await pair.http.post("/api/plan", json=asked)).json()["plan"]
    beside.write_bytes(gguf([pair_of("general.architecture", STRING, text("clip"))]))
    asked["mmproj"] = str(beside)
    plan = (await pair.http.post("/api/plan", json=asked)).json()["plan"]
    assert plan["option_words"] == ["--mmproj", str(beside), "--no-mmproj-offload"]
    more = plan["host"]["option_bytes"]
    assert more > beside.stat().st_size
    assert plan["host"]["peak_bytes"] - plain["host"]["peak_bytes"] == more
    assert "mmproj-vision.gguf stays on the main host" in " ".join(plan["reasons"])
