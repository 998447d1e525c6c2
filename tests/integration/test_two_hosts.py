"""A main host and a worker with addresses of their own: two network namespaces and one cable."""

import asyncio
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cluster import START_S, Cluster, Program, eventually

from agents.cli import CODE_VARIABLE
from supervisor.demo_model import SENTENCE

pytestmark = pytest.mark.netns

CURL_CANNOT_CONNECT = 7
CURL_TLS_FAILURES = (35, 52, 55, 56)
"""Refused in the handshake, or, as TLS 1.3 allows, while the request is already on its way."""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Host:
    """One network namespace and its address on the cable."""

    namespace: str
    address: str

    async def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        """A command on this host, up to its end."""
        return await asyncio.to_thread(
            subprocess.run,
            ["ip", "netns", "exec", self.namespace, *map(str, argv)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    async def curl(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return await self.run("curl", "-sS", "--noproxy", "*", "--max-time", "55", *arguments)

    async def status(self, *arguments: str | Path) -> int:
        """HTTP status of a request."""
        done = await self.curl("-o", os.devnull, "-w", "%{http_code}", *arguments)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    async def listening(self) -> set[str]:
        """``address:port`` of every listening TCP socket."""
        done = await self.run("ss", "-ltnH")
        assert done.returncode == 0, done.stderr
        return {line.split()[3] for line in done.stdout.splitlines()}


@dataclass(frozen=True)
class Lan:
    main: Host
    worker: Host


@pytest.fixture
def lan() -> Iterator[Lan]:
    if shutil.which("ip") is None or shutil.which("ss") is None:
        pytest.skip("iproute2 is not installed")
    number = os.getpid() % 250 + 1
    main = Host(f"lrs-main-{os.getpid()}", f"10.77.{number}.1")
    worker = Host(f"lrs-worker-{os.getpid()}", f"10.77.{number}.2")
    made = []
    try:
        for host in (main, worker):
            try:
                ip("netns", "add", host.namespace)
            except subprocess.CalledProcessError as exc:
                pytest.skip(f"not permitted here: network namespaces ({exc.stderr.strip()})")
            made.append(host)
        cable = ["type", "veth", "peer", "name", "eth0", "netns", worker.namespace]
        ip("link", "add", "eth0", "netns", main.namespace, *cable)
        for host in made:
            ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", host.namespace, "link", "set", device, "up")
        yield Lan(main, worker)
    finally:
        for host in made:
            ip("netns", "del", host.namespace)


@dataclass
class TwoHosts:
    """Supervisor on one host, agent on the other; the cluster ends both."""

    lan: Lan
    cluster: Cluster
    url: str = ""

    def start(self, host: Host, name: str, *arguments: str, **environment: str) -> Program:
        log = self.cluster.folder / f"{name}.log"
        # ip replaces itself by the program, so that its pid is the program's.
        prefix = ["ip", "netns", "exec", host.namespace]
        with log.open("ab") as file:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        program = Program(name, process, self.cluster.folder / name, log)
        self.cluster.programs.append(program)
        return program

    async def up(self, *more: str, **settings: str) -> None:
        """Start the supervisor and wait until it answers."""
        data = self.cluster.folder / "supervisor"
        arguments = ["--data", str(data), "--no-agent", "--port", "0", "--join-port", "0"]
        arguments += ["--join-host", self.lan.main.address, *more]
        program = self.start(
            self.lan.main, "supervisor", "supervisor", "up", *arguments, **settings
        )
        run_file = data / "run.json"

        async def is_up() -> bool:
            assert program.process.poll() is None, program.said()
            return run_file.exists()

        await eventually(is_up, within_s=START_S, what="the supervisor starts")
        self.url = json.loads(run_file.read_text())["url"]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def call(self, path: str, body: object = None) -> Any:
        """A request to the supervisor from its own host."""
        data = [] if body is None else ["--json", json.dumps(body)]
        done = await self.lan.main.curl("-f", *data, f"{self.url}{path}")
        assert done.returncode == 0, (path, done.stderr, done.stdout)
        return json.loads(done.stdout)

    async def join(self) -> dict[str, Any]:
        """Join the worker and wait until it is ready."""
        code = (await self.call("/api/join-code", {}))["code"]
        assert code.startswith(f"{self.lan.main.address}:")
        data = str(self.cluster.folder / "worker")
        arguments = ["agents", "join", "-", "--data", data, "--name", "worker", "--threads", "1"]
        program = self.start(self.lan.worker, "worker", *arguments, **{CODE_VARIABLE: code})

        async def is_ready() -> dict[str, Any] | None:
            assert program.process.poll() is None, program.said()
            devices = await self.call("/api/devices")
            return next((d for d in devices if d["state"] == "ready"), None)

        found: dict[str, Any] = await eventually(
            is_ready, within_s=START_S, what="the worker is ready"
        )
        return found

    async def launch(self, model: Path, **spec: Any) -> dict[str, Any]:
        """Launch a model and wait until it is ready."""
        found = await self.settled(model, **spec)
        assert found["state"] == "ready", found["reason"]
        return found

    async def settled(self, model: Path, **spec: Any) -> dict[str, Any]:
        """Launch a model and wait until it is ready or has failed."""
        body = {"model": str(model), "name": "test", "ctx_tokens": 512, "devices": ["worker"]}
        await self.call("/api/deployments", body | spec)

        async def is_settled() -> dict[str, Any] | None:
            deployment: dict[str, Any] = await self.call("/api/deployments/test")
            return deployment if deployment["state"] in ("ready", "failed", "stopped") else None

        found: dict[str, Any] = await eventually(
            is_settled, within_s=60, what="the deployment settles"
        )
        return found


@pytest.fixture
def hosts(lan: Lan, cluster: Cluster) -> TwoHosts:
    return TwoHosts(lan, cluster)


async def assert_recites(hosts: TwoHosts) -> None:
    body = {"model": "test", "prompt": "Hello", "max_tokens": 128, "temperature": 0}
    answer = await hosts.call("/v1/completions", body)
    assert answer["choices"][0]["text"].strip() == SENTENCE


def value_of(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


async def test_a_model_is_served_over_two_hosts_and_nothing_listens_too_widely(
    hosts: TwoHosts, demo_model: Path
) -> None:
    main, worker = hosts.lan.main, hosts.lan.worker
    await hosts.up()
    device = await hosts.join()
    assert device["address"] == worker.address
    deployment = await hosts.launch(demo_model)
    assert deployment["warnings"] == []
    await assert_recites(hosts)

    record = await hosts.call(f"/api/launches/{deployment['launch_id']}")
    (used,) = record["workers"]
    link = f"{worker.address}:{device['link_port']}"
    near_end = f"127.0.0.1:{used['port']}"
    assert (used["host"], used["link"], used["address"]) == ("127.0.0.1", link, worker.address)
    assert value_of(used["argv"], "-H") == "127.0.0.1"
    assert value_of(record["argv"], "--rpc") == near_end

    # On the network there are the agent's two ports, which ask for a certificate, and no others.
    assert await worker.listening() == {
        f"127.0.0.1:{value_of(used['argv'], '-p')}",
        f"{worker.address}:{device['rest_port']}",
        link,
    }
    code = (await hosts.call("/api/join-code", {}))["code"]
    assert await main.listening() == {
        code.partition("/")[0],
        f"127.0.0.1:{hosts.port}",
        f"127.0.0.1:{deployment['port']}",
        near_end,
    }


async def test_without_links_the_rpc_server_listens_on_the_workers_own_address(
    hosts: TwoHosts, demo_model: Path
) -> None:
    main, worker = hosts.lan.main, hosts.lan.worker
    await hosts.up()
    device = await hosts.join()
    deployment = await hosts.launch(demo_model, transport="direct")
    (warning,) = deployment["warnings"]
    assert "can run code on the device" in warning
    await assert_recites(hosts)

    record = await hosts.call(f"/api/launches/{deployment['launch_id']}")
    (used,) = record["workers"]
    endpoint = f"{worker.address}:{used['port']}"
    assert (used["host"], used["link"], record["links"]) == (worker.address, "", [])
    assert value_of(used["argv"], "-H") == worker.address
    assert value_of(record["argv"], "--rpc") == endpoint

    # The worker's own address only: neither all addresses, nor loopback.
    assert await worker.listening() == {
        endpoint,
        f"{worker.address}:{device['rest_port']}",
        f"{worker.address}:{device['link_port']}",
    }
    code = (await hosts.call("/api/join-code", {}))["code"]
    assert await main.listening() == {
        code.partition("/")[0],
        f"127.0.0.1:{hosts.port}",
        f"127.0.0.1:{deployment['port']}",
    }


async def test_on_public_addresses_there_are_links_and_nothing_else(
    lan: Lan, cluster: Cluster, demo_model: Path
) -> None:
    """Addresses that others would reach, were this cable not all there is of their network."""
    public = Lan(replace(lan.main, address="9.9.9.1"), replace(lan.worker, address="9.9.9.2"))
    for host in (public.main, public.worker):
        ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
    hosts = TwoHosts(public, cluster)
    await hosts.up()
    assert (await hosts.join())["address"] == public.worker.address
    refused = await hosts.settled(demo_model, transport="direct")
    assert (refused["state"], refused["error_code"]) == ("failed", "public_address_refused")
    assert public.worker.address in refused["reason"]
    await hosts.launch(demo_model)
    await assert_recites(hosts)
    listening = await public.worker.listening()
    assert len([each for each in listening if each.startswith("127.0.0.1:")]) == 1
    assert len(listening) == 3


async def test_the_agent_obeys_the_supervisor_alone(hosts: TwoHosts) -> None:
    main, worker = hosts.lan.main, hosts.lan.worker
    await hosts.up()
    device = await hosts.join()
    facts = f"https://{worker.address}:{device['rest_port']}/facts"
    link = f"https://{worker.address}:{device['link_port']}/"
    for host, url in itertools.product((main, worker), (facts, link)):
        done = await host.curl("-k", url)
        assert done.returncode in CURL_TLS_FAILURES, (url, done.returncode, done.stderr)
        assert done.stdout == ""
    # Another device's certificate is valid too, and still no licence to command.
    own = hosts.cluster.folder / "worker" / "identity"
    device_pair: list[str | Path] = ["--cert", own / "agent.crt", "--key", own / "agent.key"]
    assert await main.status("-k", *device_pair, facts) == 403
    done = await main.curl("-k", *device_pair, link)
    assert done.returncode in CURL_TLS_FAILURES, (done.returncode, done.stderr)
    authority = hosts.cluster.folder / "supervisor" / "authority"
    its_pair: list[str | Path] = [
        "--cert",
        authority / "supervisor.crt",
        "--key",
        authority / "supervisor.key",
    ]
    assert await main.status("-k", *its_pair, facts) == 200


async def test_another_hosts_certificate_is_no_certificate_of_this_cluster(
    hosts: TwoHosts, tmp_path: Path
) -> None:
    """A certificate of somebody's own authority is refused in the handshake."""
    await hosts.up()
    device = await hosts.join()
    key, certificate = tmp_path / "own.key", tmp_path / "own.crt"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    make += ["-subj", "/CN=supervisor", "-days", "1", "-nodes"]
    make += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    facts = f"https://{hosts.lan.worker.address}:{device['rest_port']}/facts"
    done = await hosts.lan.main.curl("-k", "--cert", certificate, "--key", key, facts)
    assert done.returncode in CURL_TLS_FAILURES, (done.returncode, done.stderr)
    assert done.stdout == ""


async def test_the_dashboard_is_out_of_reach_for_other_hosts_by_default(hosts: TwoHosts) -> None:
    await hosts.up()
    assert await hosts.lan.main.status(f"{hosts.url}/") == 200
    for path in ("/", "/api/status", "/v1/models"):
        done = await hosts.lan.worker.curl(f"http://{hosts.lan.main.address}:{hosts.port}{path}")
        assert done.returncode == CURL_CANNOT_CONNECT, (done.returncode, done.stderr)


@pytest.mark.parametrize("listen", ["own address", "every address"])
async def test_with_host_the_dashboard_asks_other_hosts_for_the_key(
    hosts: TwoHosts, listen: str
) -> None:
    main, worker = hosts.lan.main, hosts.lan.worker
    await hosts.up("--host", main.address if listen == "own address" else "0.0.0.0")
    base = f"http://{main.address}:{hosts.port}"
    key = (hosts.cluster.folder / "supervisor" / "api.key").read_text().strip()
    for method, path in (("GET", "/api/status"), ("POST", "/api/join-code"), ("GET", "/v1/models")):
        call = ["-X", method, f"{base}{path}"]
        assert await worker.status(*call) == 401
        assert await worker.status("-H", "Authorization: Bearer sk-wrong", *call) == 401
        assert await worker.status("-H", f"Authorization: Bearer {key}", *call) == 200
    # On the main host itself nothing changes: commands there find the address that needs no key.
    assert hosts.url.startswith("http://127.0.0.1:")
    assert await main.status(f"{hosts.url}/api/status") == 200
    # A forged Host or forwarding header makes no caller local.
    forged = ["-H", "Host: 127.0.0.1", "-H", "X-Forwarded-For: 127.0.0.1"]
    assert await worker.status(*forged, f"{base}/api/status") == 401


async def test_a_worker_that_loses_its_cable_is_named(hosts: TwoHosts, demo_model: Path) -> None:
    await hosts.up(
        SUPERVISOR_HEARTBEAT_S="0.3",
        SUPERVISOR_LATE_AFTER_S="1",
        SUPERVISOR_STALE_AFTER_S="2",
        SUPERVISOR_RETRY_FIRST_S="0.5",
    )
    await hosts.join()
    await hosts.launch(demo_model)
    ip("-n", hosts.lan.worker.namespace, "link", "set", "eth0", "down")

    async def is_named() -> str | None:
        deployment = await hosts.call("/api/deployments/test")
        return deployment["reason"] if deployment["state"] != "ready" else None

    # Two seconds of silence make a lost device; nobody may be sent to it for much longer.
    reason = await eventually(is_named, within_s=6, what="the loss is noticed")
    assert re.search(r"\bworker\b", reason), reason
    ip("-n", hosts.lan.worker.namespace, "link", "set", "eth0", "up")

    async def is_back() -> bool:
        deployment = await hosts.call("/api/deployments/test")
        return bool(deployment["state"] == "ready")

    await eventually(is_back, within_s=60, what="the deployment comes back by itself")
