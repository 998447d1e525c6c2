"""All files of a model, several side by side."""

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Final

from supervisor.adapters.hub_http import RemotePart
from supervisor.fetching.blob import Fetching, Stopped, there_bytes
from supervisor.fetching.line import Line

TELL_EVERY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """What changed since the last was told; ``done`` is in bytes by the number of the file."""

    done: Mapping[int, int]
    is_checking: bool
    detail: str


Tell = Callable[[Progress], None]


def fetch(
    parts: list[RemotePart],
    cache: Path,
    line: Line,
    tell: Tell,
    stop: Event,
    *,
    at_once: int = 4,
) -> Path:
    """Fetch what is missing of a model into the hub's cache; returns the path of its first file.

    The first failure ends all; what came of the others is kept, too.

    Args:
        parts: In exactly one version.
        cache: Folder of huggingface_hub.
        line: To the hub.
        tell: Called about twice a second.
        stop: Ends it when it is set.
        at_once: Connections side by side: of one file several, of many files one each.

    Raises:
        ProjectError: Of the kinds that ``Fetching.run`` names.
        Stopped
    """
    connections = max(1, at_once // len(parts))
    files = [Fetching(line, part, cache, stop, connections) for part in parts]
    told: dict[int, int] = {}
    seen = {number: there_bytes(part, cache) for number, part in enumerate(parts)}
    last = Progress({}, is_checking=False, detail="")
    pool = ThreadPoolExecutor(at_once, "fetch")
    futures = [pool.submit(file.run) for file in files]
    unfinished = set(futures)
    try:
        while unfinished:
            ended, unfinished = wait(unfinished, TELL_EVERY_S, FIRST_COMPLETED)
            for number, file in enumerate(files):
                done = file.standing.there_bytes
                # One that is only looked at again has not lost anything.
                is_early = file.standing.is_checking or not done
                seen[number] = max(done, seen[number]) if is_early else done
            news = {n: d for n, d in seen.items() if told.get(n) != d}
            progress = _progress(files, news, {n for n, f in enumerate(futures) if f.done()})
            told |= news
            if news or progress != last:
                tell(progress)
            last = Progress({}, progress.is_checking, progress.detail)
            for future in ended:
                future.result()
        # Last of all, the first one last: what is not whole shall not look like a model.
        list(pool.map(Fetching.link, files[1:]))
        return files[0].link()
    finally:
        stop.set()
        # Not waited for: who waits for a silent hub writes nothing more.
        pool.shutdown(wait=False, cancel_futures=True)


def _progress(files: list[Fetching], news: Mapping[int, int], ended: set[int]) -> Progress:
    running = [file.standing for number, file in enumerate(files) if number not in ended]
    details = [standing.detail for standing in running if standing.detail]
    is_checking = any(standing.is_checking for standing in running)
    # As long as one file comes, the pause of another is no news.
    all_wait = len(details) == sum(1 for s in running if s.done_bytes or s.detail)
    return Progress(dict(news), is_checking, details[0] if details and all_wait else "")


__all__ = ["Progress", "Stopped", "fetch"]
