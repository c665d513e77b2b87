"""The cloud's state on disk: one SQLite file, one table per pool, one JSON document per object.

Objects are kept in memory too, as a daemon that owns its database may; whoever changes one saves it in the same call,
under the cloud's lock. An id is never given twice, also not after a restart.
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from orchestrator.localcloud import model
from orchestrator.localcloud.refusals import no_such

E = TypeVar("E", bound=model.Entity)


class Pool(Generic[E]):
    """All objects of one class. `first_id` is the first that `allocate` gives (100 above those made at first start)."""

    def __init__(self, store: Store, entity: type[E], first_id: int = 0) -> None:
        self._store = store
        self.entity = entity
        self._table = f"pool_{entity.__name__.lower()}"
        self._first = first_id
        self._objects: dict[int, E] = {}
        store.execute(f"CREATE TABLE IF NOT EXISTS {self._table} (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
        self._insert = (
            f"INSERT INTO {self._table} (id, body) VALUES (?, ?) "  # noqa: S608 - the name of a class of ours
            "ON CONFLICT (id) DO UPDATE SET body = excluded.body"
        )
        rows = store.execute(f"SELECT body FROM {self._table} ORDER BY id")  # noqa: S608 - the name of a class of ours
        for (body,) in rows:
            thing = _restored(entity, json.loads(body))
            self._objects[thing.oid] = thing

    def __iter__(self) -> Iterator[E]:
        """Oldest first."""
        return iter(list(self._objects.values()))

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, oid: int) -> bool:
        return oid in self._objects

    def get(self, oid: int) -> E:
        """Raises Refused 1024."""
        found = self._objects.get(oid)
        if found is None:
            raise no_such(self.entity.kind, oid)
        return found

    def find(self, oid: int) -> E | None:
        return self._objects.get(oid)

    def next_id(self) -> int:
        """A new id; it counts as given even when nothing is saved under it."""
        return self._store.next_id(self._table, self._first)

    def save(self, thing: E) -> None:
        self._objects[thing.oid] = thing
        body = json.dumps(dataclasses.asdict(thing), separators=(",", ":"))
        self._store.execute(self._insert, (thing.oid, body))

    def delete(self, oid: int) -> None:
        self._objects.pop(oid, None)
        self._store.execute(f"DELETE FROM {self._table} WHERE id = ?", (oid,))  # noqa: S608 - as above


def _restored(entity: type[E], data: dict[str, Any]) -> E:
    if entity is model.Network:
        data["ranges"] = [model.AddressRange(**item) for item in data["ranges"]]
    if entity is model.Vm:
        data["history"] = [model.History(**item) for item in data["history"]]
    return entity(**data)


class Store:
    """Every pool of a cloud, over one SQLite file in WAL mode."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self.execute("PRAGMA journal_mode=WAL")
        # A commit survives the death of this process; the last ones may be lost when the machine itself loses power.
        self.execute("PRAGMA synchronous=NORMAL")
        self.execute("CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, next INTEGER NOT NULL)")
        self.users = Pool(self, model.User, 2)
        self.groups = Pool(self, model.Group, 100)
        self.clusters = Pool(self, model.Cluster, 100)
        self.hosts = Pool(self, model.Host)
        self.datastores = Pool(self, model.Datastore, 100)
        self.images = Pool(self, model.Image)
        self.networks = Pool(self, model.Network)
        self.security_groups = Pool(self, model.SecurityGroup, 100)
        self.templates = Pool(self, model.VmTemplate)
        self.vms = Pool(self, model.Vm)

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def next_id(self, name: str, first: int) -> int:
        rows = self.execute(
            "INSERT INTO counter (name, next) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET next = next + 1 RETURNING next",
            (name, first + 1),
        )
        return int(rows[0][0]) - 1

    def close(self) -> None:
        with self._lock:
            self._database.close()
