"""The cloud's state on disk: one SQLite file, one table per pool, one JSON document per object.

Objects are kept in memory too, as a daemon that owns its database may; whoever changes one saves it in the same call,
under the cloud's lock. What was saved goes to disk in one transaction, at the next `flush`: before a call is answered,
and some hundredths of a second after a driver moved a VM by itself. So a killed process forgets nothing that anybody
was told. An id is never given twice, also not after a restart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
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
        self._made: dict[int, dict[Callable[[E], str], str]] = {}
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
        self.touch(thing.oid)
        self._store.changed(self, thing.oid)

    def delete(self, oid: int) -> None:
        self._objects.pop(oid, None)
        self.touch(oid)
        self._store.changed(self, oid)

    def touch(self, oid: int) -> None:
        """Forget what was made of an object: something changed that need not be on disk at once."""
        self._made.pop(oid, None)

    def made(self, thing: E, make: Callable[[E], str]) -> str:
        """What `make` makes of an object, kept until it is saved or touched."""
        kept = self._made.setdefault(thing.oid, {})
        if (text := kept.get(make)) is None:
            text = kept[make] = make(thing)
        return text

    def write(self, oid: int) -> None:
        """To disk: for `Store.flush`."""
        thing = self._objects.get(oid)
        if thing is None:
            self._store.execute(f"DELETE FROM {self._table} WHERE id = ?", (oid,))  # noqa: S608 - as above
        else:
            self._store.execute(self._insert, (oid, json.dumps(thing, separators=(",", ":"), default=_fields)))


def _fields(thing: Any) -> dict[str, Any]:
    """Of a dataclass, one level deep: dataclasses.asdict copies all that is below, and takes longer than JSON does."""
    return {each.name: getattr(thing, each.name) for each in dataclasses.fields(thing)}


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
        self._dirty: dict[tuple[Pool[Any], int], None] = {}
        self._next: dict[str, int] = {}
        self._given: set[str] = set()
        self.execute("PRAGMA journal_mode=WAL")
        # A commit survives the death of this process; the last ones may be lost when the machine itself loses power.
        self.execute("PRAGMA synchronous=NORMAL")
        self.execute("CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, next INTEGER NOT NULL)")
        self._next.update(dict(self.execute("SELECT name, next FROM counter")))
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
        """Under the cloud's lock."""
        given = self._next.get(name, first)
        self._next[name] = given + 1
        self._given.add(name)
        return given

    def changed(self, pool: Pool[Any], oid: int) -> None:
        """Under the cloud's lock: to be written by the next `flush`."""
        self._dirty[pool, oid] = None

    def flush(self) -> None:
        """Under the cloud's lock: write what was saved since the last time, all of it or nothing. Raises
        sqlite3.Error; what could not be written is tried again by the next."""
        if not self._dirty and not self._given:
            return
        self.execute("BEGIN IMMEDIATE")
        try:
            for pool, oid in self._dirty:
                pool.write(oid)
            for name in self._given:
                self.execute("INSERT OR REPLACE INTO counter (name, next) VALUES (?, ?)", (name, self._next[name]))
            self.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                self.execute("ROLLBACK")
            raise
        self._dirty.clear()
        self._given.clear()

    def close(self) -> None:
        """Without a flush: see there."""
        with self._lock:
            self._database.close()
