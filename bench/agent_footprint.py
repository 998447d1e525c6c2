"""What an idle agent costs: resident memory, and processor time over a minute.

uv run python bench/agent_footprint.py --seconds 60
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from cluster import Cluster

from agents.facts import cpu_seconds, resident_bytes

MIB = 1024 * 1024


async def run(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        cluster = Cluster(Path(folder))
        try:
            await cluster.supervisor()
            agent = await cluster.agent("one")
            pid = agent.process.pid
            await asyncio.sleep(5)  # start-up work is over
            before_s = cpu_seconds(pid) or 0.0
            resident = []
            for _ in range(10):
                await asyncio.sleep(seconds / 10)
                resident.append(resident_bytes(pid) or 0)
            used_s = (cpu_seconds(pid) or 0.0) - before_s
            threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
            files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        finally:
            await cluster.close()
    return {
        "seconds": seconds,
        "resident_median_mib": round(statistics.median(resident) / MIB, 1),
        "resident_max_mib": round(max(resident) / MIB, 1),
        "core_percent": round(100 * used_s / seconds, 2),
        "threads": threads,
        "open_files": files,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    print(json.dumps(asyncio.run(run(parser.parse_args().seconds)), indent=2))
