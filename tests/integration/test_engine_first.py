"""A main host that begins without any engine, and installs one."""

from pathlib import Path

from cluster import Cluster, eventually
from release_site import OWN_VARIANT, ReleaseSiteStandIn
from shelf_host import BUILD, own_archive, site, told_json

from supervisor.demo_model import SENTENCE

__all__ = ["own_archive", "site"]

WITHOUT_ENGINE = """\
import sysconfig
found = sysconfig.get_path
sysconfig.get_path = lambda name, *rest: found(name, *rest) + ("-none" if name == "purelib" else "")
"""
"""So that the interpreter of the tests, which has an engine beside its packages, has none."""


async def test_what_is_installed_first_is_taken_into_use(
    cluster: Cluster, site: ReleaseSiteStandIn, demo_model: Path, tmp_path: Path
) -> None:
    hidden = tmp_path / "without-engine"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(WITHOUT_ENGINE)
    environment = {"PYTHONPATH": str(hidden), "SUPERVISOR_ENGINE_SITE": site.url}
    await cluster.supervisor(environment=environment, host_layers="true")
    assert (await cluster.http.get("/api/status")).json()["engine"] is None
    body = {"model": str(demo_model), "name": "test", "ctx_tokens": 512}
    assert (await cluster.http.post("/api/deployments", json=body)).status_code == 201
    failed = await cluster.settled()
    assert (failed["state"], failed["error_code"]) == ("failed", "engine_missing"), failed["reason"]

    told = await told_json(
        cluster.folder / "supervisor", site, "install", BUILD, "--variant", OWN_VARIANT
    )
    assert any("had no engine" in note for note in told["notes"])

    async def has_engine() -> bool:
        return bool((await cluster.http.get("/api/status")).json()["engine"])

    await eventually(has_engine, within_s=60, what="the main host has an engine")
    assert (await cluster.http.post("/api/deployments/test/start")).status_code < 300
    await cluster.settled_as("ready")
    assert (await cluster.complete(tokens=128)).strip() == SENTENCE
    again = await told_json(cluster.folder / "supervisor", site, "install", BUILD)
    assert not any("had no engine" in note for note in again["notes"])
