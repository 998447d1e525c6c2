"""What the link costs and gains: launches through it and without it, in interleaved pairs.

    uv run python bench/link.py decode --pairs 20
    uv run python bench/link.py load --pairs 5
    uv run python bench/link.py storm --pairs 5
    uv run python bench/link.py strangers --pairs 10

Everything runs on this machine, on loopback: supervisor, agents, engine, and the relays that stand
for the network. How both ways are timed alike is said in ``bench/link_runs.py``. Tables are for
the documentation; ``--json`` has every single figure.
"""

import argparse
import asyncio
import contextlib
import json
import math
import os
import ssl
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent))

from link_runs import (
    LOOPBACK,
    SIZES,
    UNSHAPED,
    Bench,
    Linked,
    Model,
    Ready,
    Wire,
    ask,
    first_token_s,
    header,
    in_turn,
    machine,
    rest,
    run_to_end,
    say,
    table,
    with_bench,
)

from agents import tls
from supervisor.adapters.authority import Authority

Samples = dict[str, list[float]]
"""Figures by what was run, in the order of the pairs."""

WORKERS = 2
NOBODY, BYSTANDER, WORKER = "nobody", "bystander", "worker-0"
CALLED = {
    NOBODY: "nobody",
    BYSTANDER: "an agent without part in the launch",
    WORKER: "a worker of the launch",
}
"""Whom strangers call, as devices are named and for people."""

WARM_TOKENS = 2
SETTLE_S = 2.0
"""From the first strangers to the request that they shall disturb."""

STRANGERS_START_S = 30.0
STRANGERS_END_S = 30.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a command found: text for people, figures for programs."""

    text: str
    figures: Any


def ratios(upper: Sequence[float], lower: Sequence[float]) -> tuple[float, float]:
    """Ratio of the medians, and median of the pairs' ratios."""
    paired = [above / below for above, below in zip(upper, lower, strict=True)]
    return statistics.median(upper) / statistics.median(lower), statistics.median(paired)


# -- decode ----------------------------------------------------------------------------------------


@dataclass
class Speeds:
    """What was found for one model. ``answers`` are the different texts."""

    model: str
    prefill: Samples = field(default_factory=lambda: defaultdict(list))
    decode: Samples = field(default_factory=lambda: defaultdict(list))
    answers: set[str] = field(default_factory=set)
    links: list[dict[str, Any]] = field(default_factory=list)

    def rows(self) -> list[list[str]]:
        found = []
        for what, samples in (("decode", self.decode), ("prefill", self.prefill)):
            of_medians, of_pairs = ratios(samples["link"], samples["direct"])
            medians = [f"{statistics.median(samples[kind]):.2f}" for kind in ("direct", "link")]
            name = f"{what}, tokens/s"
            found.append(
                [self.model, name, *medians, f"{of_medians:.3f}", f"{of_pairs:.3f}", "≥ 0.95"]
            )
        return found

    def remarks(self) -> list[str]:
        """The time that the link adds to a token, its own word on that, and what was answered."""
        per_token_ms = {kind: 1e3 / statistics.median(v) for kind, v in self.decode.items()}
        added_ms = per_token_ms["link"] - per_token_ms["direct"]
        shares: dict[str, list[float]] = defaultdict(list)
        for link in self.links:
            shares[link["device"]].append(100 * link["wire_share"])
        own = ", ".join(f"{name} {statistics.median(v):.1f} %" for name, v in shares.items())
        same = "all answers are the same" if len(self.answers) == 1 else "THE ANSWERS DIFFER"
        return [
            f"* {self.model}: {added_ms:.2f} ms more per token, {added_ms / WORKERS:.2f} ms per "
            f"worker; share of the wire by the links' own count: {own}; {same}."
        ]

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "prefill_tokens_per_s": self.prefill,
            "decode_tokens_per_s": self.decode,
            "different_answers": len(self.answers),
            "links": self.links,
        }


async def decode(bench: Bench, options: argparse.Namespace) -> Report:
    """Speed of the same request on loopback, two workers.

    Both llama-servers are loaded at once, so that the requests of a pair follow each other; the
    one that is not asked waits and takes no time. They are loaded anew several times, since where
    a process happens to lie in memory changes its speed by some percent.
    """
    found = [await _speeds(bench, await bench.model(name), options) for name in options.sizes]
    head = ["model", "what", "direct, median", "link, median", "link ÷ direct", "of the pairs"]
    rows = [row for speeds in found for row in speeds.rows()]
    remarks = [line for speeds in found for line in speeds.remarks()]
    text = "\n".join([table([*head, "goal"], rows, left=2), "", *remarks])
    return Report(text, [speeds.figures for speeds in found])


async def _speeds(bench: Bench, model: Model, options: argparse.Namespace) -> Speeds:
    found = Speeds(model.label)
    ctx_tokens = max(512, options.prompt + options.tokens + 8)
    per_load = math.ceil(options.pairs / options.loads)
    async with bench.cluster(WORKERS) as linked:
        argv = await _rehearsed(linked, model, ctx_tokens)
        for load in range(options.loads):
            async with _both(bench, linked, model, argv, load, found, ctx_tokens) as servers:
                for ready in servers.values():
                    await ask(ready, options.prompt, WARM_TOKENS)
                for number in range(per_load):
                    await _pair(servers, options, load + number, found)
    return found


async def _rehearsed(linked: Linked, model: Model, ctx_tokens: int = 512) -> list[str]:
    """The command of llama-server, and a model in the page cache."""
    ready = await linked.launch(model, ctx_tokens)
    await linked.stop(ready)
    return ready.argv


@asynccontextmanager
async def _both(
    bench: Bench,
    linked: Linked,
    model: Model,
    argv: list[str],
    number: int,
    found: Speeds,
    ctx_tokens: int,
) -> AsyncIterator[dict[str, Ready]]:
    """Two llama-servers, which are loaded in turn."""
    servers: dict[str, Ready] = {}
    async with AsyncExitStack() as stack:
        for kind in in_turn(("direct", "link"), number):
            if kind == "direct":
                ready = await stack.enter_async_context(bench.direct(argv, WORKERS))
            else:
                ready = await stack.enter_async_context(
                    _launched(linked, model, ctx_tokens, found.links)
                )
            servers[kind] = ready
        yield servers


@asynccontextmanager
async def _launched(
    linked: Linked, model: Model, ctx_tokens: int, links: list[dict[str, Any]]
) -> AsyncIterator[Any]:
    """A launch; what its links have counted is added to ``links`` at its end."""
    ready = await linked.launch(model, ctx_tokens)
    try:
        yield ready
    finally:
        links += await linked.stop(ready)


async def _pair(
    servers: Mapping[str, Ready], options: argparse.Namespace, number: int, found: Speeds
) -> None:
    for kind in in_turn(sorted(servers), number):
        answer = await ask(servers[kind], options.prompt, options.tokens)
        found.prefill[kind].append(answer.prefill_tokens_per_s)
        found.decode[kind].append(answer.decode_tokens_per_s)
        found.answers.add(answer.text)
    last = {kind: f"{found.decode[kind][-1]:.2f}" for kind in sorted(servers)}
    say(f"{found.model}: {last} tokens/s")


# -- load and storm --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scenario:
    """A network, a model, and which launches through links are compared with a direct one.

    ``goals``, by launch, are for the direct time as a multiple of that of the link. ``first``: no
    weights on the workers, nothing known of them. ``again``: the same launch once more.
    ``restarted``: and once more, after the agents were.
    """

    name: str
    label: str
    workers: int
    wire: Wire
    size: str
    goals: Mapping[str, str]


LOADS = (
    Scenario("one-125", "one link of 125 MB/s", 1, Wire(0, 125), "large", {"first": "≥ 0.95"}),
    Scenario("two-125", "two links of 125 MB/s", 2, Wire(0, 125), "large", {"first": "≥ 0.95"}),
    Scenario(
        "two-25",
        "two links of 25 MB/s",
        2,
        Wire(0, 25),
        "medium",
        {"first": "≥ 0.952 (1/1.05)", "again": "≥ 5", "restarted": "≥ 5"},
    ),
)


def storm_scenario(rtt_ms: float) -> Scenario:
    label = f"two links, {rtt_ms:g} ms round trip"
    goals = {"first": "≥ 2", "again": "≥ 4"}
    return Scenario("storm", label, WORKERS, Wire(rtt_ms), "demo", goals)


async def load(bench: Bench, options: argparse.Namespace) -> Report:
    """Time to load over slow links, and the bytes that travel."""
    chosen = [scenario for scenario in LOADS if scenario.name in options.scenarios]
    return await _compared(bench, chosen, options)


async def storm(bench: Bench, options: argparse.Namespace) -> Report:
    """Time to load a small model over distant links, where only round trips count."""
    return await _compared(bench, [storm_scenario(options.rtt_ms)], options)


async def _compared(
    bench: Bench, scenarios: Sequence[Scenario], options: argparse.Namespace
) -> Report:
    rows, figures = [], []
    for scenario in scenarios:
        model = await bench.model(options.size or scenario.size)
        samples = await _load_times(bench, scenario, model, options.pairs)
        rows += _load_rows(scenario, model, samples)
        figures.append({"scenario": scenario.name, "model": model.label, "samples": samples})
    head = ["links", "model", "launch", "direct, median", "link, median", "direct ÷ link"]
    head += ["of the pairs", "goal", "with the first token", "sent direct", "sent by the link"]
    return Report(table(head, rows, left=3), figures)


async def _load_times(bench: Bench, scenario: Scenario, model: Model, pairs: int) -> Samples:
    async with bench.cluster(scenario.workers) as linked:
        argv = await _rehearsed(linked, model)
    samples: Samples = defaultdict(list)
    for number in range(pairs):
        async with bench.cluster(scenario.workers, scenario.wire) as linked:
            for kind in in_turn(("direct", "link"), number):
                if kind == "direct":
                    await _load_directly(bench, scenario, argv, samples)
                else:
                    for launch in scenario.goals:
                        await _load_linked(linked, model, launch, samples)
        times = {kind: f"{samples[f'{kind}_s'][-1]:.3f}" for kind in ("direct", *scenario.goals)}
        say(f"{scenario.label}, {model.label}: {times} s")
    return samples


async def _load_directly(
    bench: Bench, scenario: Scenario, argv: list[str], samples: Samples
) -> None:
    await rest()
    async with bench.direct(argv, scenario.workers, scenario.wire) as ready:
        samples["direct_s"].append(ready.took_s)
        samples["direct_sent_bytes"].append(ready.up_bytes)
        samples["direct_with_token_s"].append(ready.took_s + await first_token_s(ready))


async def _load_linked(linked: Linked, model: Model, launch: str, samples: Samples) -> None:
    if launch == "restarted":
        await linked.restart_agents()
    await rest()
    ready = await linked.launch(model)
    links = await linked.stop(ready)
    samples[f"{launch}_s"].append(ready.took_s)
    samples[f"{launch}_with_token_s"].append(ready.took_s + ready.steps["first token"])
    for step, took_s in ready.steps.items():
        samples[f"{launch}_step_{step}_s"].append(took_s)
    samples[f"{launch}_sent_bytes"].append(sum(link["sent_bytes"] for link in links))
    samples[f"{launch}_relayed_bytes"].append(ready.up_bytes)


def _load_rows(scenario: Scenario, model: Model, samples: Samples) -> list[list[str]]:
    rows = []
    direct_sent = statistics.median(samples["direct_sent_bytes"])
    for launch, goal in scenario.goals.items():
        direct_s, link_s = samples["direct_s"], samples[f"{launch}_s"]
        of_medians, of_pairs = ratios(direct_s, link_s)
        sent = statistics.median(samples[f"{launch}_sent_bytes"])
        share = f" ({sent / statistics.median(samples['first_sent_bytes']):.2%} of the first)"
        row = [scenario.label, model.label, launch]
        row += [f"{statistics.median(took_s):.3f} s" for took_s in (direct_s, link_s)]
        with_token = ratios(samples["direct_with_token_s"], samples[f"{launch}_with_token_s"])
        row += [f"{of_medians:.2f}", f"{of_pairs:.2f}", goal, f"{with_token[1]:.2f}"]
        row += [f"{direct_sent / 1e6:.2f} MB"]
        row += [f"{sent / 1e6:.2f} MB" + (share if launch != "first" else "")]
        rows.append(row)
    return rows


# -- strangers -------------------------------------------------------------------------------------


async def strangers(bench: Bench, options: argparse.Namespace) -> Report:
    """Speed of a long answer while others than the main host call a worker's far end.

    The strangers run on the same machine, at the lowest priority, and whoever throws them out takes
    processor time too. So they also call an agent that has no part in the launch: what that costs
    is the machine's, and the rest of the drop is due to the far end that they share with it.
    """
    model = await bench.model(options.size)
    found = Speeds(model.label)
    calls: list[dict[str, float]] = []
    async with bench.cluster(WORKERS) as linked:
        await linked.join(BYSTANDER, UNSHAPED, serves=False)
        ctx_tokens = max(512, options.prompt + options.tokens + 8)
        async with _launched(linked, model, ctx_tokens, found.links) as ready:
            agent = psutil.Process(linked.agents[WORKER].process.pid)
            await ask(ready, options.prompt, WARM_TOKENS)
            before = _held(agent)
            targets = {NOBODY: 0} | {n: linked.link_ports[n] for n in (BYSTANDER, WORKER)}
            for number in range(options.pairs):
                for name in in_turn(list(targets), number):
                    async with _strangers(bench, targets[name], options, calls):
                        answer = await ask(ready, options.prompt, options.tokens)
                    found.decode[name].append(answer.decode_tokens_per_s)
                    found.answers.add(answer.text)
                last = {name: f"{found.decode[name][-1]:.2f}" for name in targets}
                say(f"{found.model}: {last} tokens/s")
            await asyncio.sleep(SETTLE_S)
            held = {"before": before, "after": _held(agent)}
    return _strangers_report(found, calls, held, options)


def _held(agent: psutil.Process) -> dict[str, float]:
    """What an agent holds and has used."""
    cpu = agent.cpu_times()
    return {
        "resident_mib": round(agent.memory_info().rss / 2**20, 1),
        "descriptors": agent.num_fds(),
        "cpu_s": round(cpu.user + cpu.system, 2),
    }


@asynccontextmanager
async def _strangers(
    bench: Bench, port: int, options: argparse.Namespace, calls: list[dict[str, float]]
) -> AsyncIterator[None]:
    """A program full of them; how often they called per second is added to ``calls``."""
    if not port:
        yield
        return
    words = ["besiege", str(port), str(bench.folder()), str(options.clients), str(options.pause_s)]
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        process_group=0,  # Ctrl-C is for us; we end it in order
    )
    try:
        assert running.stdin is not None
        assert running.stdout is not None
        async with asyncio.timeout(STRANGERS_START_S):
            await running.stdout.readline()
        await asyncio.sleep(SETTLE_S)
        yield
        running.stdin.close()
        async with asyncio.timeout(STRANGERS_END_S):
            calls.append(json.loads(await running.stdout.read()))
            await running.wait()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()


def _strangers_report(
    found: Speeds,
    calls: Sequence[Mapping[str, float]],
    held: Mapping[str, Mapping[str, float]],
    options: argparse.Namespace,
) -> Report:
    rows = []
    for name, speeds in ((name, found.decode[name]) for name in CALLED):
        drops = [f"{100 * (1 - r):.1f} %" for r in ratios(speeds, found.decode[NOBODY])]
        goal = "< 5 %" if name == WORKER else ""
        rows.append([found.model, CALLED[name], f"{statistics.median(speeds):.2f}", *drops, goal])
    head = ["model", f"{options.clients} strangers call", "tokens/s, median"]
    head += ["drop of the medians", "median drop of the pairs", "goal"]
    rates = {kind: statistics.median(each[kind] for each in calls) for kind in calls[0]}
    said = ", ".join(f"{kind} {rate:.0f}" for kind, rate in rates.items())
    same = "all answers are the same" if len(found.answers) == 1 else "THE ANSWERS DIFFER"
    now, then = held["after"], held["before"]
    remarks = [f"* calls per second: {said}; {same}."]
    remarks += [f"* agent of the worker, {what}: {then[what]} → {now[what]}." for what in then]
    text = "\n".join([table(head, rows, left=2), "", *remarks])
    return Report(text, found.figures | {"calls_per_s": calls, "agent": held})


PART_OF_A_HELLO = bytes.fromhex("160301020001")
"""A TLS record that announces more than ever comes."""


class Siege:
    """Clients without any right to be there, each of one kind, that come again and again."""

    def __init__(self, port: int, folder: Path, clients: int, pause_s: float) -> None:
        self._port = port
        self._clients = clients
        self._pause_s = pause_s
        foreign = Authority(folder)
        context = tls.unverified_context()
        context.load_cert_chain(foreign.supervisor_certificate, foreign.supervisor_key)
        self._kinds: dict[str, tuple[bytes, ssl.SSLContext | None]] = {
            "idle": (b"", None),
            "garbage": (os.urandom(4096), None),
            "half a hello": (PART_OF_A_HELLO, None),
            "foreign certificate": (b"", context),
        }
        self._calls: Counter[str] = Counter()

    async def run(self) -> dict[str, float]:
        """Until stdin ends; returns the calls per second, by kind."""
        started_s = time.monotonic()
        kinds = list(self._kinds)
        visits = [
            asyncio.create_task(self._come(kinds[number % len(kinds)], number))
            for number in range(self._clients)
        ]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        elapsed_s = time.monotonic() - started_s
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
        return {kind: round(self._calls[kind] / elapsed_s, 1) for kind in kinds}

    async def _come(self, kind: str, number: int) -> None:
        await asyncio.sleep(self._pause_s * number / self._clients)
        while True:
            self._calls[kind] += 1
            with contextlib.suppress(OSError):
                await self._visit(*self._kinds[kind])
            await asyncio.sleep(self._pause_s)

    async def _visit(self, words: bytes, context: ssl.SSLContext | None) -> None:
        """Connect, say something, and stay until thrown out."""
        name = "agent-unknown" if context else None
        reader, writer = await asyncio.open_connection(
            LOOPBACK, self._port, ssl=context, server_hostname=name
        )
        try:
            writer.write(words)
            while await reader.read(4096):
                pass
        finally:
            writer.transport.abort()


def besiege(options: argparse.Namespace) -> None:
    """The program of the strangers."""
    os.nice(19)
    siege = Siege(options.port, options.folder, options.clients, options.pause_s)
    print(json.dumps(asyncio.run(siege.run())))


# -- the command line ------------------------------------------------------------------------------


def parsed() -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--pairs", type=int, default=5)
    common.add_argument("--json", action="store_true", help="all figures, in place of tables")
    common.add_argument("--folder", type=Path, help="where models and stores are made")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(
        required=True, dest="command", metavar="{decode,load,storm,strangers}"
    )
    made = {
        work.__name__: commands.add_parser(
            work.__name__, parents=[common], help=(work.__doc__ or "").splitlines()[0]
        )
        for work in (decode, load, storm, strangers)
    }
    for name, command in made.items():
        command.set_defaults(work=globals()[name])
    made["decode"].set_defaults(pairs=20)
    made["decode"].add_argument("--sizes", nargs="+", choices=SIZES, default=["large", "medium"])
    made["decode"].add_argument("--loads", type=int, default=4, help="the pairs are spread over")
    names = [scenario.name for scenario in LOADS]
    made["load"].add_argument("--scenarios", nargs="+", choices=names, default=names)
    made["storm"].add_argument("--rtt-ms", type=float, default=100.0)
    for name in ("load", "storm"):
        made[name].add_argument("--size", choices=SIZES, help="another model")
    made["strangers"].add_argument("--size", choices=SIZES, default="medium")
    made["strangers"].add_argument("--clients", type=int, default=500)
    made["strangers"].add_argument("--pause-s", type=float, default=1.0, help="between two calls")
    for name, prompt, tokens in (("decode", 256, 64), ("strangers", 32, 256)):
        made[name].add_argument("--prompt", type=int, default=prompt, help="tokens")
        made[name].add_argument("--tokens", type=int, default=tokens, help="to generate")
    inner = commands.add_parser("besiege")
    for argument, kind in (("port", int), ("folder", Path), ("clients", int), ("pause_s", float)):
        inner.add_argument(argument, type=kind)
    return parser.parse_args()


async def measured(options: argparse.Namespace) -> str:
    async def work(bench: Bench) -> str:
        facts = machine(bench.engine)
        report: Report = await options.work(bench, options)
        if options.json:
            asked = {k: v for k, v in vars(options).items() if k not in ("work", "folder", "json")}
            found = {"machine": facts, "options": asked, "figures": report.figures}
            return json.dumps(found, indent=2)
        return f"{header(facts)}; {options.pairs} pairs.\n\n{report.text}"

    return await with_bench(options.folder, work)


if __name__ == "__main__":
    chosen = parsed()
    if chosen.command == "besiege":
        besiege(chosen)
    else:
        print(run_to_end(measured(chosen)))
