"""SQLite: what must survive a crash. One connection, used by one writer at a time."""

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from supervisor.core.entities import (
    AgentId,
    Deployment,
    DeploymentId,
    DeviceChoice,
    EventRecord,
    LaunchId,
    LaunchRecord,
)
from supervisor.core.keys import USAGE_FIELDS, ApiKey
from supervisor.core.lessons import Lesson
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.core.model_settings import ModelSettings
from supervisor.core.request_record import RequestRecord
from supervisor.errors import LaunchUnknown, StoreUnusable

# Each entry brings the schema from its index to the next version; never edit one that was released.
MIGRATIONS = (
    """
    CREATE TABLE agents (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, serial TEXT NOT NULL,
        joined_at TEXT NOT NULL, address TEXT NOT NULL DEFAULT '', rest_port INTEGER NOT NULL
        DEFAULT 0);
    CREATE TABLE join_tokens (
        hash TEXT PRIMARY KEY, expires_at REAL NOT NULL, uses_left INTEGER);
    CREATE TABLE deployments (id TEXT PRIMARY KEY, body TEXT NOT NULL);
    CREATE TABLE launches (id INTEGER PRIMARY KEY, deployment TEXT NOT NULL, body TEXT NOT NULL);
    CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
    """,
    """
    CREATE TABLE measurements (
        agent_id TEXT NOT NULL, ggml_device TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (agent_id, ggml_device, kind));
    """,
    """
    CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);
    CREATE TABLE lessons (agent_id TEXT PRIMARY KEY, body TEXT NOT NULL);
    """,
    """
    CREATE TABLE keys (hash TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
    CREATE TABLE requests (
        id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, deployment TEXT NOT NULL,
        caller TEXT NOT NULL, body TEXT NOT NULL);
    """,
    """
    CREATE TABLE device_choices (agent_id TEXT PRIMARY KEY, body TEXT NOT NULL);
    """,
    """
    CREATE TABLE model_settings (model TEXT PRIMARY KEY, body TEXT NOT NULL);
    """,
)

KEPT_EVENTS = 20_000
"""The newest; a table of about 5 MiB."""

KEPT_REQUESTS = 20_000
"""The newest; a table of about 10 MiB."""

_TOKEN_KEPT_S = 24 * 3600.0
"""After its end, so that who comes a little late hears "expired", not "unknown"."""

_SAVE_DEPLOYMENT = "INSERT OR REPLACE INTO deployments VALUES (?, ?)"
_DELETE_DEPLOYMENT = "DELETE FROM deployments WHERE id = ?"
_SAVE_LAUNCH = "INSERT OR REPLACE INTO launches VALUES (?, ?, ?)"


class Store:
    """Deployments, launches, devices, keys. Methods are short and may be called anywhere."""

    def __init__(self, path: Path) -> None:
        """Open or create the database.

        Raises:
            StoreUnusable: No write permission, a full disk, a foreign file or a newer version.
        """
        self._path = path
        self._lock = threading.Lock()
        with self._translated():
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            # FULL makes every commit reach the disk: a launch record must be there before the
            # process it describes.
            self._db.execute("PRAGMA synchronous = FULL")
            self._migrate()

    def close(self) -> None:
        """Close the connection; everything was committed already."""
        with self._lock:
            self._db.close()

    # -- deployments -------------------------------------------------------------------------

    def save_deployment(self, deployment: Deployment) -> None:
        self._write(_SAVE_DEPLOYMENT, (deployment.id, deployment.model_dump_json()))

    def delete_deployment(self, deployment: DeploymentId) -> None:
        self._write(_DELETE_DEPLOYMENT, (deployment,))

    def deployments(self) -> list[Deployment]:
        rows = self._read("SELECT body FROM deployments ORDER BY id")
        return [Deployment.model_validate_json(body) for (body,) in rows]

    # -- launches ----------------------------------------------------------------------------

    def next_launch_id(self) -> LaunchId:
        """A number that was never given before, even to a launch that left no record."""
        with self._translated(), self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("INSERT OR IGNORE INTO counters VALUES ('launch', 0)")
            self._db.execute("UPDATE counters SET value = value + 1 WHERE name = 'launch'")
            row = self._db.execute("SELECT value FROM counters WHERE name = 'launch'").fetchone()
        return LaunchId(int(row[0]))

    def save_launch(self, record: LaunchRecord) -> None:
        self._write(_SAVE_LAUNCH, (record.id, record.deployment, record.model_dump_json()))

    def launches(self, limit: int = 100) -> list[LaunchRecord]:
        """Newest first."""
        rows = self._read("SELECT body FROM launches ORDER BY id DESC LIMIT ?", (limit,))
        return [LaunchRecord.model_validate_json(body) for (body,) in rows]

    def launch(self, launch_id: LaunchId) -> LaunchRecord:
        """One record.

        Raises:
            LaunchUnknown: There is none with that number.
        """
        rows = self._read("SELECT body FROM launches WHERE id = ?", (launch_id,))
        if not rows:
            raise LaunchUnknown(f"launch {launch_id} was never recorded; see 'supervisor launches'")
        return LaunchRecord.model_validate_json(rows[0][0])

    # -- events ------------------------------------------------------------------------------

    def events(
        self,
        after_id: int | None = None,
        limit: int = 100,
        subject: str | None = None,
        launch_id: LaunchId | None = None,
    ) -> list[EventRecord]:
        """The newest ``limit`` events, or the first ``limit`` after one; always the oldest first.

        Args:
            after_id: Number of the event after which to begin; None: the newest are wanted.
            limit: How many at most.
            subject: Only of this deployment or device.
            launch_id: Only of this launch.
        """
        wanted = ["id > ?"]
        values: list[object] = [after_id or 0]
        for field, value in (("subject", subject), ("launch_id", launch_id)):
            if value is not None:
                wanted.append(f"json_extract(body, '$.{field}') = ?")
                values.append(value)
        order = "DESC" if after_id is None else "ASC"
        where = " AND ".join(wanted)
        rows = self._read(
            f"SELECT id, body FROM events WHERE {where} ORDER BY id {order} LIMIT ?",  # noqa: S608
            (*values, limit),
        )
        if after_id is None:
            rows.reverse()
        found = ((number, EventRecord.model_validate_json(body)) for number, body in rows)
        return [record.model_copy(update={"id": number}) for number, record in found]

    def last_event_id(self) -> int:
        """Number of the newest event that there ever was; 0: none."""
        rows = self._read("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        return int(rows[0][0]) if rows else 0

    def save_together(
        self,
        deployments: Mapping[DeploymentId, Deployment | None],
        launches: Sequence[LaunchRecord],
        events: Sequence[EventRecord],
    ) -> None:
        """All of it, or nothing, in one transaction.

        A deployment that is None is deleted. Events come with their numbers, in order; the oldest
        are forgotten.
        """
        with self._translated(), self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for name, deployment in deployments.items():
                if deployment is None:
                    self._db.execute(_DELETE_DEPLOYMENT, (name,))
                else:
                    self._db.execute(_SAVE_DEPLOYMENT, (name, deployment.model_dump_json()))
            for record in launches:
                values = (record.id, record.deployment, record.model_dump_json())
                self._db.execute(_SAVE_LAUNCH, values)
            for event in events:
                # Writing one again, after a write whose fate was unknown, changes nothing.
                body = event.model_dump_json(exclude={"id"})
                self._db.execute("INSERT OR REPLACE INTO events VALUES (?, ?)", (event.id, body))
            if events:
                too_old = events[-1].id - KEPT_EVENTS
                self._db.execute("DELETE FROM events WHERE id <= ?", (too_old,))

    # -- measurements ------------------------------------------------------------------------

    def save_measurement(self, measured: DeviceMeasured | LinkMeasured) -> None:
        """Keep a measurement in place of the one before it."""
        ggml_device, kind = "", "link"
        if isinstance(measured, DeviceMeasured):
            ggml_device, kind = measured.ggml_device, "device"
        self._write(
            "INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?)",
            (measured.agent_id, ggml_device, kind, measured.model_dump_json()),
        )

    def device_measurements(self) -> list[DeviceMeasured]:
        return [DeviceMeasured.model_validate_json(body) for body in self._measured("device")]

    def link_measurements(self) -> list[LinkMeasured]:
        return [LinkMeasured.model_validate_json(body) for body in self._measured("link")]

    def forget_measurements(self, agent_id: AgentId) -> None:
        """Of a device and of the link to it."""
        self._write("DELETE FROM measurements WHERE agent_id = ?", (agent_id,))

    def _measured(self, kind: str) -> list[str]:
        rows = self._read(
            "SELECT body FROM measurements WHERE kind = ? ORDER BY agent_id, ggml_device", (kind,)
        )
        return [body for (body,) in rows]

    # -- lessons -----------------------------------------------------------------------------

    def save_lesson(self, lesson: Lesson) -> None:
        """Keep what was learned of a device, in place of what was known before."""
        self._write(
            "INSERT OR REPLACE INTO lessons VALUES (?, ?)",
            (lesson.agent_id, lesson.model_dump_json()),
        )

    def lessons(self) -> list[Lesson]:
        """Of all devices of which anything was learned."""
        rows = self._read("SELECT body FROM lessons ORDER BY agent_id")
        return [Lesson.model_validate_json(body) for (body,) in rows]

    def forget_lesson(self, agent_id: AgentId) -> None:
        """Of a device."""
        self._write("DELETE FROM lessons WHERE agent_id = ?", (agent_id,))

    # -- keys --------------------------------------------------------------------------------

    def save_key(self, key_hash: str, key: ApiKey) -> None:
        """Keep a key under the hash of its text, in place of one of the same name or text."""
        self._write(
            "INSERT OR REPLACE INTO keys (hash, name, body) VALUES (?, ?, ?)",
            (key_hash, key.name, key.model_dump_json()),
        )

    def api_keys(self) -> list[tuple[str, ApiKey]]:
        """Hash and key, by name."""
        rows = self._read("SELECT hash, body FROM keys ORDER BY name")
        return [(key_hash, ApiKey.model_validate_json(body)) for key_hash, body in rows]

    def delete_key(self, key_hash: str) -> None:
        self._write("DELETE FROM keys WHERE hash = ?", (key_hash,))

    def save_key_usage(self, keys: Mapping[str, ApiKey]) -> None:
        """What keys were used for, by hash, all or nothing. A key that is gone stays gone."""
        with self._translated(), self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for key_hash, key in keys.items():
                usage = key.model_dump_json(include=set(USAGE_FIELDS))
                self._db.execute(
                    "UPDATE keys SET body = json_patch(body, ?) WHERE hash = ?", (usage, key_hash)
                )

    # -- requests ----------------------------------------------------------------------------

    def save_requests(self, records: Sequence[RequestRecord]) -> None:
        """All of them, or none, in the order in which they ended; the oldest are forgotten."""
        with self._translated(), self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT INTO requests (at, deployment, caller, body) VALUES (?, ?, ?, ?)",
                [(r.at, r.deployment, r.caller, r.model_dump_json()) for r in records],
            )
            self._db.execute(
                "DELETE FROM requests WHERE id <= (SELECT max(id) FROM requests) - ?",
                (KEPT_REQUESTS,),
            )

    def requests(
        self, limit: int = 100, deployment: str | None = None, caller: str | None = None
    ) -> list[RequestRecord]:
        """Newest first, of all or of one deployment or caller."""
        rows = self._read(
            "SELECT body FROM requests WHERE deployment = coalesce(?, deployment)"
            " AND caller = coalesce(?, caller) ORDER BY id DESC LIMIT ?",
            (deployment, caller, limit),
        )
        return [RequestRecord.model_validate_json(body) for (body,) in rows]

    # -- devices -----------------------------------------------------------------------------

    def save_agent(self, agent_id: AgentId, name: str, serial: str, joined_at: str) -> None:
        self._write(
            "INSERT OR REPLACE INTO agents (id, name, serial, joined_at) VALUES (?, ?, ?, ?)",
            (agent_id, name, serial, joined_at),
        )

    def save_agent_address(self, agent_id: AgentId, address: str, rest_port: int) -> None:
        self._write(
            "UPDATE agents SET address = ?, rest_port = ? WHERE id = ?",
            (address, rest_port, agent_id),
        )

    def delete_agent(self, agent_id: AgentId) -> None:
        self._write("DELETE FROM agents WHERE id = ?", (agent_id,))

    def agents(self) -> list[tuple[AgentId, str, str, str, int]]:
        """Id, name, certificate serial, last address and REST port of every joined device."""
        return self._read("SELECT id, name, serial, address, rest_port FROM agents ORDER BY name")

    def save_device_choice(self, choice: DeviceChoice) -> None:
        """Keep what was decided about a device, in place of what was decided before."""
        self._write(
            "INSERT OR REPLACE INTO device_choices VALUES (?, ?)",
            (choice.agent_id, choice.model_dump_json()),
        )

    def device_choices(self) -> list[DeviceChoice]:
        """Of all devices about which anything was decided."""
        rows = self._read("SELECT body FROM device_choices ORDER BY agent_id")
        return [DeviceChoice.model_validate_json(body) for (body,) in rows]

    def forget_device_choice(self, agent_id: AgentId) -> None:
        self._write("DELETE FROM device_choices WHERE agent_id = ?", (agent_id,))

    # -- models ------------------------------------------------------------------------------

    def save_model_settings(self, settings: ModelSettings) -> None:
        """Keep what launches of a model take, in place of what was kept before."""
        self._write(
            "INSERT OR REPLACE INTO model_settings VALUES (?, ?)",
            (settings.model, settings.model_dump_json()),
        )

    def model_settings(self) -> list[ModelSettings]:
        """Of all models that have any, by their names."""
        rows = self._read("SELECT body FROM model_settings ORDER BY model")
        return [ModelSettings.model_validate_json(body) for (body,) in rows]

    def delete_model_settings(self, model: str) -> None:
        self._write("DELETE FROM model_settings WHERE model = ?", (model,))

    # -- join tokens -------------------------------------------------------------------------

    def save_token(
        self, token_hash: str, expires_at_s: float, uses: int | None, *, now_s: float
    ) -> None:
        """Keep a token; those that expired long ago are forgotten."""
        with self._translated(), self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            too_old_s = now_s - _TOKEN_KEPT_S
            self._db.execute("DELETE FROM join_tokens WHERE expires_at < ?", (too_old_s,))
            self._db.execute(
                "INSERT OR REPLACE INTO join_tokens VALUES (?, ?, ?)",
                (token_hash, expires_at_s, uses),
            )

    def spend_token(self, token_hash: str, now_s: float) -> str:
        """Use a token once; returns ``ok``, ``expired``, ``used`` or ``unknown``."""
        with self._translated(), self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            row = self._db.execute(
                "SELECT expires_at, uses_left FROM join_tokens WHERE hash = ?", (token_hash,)
            ).fetchone()
            if row is None:
                return "unknown"
            expires_at_s, uses_left = row
            if expires_at_s <= now_s:
                return "expired"
            if uses_left is not None and uses_left <= 0:
                return "used"
            self._db.execute(
                "UPDATE join_tokens SET uses_left = uses_left - 1 WHERE hash = ?", (token_hash,)
            )
        return "ok"

    # -- plumbing ----------------------------------------------------------------------------

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreUnusable(
                f"{self._path} was written by a newer version (schema {version}, ours is "
                f"{len(MIGRATIONS)}); update this program"
            )
        for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
            self._db.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")

    def _write(self, sql: str, values: tuple[object, ...]) -> None:
        with self._translated(), self._lock:
            self._db.execute(sql, values)

    def _read(self, sql: str, values: tuple[object, ...] = ()) -> list[Any]:
        with self._translated(), self._lock:
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise StoreUnusable(
                f"the database {self._path} cannot be used: {exc}; check free space, permissions, "
                "and that it is ours"
            ) from exc
