"""Whether a VM's disks are gone, where that can be seen from this machine.

OpenNebula keeps the disks of a VM in `BASE_PATH/ID/disk.N` of the system datastore that its history names. Whoever runs
beside it, or mounts that datastore, can look; anywhere else the path is absent as well, and that says nothing. So what
was seen there while the VM was is looked for after its end; and of a VM whose disks nobody saw, only its own folder, if
that is there, tells that this was the place to look.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.domain.errors import CloudError
from orchestrator.domain.proof import Disks
from orchestrator.opennebula.cache import Cache
from orchestrator.opennebula.client import Client

log = logging.getLogger(__name__)

_KEPT_SECONDS = 60.0
"""For how long datastores are taken to be where they were."""
_ASK_SECONDS = 5.0
"""How long where they are may be asked for: no VM waits longer for its end."""
_FORGOTTEN_SECONDS = 3600.0
_DISK = re.compile(r"disk\.[0-9]+")
_SYSTEM = 1


@dataclass(frozen=True, slots=True)
class _Seen:
    """The names of a VM's disks, and when (monotonic clock) they were seen."""

    folder: Path
    names: tuple[str, ...]
    at: float


@dataclass(slots=True)
class Folders:
    """Looks, and remembers what it saw of VMs that are not DONE yet."""

    client: Client
    _before: dict[int, _Seen] = field(default_factory=dict)
    _paths: Cache[None, Mapping[int, Path]] = field(init=False)

    def __post_init__(self) -> None:
        self._paths = Cache(lambda _: self._read_paths(), _KEPT_SECONDS)

    async def look(self, vm_id: int, datastore: int | None) -> None:
        """Of a VM that is there: what disks it has; of one that is on no host yet, nothing. Raises nothing."""
        if vm_id in self._before or datastore is None or (base := await self._path(datastore)) is None:
            return
        folder = base / str(vm_id)
        if names := await asyncio.to_thread(_disks_in, folder):
            self._before[vm_id] = _Seen(folder, names, time.monotonic())

    async def proof(self, vm_id: int, datastore: int | None) -> Disks:
        """Of a VM that is DONE, or unknown: what is left of its disks. Raises nothing."""
        horizon = time.monotonic() - _FORGOTTEN_SECONDS
        self._before = {each: seen for each, seen in self._before.items() if seen.at > horizon or each == vm_id}
        seen = self._before.pop(vm_id, None)
        if seen is not None:
            left = await asyncio.to_thread(_disks_in, seen.folder)
            return Disks(str(seen.folder), seen.names, left or ())
        if datastore is None:
            return Disks(why_not="OpenNebula names no datastore for them")
        base = await self._path(datastore)
        if base is None:
            return Disks(why_not=f"OpenNebula does not say where datastore {datastore} is")
        names = await asyncio.to_thread(_disks_in, base / str(vm_id))
        if names is None:
            return Disks(str(base / str(vm_id)), why_not="this machine sees no such folder")
        return Disks(str(base / str(vm_id)), left=names)

    async def _path(self, datastore: int) -> Path | None:
        paths, _ = await self._paths.get(None)
        return paths.get(datastore)

    async def _read_paths(self) -> Mapping[int, Path]:
        """Of the system datastores that the account may use. An ordinary account may see none."""
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                pool = await self.client.once("datastorepool.info")
            return {
                int(each.ID): Path(path)
                for each in pool.DATASTORE
                if int(each.TYPE) == _SYSTEM and (path := str(each.BASE_PATH or "")).startswith("/")
            }
        except (CloudError, TimeoutError, AttributeError, TypeError, ValueError) as error:
            log.info("where VMs have their disks cannot be asked: %s", error)
            return {}


def _disks_in(folder: Path) -> tuple[str, ...] | None:
    """None where there is no such folder to be seen."""
    try:
        return tuple(sorted(path.name for path in folder.iterdir() if _DISK.match(path.name)))
    except OSError:
        return None
