"""Whatever our own API is asked, it answers, and as its OpenAPI document says.

schemathesis makes the requests up. What it is not given: the two streams of events that never end,
which are called here with what it would try. What stops and removes things is tried last, since it
finds the names of what there is. It may launch: the models that it thinks of do not exist. It may
measure: it does not think of the device's name.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from cluster import Cluster, Program

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOOKS = Path(__file__).parents[1] / "lab" / "openapi_hooks.py"
EXAMPLES = 25
"""Made up for each operation, beside those that go through all limits of the document."""
RUN_S = 120.0
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
ENDLESS = ("/api/events", "/api/history/stream", "/api/deployments/{name}/logs/stream")
STRANGE = (
    "",
    "-1",
    "0",
    "1",
    "NaN",
    "1e3",
    "9" * 19,
    "9" * 5000,
    "\x00",
    "\xb2",
    "\xff",
    "a" * 9000,
)


@dataclass
class Served:
    """A supervisor with a device and a deployment."""

    cluster: Cluster
    program: Program
    folder: Path
    model: Path

    async def schemathesis(self, *arguments: str) -> None:
        """Let it try the operations that ``arguments`` select; it has to find nothing."""
        document = f"{self.cluster.url}/api/openapi.json"
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "st.toml", "run"]
        command += [document, "--phases", "examples,coverage,fuzzing", "--workers", "2"]
        command += ["--max-examples", str(EXAMPLES), "--generation-deterministic", "--no-color"]
        command += ["--checks", ",".join(CHECKS), "--continue-on-failure", "--warnings", "off"]
        command += ["--request-timeout", "30"]
        ran = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            cwd=self.folder,
            env={**os.environ, "OPENAPI_MODEL": str(self.model), "OPENAPI_DEVICE": "one"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(RUN_S):
                said, _ = await ran.communicate()
        finally:
            if ran.returncode is None:
                ran.kill()
                await ran.wait()
        assert ran.returncode == 0, said.decode(errors="replace")[-6000:]
        print(said.decode(errors="replace")[-800:])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    tmp_path_factory: pytest.TempPathFactory, demo_model: Path
) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("openapi")
    cluster = Cluster(folder)
    settings = [f"hooks = {json.dumps(str(HOOKS))}"]
    settings += _fixed("/api/deployments/{name}/logs", "name", "test")
    settings += _fixed("/api/launches/{launch_id}", "launch_id", 1)
    settings += _fixed("/api/launches/{launch_id}/shell", "launch_id", 1)
    (folder / "st.toml").write_text("\n".join(settings))
    try:
        # A model may look like one of the hub, which nobody shall be asked for; nor for a release.
        nobody = "http://127.0.0.1:9"
        hub = {"HF_ENDPOINT": nobody}
        program = await cluster.supervisor(environment=hub, engine_site=nobody)
        await cluster.agent("one")
        await cluster.launch(demo_model)
        assert (await cluster.settled())["state"] == "ready"
        yield Served(cluster, program, folder, demo_model)
    finally:
        await cluster.close()


def _fixed(path: str, parameter: str, value: object) -> list[str]:
    """That a parameter has one value, of something that exists."""
    parameters = f"parameters = {{ {parameter} = {json.dumps(value)} }}"
    return ["[[operations]]", f"include-path = {json.dumps(path)}", parameters]


async def test_schemathesis_finds_nothing(served: Served) -> None:
    kept = [text for path in ENDLESS for text in ("--exclude-path", path)]
    kept += ["--exclude-path-regex", "/stop$"]
    await served.schemathesis(*kept, "--exclude-method", "DELETE")
    await served.schemathesis("--include-method", "DELETE")
    await served.schemathesis("--include-path-regex", "/stop$")
    said = served.program.said()
    assert "Traceback" not in said, said[-5000:]


async def test_streams_of_events_begin_or_say_why_not(served: Served) -> None:
    parameters = ("after", "limit", "subject", "launch", "unknown")
    asks: list[dict[str, Any]] = [
        {"params": f"{name}={quote(value, encoding='latin-1')}"}
        for name in parameters
        for value in STRANGE
    ]
    asks += [
        {"headers": {"last-event-id": value.encode("latin-1")}}
        for value in STRANGE
        if "\x00" not in value
    ]
    for path in ENDLESS:
        for ask in asks:
            await _begins(served.cluster.http, path, ask)
    assert "Traceback" not in served.program.said()


async def _begins(http: httpx.AsyncClient, path: str, ask: dict[str, Any]) -> None:
    async with http.stream("GET", path, **ask) as answer:
        kind = answer.headers["content-type"].partition(";")[0]
        said = path, str(ask)[:100], answer.status_code, kind
        if answer.status_code == 200:
            assert kind == "text/event-stream", said
            async for line in answer.aiter_lines():
                assert line.startswith(("event: ", "id: ", "retry: ", ":")), said
                break
        else:
            assert 400 <= answer.status_code < 500, said
            assert kind in ("application/problem+json", "text/plain"), said


async def test_the_document_has_every_route_and_its_errors(served: Served) -> None:
    document = (await served.cluster.http.get("/api/openapi.json")).json()
    assert len(document["paths"]) > 20
    for operations in document["paths"].values():
        for operation in operations.values():
            refused = operation["responses"]["4XX"]["content"]
            assert "application/problem+json" in refused
