"""Models where tools keep them, as a user meets them: list, launch by name, refuse, delete."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cluster import Cluster, eventually
from model_places_made import hub_repo, model, ollama_model, put

REPO = "owner/Recite-GGUF"


async def cli(
    cluster: Cluster, *arguments: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a command against the cluster's supervisor, in a wide terminal."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "supervisor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "240", "SUPERVISOR_URL": cluster.url},
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


async def started(cluster: Cluster, demo_model: Path) -> Path:
    """A supervisor in a home with models; returns the home."""
    home = cluster.folder / "home"
    recite = demo_model.read_bytes()
    hub_repo(home / ".cache/huggingface/hub", REPO, {"a" * 40: {"recite-F16.gguf": recite}})
    ollama_model(home / ".ollama" / "models", "recite:tiny", recite + b"\0")
    put(home / "models" / "page.gguf", b"<html>an error</html>")
    put(home / "models" / "newest.gguf", model(architecture="from-the-future-9"))
    names = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "LLAMA_CACHE")
    unset = dict.fromkeys((*names, "OLLAMA_MODELS", "EXO_MODELS_DIR"), "")
    environment = {"HOME": str(home), "HF_HUB_OFFLINE": "1", **unset}
    await cluster.supervisor(environment=environment, on_demand_models="true")
    await cluster.agent("one")
    return home


async def whole(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """All models by name, once every header is read."""

    async def read() -> dict[str, dict[str, Any]] | None:
        found = (await cluster.http.get("/api/models")).json()
        named = {each["name"]: each for each in found}
        return named if found and all(each["is_read"] for each in found) else None

    named: dict[str, dict[str, Any]] = await eventually(read, within_s=60, what="all is read")
    return named


async def test_models_of_other_tools_are_listed_launched_by_name_and_kept_from_harm(
    cluster: Cluster, demo_model: Path
) -> None:
    home = await started(cluster, demo_model)
    found = await whole(cluster)
    assert {name: each["source"] for name, each in found.items()} == {
        "recite-F16": "hub",
        "recite:tiny": "ollama",
        "page": "folder",
        "newest": "folder",
    }
    shown = (await cli(cluster, "models", "--no-fit")).stdout
    for words in (f"{REPO}:F16", "recite:tiny", "broken", "is a web page", "from-the-future-9"):
        assert words in shown

    refused = await cli(cluster, "launch", "newest", status=1)
    assert "which this build of llama.cpp does not know" in refused.stderr.replace("\n", " ")
    refused = await cli(cluster, "launch", "page", status=1)
    assert "is a web page" in refused.stderr.replace("\n", " ")
    near = await cli(cluster, "models", "show", "recite:tin", status=1)
    assert "did you mean recite:tiny" in near.stderr.replace("\n", " ")

    answer = await cluster.http.post(
        "/v1/completions",
        json={"model": "recite:tiny", "prompt": "Hello", "max_tokens": 2},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    (deployment,) = (await cluster.http.get("/api/deployments")).json()
    assert (deployment["id"], deployment["spec"]["aliases"]) == ("recite-tiny", ["recite:tiny"])
    assert "/blobs/sha256-" in deployment["plan"]["model"]["path"]
    where = json.loads((await cli(cluster, "models", "where", "recite:tiny", "--json")).stdout)
    assert where["deployments"] == ["recite-tiny"]
    in_use = await cli(cluster, "models", "rm", "recite:tiny", "--yes", status=1)
    assert "in use by deployment recite-tiny" in in_use.stderr.replace("\n", " ")
    await cli(cluster, "stop", "recite-tiny")
    kept = await cli(cluster, "models", "rm", "recite:tiny", "--yes", status=1)
    assert "'ollama rm recite:tiny'" in kept.stderr.replace("\n", " ")

    verified = await cli(cluster, "models", "verify", "--json", status=1)
    verdicts = {each["name"]: each["verdict"] for each in json.loads(verified.stdout)}
    assert verdicts == {
        "recite-F16": "good",
        "recite:tiny": "good",
        "page": "wrong",
        "newest": "unproven",
    }
    one = await cli(cluster, "models", "verify", "recite:tiny", "--json")
    assert [each["name"] for each in json.loads(one.stdout)] == ["recite:tiny"]
    await cli(cluster, "models", "rm", REPO, "--yes")
    assert not list((home / ".cache" / "huggingface" / "hub").glob("models--*"))
    assert set(await whole(cluster)) == {"recite:tiny", "page", "newest"}
