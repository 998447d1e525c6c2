"""One archive for a bug report: what was planned and run, what happened, and every log there is.

Made in memory, bounded, and masked before it leaves; it reads and never changes anything.
"""

import asyncio
import gzip
import io
import json
import platform
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

from agents.contract import EngineFacts
from agents.errors import ProjectError
from agents.logfile import read_from
from supervisor import __version__
from supervisor.core.commands import shell_script
from supervisor.core.entities import (
    AgentId,
    Deployment,
    EventRecord,
    FrozenModel,
    LaunchId,
    LaunchRecord,
)
from supervisor.core.masking import Private, mask, secrets_of
from supervisor.service.attempt import SET_BY_US
from supervisor.service.clock import timestamp
from supervisor.service.own_log import OwnLog
from supervisor.service.tools import Tools

_MOST_BYTES: Final = 20 << 20
"""Of everything before it is packed."""
_LOG_BYTES: Final = 1 << 20
"""The end of each log."""
_AGENT_S: Final = 5.0
_EVENTS: Final = 500
_LAUNCHES: Final = 20
_HOMES: Final = ("home", "Users")
"""Folders whose folders are named for people."""

_README: Final = """\
Bug report of the llama.cpp RPC supervisor {version}, made {at}.
It is about {subject}.

launch.json        the record of that launch: plan, workers, commands, memory, links, its end
plan.json          what was placed where, and why
commands.sh        what was run, as lines for a shell
deployments.json   deployments as they were when this was made
launches.json      other launches, the newest first
events-of-launch.jsonl, events.jsonl
                   what happened: of that launch, and the last {events} of all
devices.json       devices as they last described themselves
measurements.json  how fast they were found to be, and what was learnt of their failures
settings.json      the settings in force
versions.json      programs, and where they run
logs/              the last {log_mib} MiB of each log

Secrets, home folders and user names were replaced by ***, ~ and "user". Addresses, names of devices
and of models are in it, and logs may quote requests: look before you publish it.
{missing}"""


@dataclass(frozen=True, slots=True)
class Report:
    """An archive and what to call it."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    text: str


class Reporter:
    """Makes reports. What cannot be had is named in the report instead."""

    def __init__(
        self,
        tools: Tools,
        deployments: Callable[[], list[Deployment]],
        engines: Sequence[EngineFacts],
        own_log: OwnLog,
        secrets: Sequence[str],
        clock: Callable[[], str] = timestamp,
    ) -> None:
        """``secrets``: those that only we know, such as our own key."""
        self._tools = tools
        self._journal = tools.journal
        self._deployments = deployments
        self._engines = engines
        self._own_log = own_log
        self._clock = clock
        self._private = _private(tools.main_host.inherited, secrets)

    async def report(self, launch_id: LaunchId | None = None) -> Report:
        """About one launch, or the latest if there is any.

        Raises:
            LaunchUnknown: There is none with that number.
            StoreUnusable: Nothing can be read.
        """
        at = self._clock()
        launches = await asyncio.to_thread(self._journal.launches, _LAUNCHES)
        record = next(iter(launches), None)
        if launch_id is not None:
            record = await asyncio.to_thread(self._journal.launch, launch_id)
        others = [launch for launch in launches if record is None or launch.id != record.id]
        files = [*await self._about(record), *await self._around(others)]
        logs, missing = await self._logs(record)
        files = [_readme(record, at, missing), *files, *logs]
        number = f"{record.id}" if record else at[:10]
        name = f"report-{number}"
        data = await asyncio.to_thread(_packed, name, files, self._private, _seconds(at))
        return Report(f"{name}.tar.gz", data)

    async def _about(self, record: LaunchRecord | None) -> list[_File]:
        if record is None:
            return []
        commands = (f"# on {host}\n{line}\n" for host, line in shell_script(record, SET_BY_US))
        events = await self._journal.events(None, _EVENTS, launch_id=record.id)
        return [
            _json("launch.json", record),
            _json("plan.json", record.plan),
            _File("commands.sh", "".join(commands)),
            _lines("events-of-launch.jsonl", events),
        ]

    async def _around(self, others: list[LaunchRecord]) -> list[_File]:
        host = self._tools.main_host
        measured = await asyncio.to_thread(self._measured)
        versions = {
            "supervisor": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "main_host": host.name,
            "cores": host.cores,
            "engine": asdict(host.engine) if host.engine else None,
            "engines": [asdict(engine) for engine in self._engines],
            "storing": self._journal.problem or "works",
        }
        return [
            _json("deployments.json", self._deployments()),
            _lines("events.jsonl", await self._journal.events(None, _EVENTS)),
            _json("devices.json", self._tools.registry.devices()),
            _json("settings.json", self._tools.settings),
            _json("versions.json", versions),
            _json("measurements.json", measured),
            _json("launches.json", others),
        ]

    def _measured(self) -> dict[str, Any]:
        store = self._tools.store
        found: dict[str, Sequence[FrozenModel]] = {
            "devices": store.device_measurements(),
            "links": store.link_measurements(),
            "lessons": store.lessons(),
        }
        return {
            name: [each.model_dump(mode="json") for each in all_] for name, all_ in found.items()
        }

    # -- logs --------------------------------------------------------------------------------

    async def _logs(self, record: LaunchRecord | None) -> tuple[list[_File], list[str]]:
        """Those that there are, and a line about each other one."""
        found: list[_File] = []
        missing: list[str] = []
        for process, path in self._logs_of_host(record):
            text = await asyncio.to_thread(_end_of, path)
            if text is None:
                missing.append(f"log of {process}: {path.name} is gone, or cannot be read")
            else:
                found.append(_File(f"logs/{_safe(path.name)}", text))
        found.append(_File("logs/supervisor.log", self._own_log.text()))
        names = {device.id: device.name for device in self._tools.registry.devices()}
        wanted = dict.fromkeys(record.plan.agent_ids if record else names)
        answers = await asyncio.gather(*(self._worker_log(agent_id) for agent_id in wanted))
        for agent_id, answer in zip(wanted, answers, strict=True):
            name = names.get(agent_id, agent_id)
            if isinstance(answer, _File):
                found.append(_File(f"logs/{_safe(name)}-{answer.path}", answer.text))
            else:
                missing.append(f"log of the rpc-server of {name}: {answer}")
        return found, missing

    def _logs_of_host(self, record: LaunchRecord | None) -> Iterable[tuple[str, Path]]:
        if record is not None and record.log_path:
            yield "llama-server", Path(record.log_path)
        if record is not None and record.link_log_path:
            yield "the links", Path(record.link_log_path)
        logs = (self._tools.main_host.folder / "logs").glob("agent*.log")
        for path in sorted(logs, key=lambda path: path.stat().st_mtime)[-1:]:
            yield "the agent beside us", path

    async def _worker_log(self, agent_id: AgentId) -> _File | str:
        """The log with its name, or why there is none."""
        try:
            async with asyncio.timeout(_AGENT_S):
                agent = self._tools.registry.agent(agent_id)
                chunk = await agent.log(-1)
                end = int(str(chunk["offset"]))
                start = offset = max(end - _LOG_BYTES, 0)
                text = ""
                while offset < end:  # an agent sends a piece of it at a time
                    chunk = await agent.log(offset)
                    if int(str(chunk["offset"])) <= offset:
                        break
                    text, offset = text + str(chunk["text"]), int(str(chunk["offset"]))
        except TimeoutError:
            return f"its agent did not answer within {_AGENT_S:g} s"
        except ProjectError as exc:
            return str(exc)
        except (KeyError, ValueError):
            return "its agent sent what we cannot read"
        text = _whole_lines(text) if start else text
        return _File(_safe(str(chunk.get("file", ""))), text) if text else "there is none yet"


def _private(inherited: Mapping[str, str], secrets: Sequence[str]) -> Private:
    homes = tuple(home for home in (inherited.get("HOME", ""),) if home)
    users = {inherited.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
    users |= {PurePosixPath(h).name for h in homes if PurePosixPath(h).parent.name in _HOMES}
    return Private((*secrets, *secrets_of(inherited)), homes, tuple(sorted(users)))


def _readme(record: LaunchRecord | None, at: str, missing: Sequence[str]) -> _File:
    subject = "no launch: there was none yet"
    if record is not None:
        end = f": {record.reason}" if record.reason else ""
        subject = f"launch {record.id} of {record.deployment}, {record.outcome}{end}"
    text = _README.format(
        version=__version__,
        at=at,
        subject=subject,
        events=_EVENTS,
        log_mib=_LOG_BYTES >> 20,
        missing="\nNot in it:\n" + "".join(f"- {line}\n" for line in missing) if missing else "",
    )
    return _File("README.txt", text)


def _json(path: str, value: FrozenModel | Sequence[FrozenModel] | Mapping[str, Any]) -> _File:
    plain: Any = value
    if isinstance(value, FrozenModel):
        plain = value.model_dump(mode="json")
    elif not isinstance(value, Mapping):
        plain = [each.model_dump(mode="json") for each in value]
    return _File(path, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def _lines(path: str, events: Sequence[EventRecord]) -> _File:
    return _File(path, "".join(f"{event.model_dump_json()}\n" for event in events))


def _end_of(path: Path) -> str | None:
    if not path.is_file():
        return None
    text, end = read_from(path, -1, _LOG_BYTES)
    return _whole_lines(text) if end > _LOG_BYTES else text


def _whole_lines(text: str) -> str:
    """Without the first line, of which a part was cut off: half a secret shows by nothing."""
    return text.partition("\n")[2]


def _safe(name: str) -> str:
    """A name that is one part of a path anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "unnamed"


def _seconds(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp())


def _packed(folder: str, files: Sequence[_File], private: Private, at_s: int) -> bytes:
    """A tar.gz of masked files in one folder, the most telling first; what is too long is cut."""
    packed = io.BytesIO()
    left_bytes = _MOST_BYTES
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=at_s) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for file in files:
            data = mask(file.text, private).encode(errors="replace") if left_bytes else b""
            data = data[max(len(data) - left_bytes, 0) :]
            left_bytes -= len(data)
            member = tarfile.TarInfo(f"{folder}/{mask(file.path, private)}")
            member.size, member.mtime, member.mode = len(data), at_s, 0o644
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()
