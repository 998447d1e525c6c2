"""The archive for a bug report: complete, bounded, and without a secret, also when things broke."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from cluster import Cluster, eventually

PASSWORD = "correct-horse-battery"
HUB_TOKEN = "hf_" + "Ab3dE" * 7
USER = "zacharias"


def members(archive: bytes) -> dict[str, str]:
    """Text by path, in order, of an archive that may be unpacked anywhere."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        found = opened.getmembers()
        tops = {member.name.partition("/")[0] for member in found}
        assert len(tops) == 1, tops
        for member in found:
            assert member.isfile()
            assert member.name.startswith(f"{next(iter(tops))}/")
            assert ".." not in member.name
        files = ((member.name.partition("/")[2], opened.extractfile(member)) for member in found)
        return {name: file.read().decode() for name, file in files if file is not None}


def run_report(cluster: Cluster, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "supervisor", "report", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={**os.environ, "SUPERVISOR_URL": cluster.url, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )


async def test_a_report_has_everything_of_a_launch_and_no_secret(
    cluster: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "people" / USER
    # A path with a password in it: it gets into commands, plans, records, logs and events.
    model = home / PASSWORD / "model.gguf"
    model.parent.mkdir(parents=True)
    shutil.copy(demo_model, model)
    environment = {"HF_TOKEN": HUB_TOKEN, "MY_PASSWORD": PASSWORD, "HOME": str(home), "USER": USER}
    await cluster.supervisor(environment=environment)
    await cluster.agent("one")
    await cluster.agent(f"{USER}-phone")
    code = await cluster.code()
    _, token, fingerprint = code.split("/")
    assert (await cluster.launch(model)).status_code == 201
    assert (await cluster.settled())["state"] == "ready"
    record = (await cluster.http.get("/api/launches/1")).json()
    assert PASSWORD in json.dumps(record), "or nothing is shown"

    answer = await cluster.http.get("/api/report")
    assert answer.status_code == 200
    assert 'filename="report-1.tar.gz"' in answer.headers["content-disposition"]
    found = members(answer.content)

    key = (cluster.folder / "supervisor" / "api.key").read_text().strip()
    text = "\n".join([*found, *found.values()])
    for secret in (key, token, fingerprint, HUB_TOKEN, PASSWORD, USER, str(home), code):
        assert secret not in text
    private_key = (cluster.folder / "supervisor" / "authority" / "authority.key").read_text()
    assert private_key.splitlines()[1] not in text

    assert next(iter(found)) == "README.txt"
    assert "launch 1 of test, ready" in found["README.txt"]
    for path in (p for p in found if p.endswith(".json")):
        json.loads(found[path])
    launch = json.loads(found["launch.json"])
    assert launch["id"] == 1
    assert launch["argv"][1:3] == ["--model", "~/***/model.gguf"]
    assert json.loads(found["plan.json"]) == launch["plan"]
    assert found["commands.sh"].count("# on ") == 3
    assert "--tensor-split" in found["commands.sh"]
    events = [json.loads(line) for line in found["events-of-launch.jsonl"].splitlines()]
    assert events[-1]["change"] == "starting -> ready"
    assert {event["launch_id"] for event in events} == {1}
    assert len(found["events.jsonl"].splitlines()) > len(events)
    assert [d["name"] for d in json.loads(found["devices.json"])] == ["one", "user-phone"]
    assert json.loads(found["deployments.json"])[0]["id"] == "test"
    assert json.loads(found["settings.json"])["measure_idle"] is False
    versions = json.loads(found["versions.json"])
    assert versions["engine"]["rpc_protocol"] == "7.0.0"
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(json.loads(found["measurements.json"])) == {"devices", "links", "lessons"}
    assert "listening" in found["logs/llama-server-1.log"]
    assert "llama_server.starting" in found["logs/supervisor.log"]
    assert any(p.startswith("logs/link-") for p in found)
    for device in ("one", "user-phone"):
        (log,) = [t for p, t in found.items() if p.startswith(f"logs/{device}-")]
        assert "Accepted client connection" in log


async def test_a_report_of_what_broke_names_what_it_could_not_get(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    assert (await pair.settled())["state"] == "ready"
    agent = next(program for program in pair.programs if program.name == "two")
    agent.process.kill()

    async def is_over() -> bool:
        return bool((await pair.http.get("/api/launches/1")).json()["ended_at"])

    await eventually(is_over, within_s=60, what="the launch ends")
    record = (await pair.http.get("/api/launches/1")).json()
    (pair.folder / "supervisor" / "logs" / Path(record["link_log_path"]).name).unlink()
    found = members((await pair.http.get("/api/launches/1/report")).content)
    readme = found["README.txt"]
    assert f"launch 1 of test, {record['outcome']}" in readme
    assert " ".join(record["reason"].split()[:5]) in readme
    assert "Not in it:" in readme
    assert "- log of the links: link-" in readme
    assert "- log of the rpc-server of two: the agent of two does not answer" in readme
    assert any(path.startswith("logs/one-") for path in found)
    assert json.loads(found["launch.json"])["cause"]["code"] == record["error_code"]


async def test_before_the_first_launch_a_report_is_about_the_devices(cluster: Cluster) -> None:
    await cluster.supervisor()
    await cluster.agent("one")
    answer = await cluster.http.get("/api/report")
    found = members(answer.content)
    assert "no launch: there was none yet" in found["README.txt"]
    assert "- log of the rpc-server of one: there is none yet" in found["README.txt"]
    assert "launch.json" not in found
    assert json.loads(found["launches.json"]) == []
    assert len(json.loads(found["devices.json"])) == 1
    unknown = await cluster.http.get("/api/launches/9/report")
    assert unknown.status_code == 404
    assert unknown.json()["code"] == "launch_unknown"


async def test_the_command_writes_it_here_or_where_it_is_told(
    pair: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    await pair.launch(demo_model)
    await pair.settled()
    done = run_report(pair, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report-1.tar.gz" in done.stdout
    here = members((tmp_path / "report-1.tar.gz").read_bytes())
    done = run_report(pair, tmp_path, "1", "-o", "x.tgz", "--json")
    assert json.loads(done.stdout)["file"] == "x.tgz"
    there = members((tmp_path / "x.tgz").read_bytes())
    assert list(here) == list(there), "in the same order"
    assert here["launch.json"] == there["launch.json"]
    done = run_report(pair, tmp_path, "7")
    assert done.returncode == 1
    assert "launch 7 was never recorded" in done.stderr
    done = run_report(pair, tmp_path, "-o", "missing/x.tgz")
    assert done.returncode == 1
    assert "name another file with -o" in done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.t*gz")) == ["report-1.tar.gz", "x.tgz"]


async def test_long_logs_are_cut_at_a_line_and_the_archive_is_bounded(
    pair: Cluster, demo_model: Path
) -> None:
    await pair.launch(demo_model)
    await pair.settled()
    log = pair.folder / "supervisor" / "logs" / "llama-server-1.log"
    with log.open("a") as file:
        for number in range(60_000):
            file.write(f"line {number} of a very long log that goes on for a while\n")
    answer = await pair.http.get("/api/report")
    found = members(answer.content)
    cut = found["logs/llama-server-1.log"].splitlines()
    assert len(found["logs/llama-server-1.log"]) <= 1 << 20
    assert all(line.startswith("line ") for line in cut)
    assert cut[-1].startswith("line 59999 ")
    assert len(gzip.decompress(answer.content)) <= 21 << 20
