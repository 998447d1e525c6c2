"""Emulated devices: real rpc-servers with one thread, each slowed by a brake, behind a relay.

Everything that is started here ends with the block that started it, on errors and Ctrl-C too:
helpers end when their stdin does, rpc-servers are killed by the kernel if we die first.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from attention_probe import Attention, measure_attention
from lab.links import Link, emulated_link

from agents import engine as engines
from agents import environment, ports, process
from agents.contract import EngineFacts
from agents.measure import DeviceMeasurement, DeviceSpec, measure_device
from agents.measure_link import LinkMeasurement, measure_link
from agents.rpc_client import connected
from agents.rpc_protocol import Outcome, probe
from agents.workbench import Workbench

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
START_S = 10.0
ANSWER_S = 5.0
PROBE_S = 90.0
GRACE_S = 2.0
HOP_BYTES = 1 << 20
HOPS = 31


@dataclass(frozen=True, slots=True)
class Wire:
    """A link as it shall be: the same in both directions; zeros do nothing."""

    rtt_ms: float = 0.0
    mbyte_per_s: float = 0.0

    async def shape(self, link: Link) -> None:
        await link.set(one_way_delay_s=self.rtt_ms / 2e3, rate_bytes_per_s=self.mbyte_per_s * 1e6)


UNSHAPED = Wire()


@dataclass(frozen=True, slots=True)
class Emulated:
    """A device as it shall be; ``slow`` is the factor of its brake."""

    name: str
    slow: float = 1.0
    wire: Wire = UNSHAPED
    cap_layers: int | None = field(default=None)
    """How many layers it has memory for, the output not counted; ``None``: all, and the output."""


class Helper:
    """A helper program that obeys lines on its stdin and answers each."""

    def __init__(self, running: asyncio.subprocess.Process) -> None:
        self._running = running

    @classmethod
    async def start(cls, script: str, *arguments: str) -> "Helper":
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / script),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            process_group=0,  # Ctrl-C is for us; we end it in order
        )
        return cls(running)

    async def ask(self, line: str) -> None:
        assert self._running.stdin is not None
        self._running.stdin.write(f"{line}\n".encode())
        await self._running.stdin.drain()
        assert self._running.stdout is not None
        async with asyncio.timeout(ANSWER_S):
            answer = (await self._running.stdout.readline()).decode().strip()
        assert answer == "ok", answer

    async def stop(self) -> None:
        """End its stdin, and then the program itself if that was not enough."""
        assert self._running.stdin is not None
        self._running.stdin.close()
        try:
            async with asyncio.timeout(GRACE_S):
                await self._running.wait()
        except TimeoutError:
            self._running.kill()
            await self._running.wait()
        except asyncio.CancelledError:
            self._running.kill()
            raise


@dataclass(frozen=True, slots=True)
class Worker:
    """One emulated device that runs; ``port`` is its own, ``endpoint`` that of its link."""

    emulated: Emulated
    port: int
    brake: Helper
    link: Link

    @property
    def endpoint(self) -> str:
        return f"{LOOPBACK}:{self.link.port}"

    async def shape(self, *, is_on: bool) -> None:
        """Be what is emulated, or as quick as possible, to load a model."""
        await (self.emulated.wire if is_on else UNSHAPED).shape(self.link)
        await self.brake.ask(str(self.emulated.slow if is_on else 1.0))


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a device: from its own agent, and over the link from the main host.

    ``hop_s`` is what the messages of one token take over the link, less a round trip.
    """

    device: DeviceMeasurement
    attention: Attention
    link: LinkMeasurement
    hop_s: float


class Lab:
    """The devices of a scenario, by name."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = workers

    async def shape(self, *, is_on: bool) -> None:
        await asyncio.gather(*(worker.shape(is_on=is_on) for worker in self.workers.values()))

    async def measure(self, spec: DeviceSpec, width: int) -> dict[str, Measured]:
        """One after the other, as the product would: agents do not know of each other."""
        await self.shape(is_on=True)
        return {name: await measured(worker, spec, width) for name, worker in self.workers.items()}


async def measured(worker: Worker, spec: DeviceSpec, width: int) -> Measured:
    """What is computed is timed twice and the better counts: disturbances only make it worse."""
    devices = [await measure_device(LOOPBACK, worker.port, spec) for _ in range(2)]
    return Measured(
        max(devices, key=lambda device: device.decode_bytes_per_s[spec.types[0]]),
        await measure_attention(LOOPBACK, worker.port),
        await measure_link(LOOPBACK, worker.link.port, deadline_s=PROBE_S),
        await measure_hop_s(worker.link.port, width),
    )


async def measure_hop_s(port: int, width: int) -> float:
    """The same as ``DeviceMeasurement.hop_overhead_s``, for one width and from here."""
    async with connected(LOOPBACK, port, deadline_s=PROBE_S) as client:
        bench = await Workbench.build(client, 0, HOP_BYTES, HOP_BYTES)
        return await bench.hop_overhead_s(width, HOPS)


@asynccontextmanager
async def laboratory(
    engine: EngineFacts, devices: Sequence[Emulated], folder: Path
) -> AsyncIterator[Lab]:
    """Start the devices; all are gone when the block is left."""
    async with AsyncExitStack() as stack:
        workers = {}
        for device in devices:
            workers[device.name] = await _started(stack, engine, device, folder)
        yield Lab(workers)


async def _started(
    stack: AsyncExitStack, engine: EngineFacts, device: Emulated, folder: Path
) -> Worker:
    reservation = ports.reserve(LOOPBACK)
    stack.callback(reservation.release)
    port = reservation.port
    child = await process.spawn(
        "rpc-server",
        [engine.rpc_server, "-H", LOOPBACK, "-p", str(port), "-t", "1"],
        log_path=folder / f"{device.name}-0.log",
        environment=engine_environment(),
    )
    stack.push_async_callback(child.stop, grace_s=GRACE_S)
    await _answers(port)
    brake = await Helper.start("brake.py", str(child.pid))
    stack.push_async_callback(brake.stop)
    link = await stack.enter_async_context(emulated_link(port))
    return Worker(device, port, brake, link)


async def _answers(port: int) -> None:
    """Wait until an rpc-server has answered HELLO."""
    async with asyncio.timeout(START_S):
        while (await probe(LOOPBACK, port, deadline_s=2)).outcome is not Outcome.READY:
            await asyncio.sleep(0.02)


def engine_environment() -> dict[str, str]:
    return environment.for_engine(engines.inherited(), {"GGML_NO_BACKTRACE": "1"})
