"""The pools of an Ansible inventory: the hosts of its group `pools`.

Ansible itself reads the inventory (`playbooks/pools.yml`), so that group_vars, host_vars, templates and vault mean
what they mean everywhere. That takes about a second, hence a cache keyed by what the inventory's files hold.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.domain.errors import InvalidPool
from orchestrator.domain.pool import Pool
from orchestrator.provisioning.playbook import PlaybookEvent, run_playbook
from orchestrator.provisioning.variables import pool_from
from orchestrator.settings import data_root

_WITHIN_SECONDS = 120.0
_KEPT = TypeAdapter(dict[str, Pool])
_LIVE = (b"plugin:", b"{{", b"{%")  # what an inventory says may then depend on more than its files


async def load_pools(inventory: Path, *, cache: Path) -> dict[str, Pool]:
    """The pools of `inventory` (a file or a folder, as `ansible-inventory -i` takes it), by name.

    `cache` is a folder, made when missing; only checked pools are kept in it, never other variables (a vault's, say).
    Raises InvalidPool naming pool, variable and remedy.
    """
    if not await asyncio.to_thread(inventory.exists):
        raise InvalidPool("inventory", f"{inventory} does not exist", "set MAYFLY_INVENTORY to an Ansible inventory")
    fingerprint = await asyncio.to_thread(_fingerprint, inventory)
    kept = cache / f"pools-{fingerprint}.json" if fingerprint else None
    if kept is not None and (pools := await asyncio.to_thread(_read, kept)):
        return pools
    told: dict[str, Mapping[str, Any]] = {}

    def hear(event: PlaybookEvent) -> None:
        if event.kind == "runner_on_ok" and isinstance(event.result.get("msg"), Mapping):
            told[event.host] = event.result["msg"]

    playbook = data_root() / "playbooks" / "pools.yml"
    result = await run_playbook(playbook, inventory, within=_WITHIN_SECONDS, on_event=hear)
    for failure in result.failed:
        raise InvalidPool(f"pool {failure.host}", failure.message, "ansible-inventory --host shows its variables")
    if not result.succeeded:
        raise InvalidPool(
            "inventory", f"no pool can be read from {inventory}: {result.explain()}", "its group pools needs a host"
        )
    pools = {name: pool_from(name, told[name]) for name in sorted(told)}
    if kept is not None:
        await asyncio.to_thread(_keep, kept, pools)
    return pools


def _fingerprint(inventory: Path) -> str:
    """A hash of all that the pools depend on; "" when that is more than files (a script, a plugin, a template)."""
    digest = hashlib.sha256()
    sources = (Path(__file__).parent, data_root() / "playbooks" / "pools.yml", data_root() / "ansible.cfg")
    for name in ("ANSIBLE_CONFIG", "ANSIBLE_VAULT_PASSWORD_FILE", "ANSIBLE_INVENTORY_ENABLED"):
        digest.update(f"{name}={os.environ.get(name, '')}\0".encode())
    for source in sources:
        for path in _files(source):
            digest.update(path.read_bytes() if path.suffix != ".pyc" else b"")
    for path in _inventory_files(inventory):
        content = path.read_bytes()
        if os.access(path, os.X_OK) or any(mark in content for mark in _LIVE):
            return ""
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def _inventory_files(inventory: Path) -> Iterator[Path]:
    """The inventory, and the group_vars and host_vars beside it when it is a single file."""
    yield from _files(inventory)
    if inventory.is_file():
        for name in ("group_vars", "host_vars"):
            yield from _files(inventory.parent / name)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(entry for entry in path.rglob("*") if entry.is_file())
    elif path.is_file():
        yield path


def _read(kept: Path) -> dict[str, Pool]:
    try:
        return _KEPT.validate_json(kept.read_bytes())
    except (OSError, ValueError):
        return {}


def _keep(kept: Path, pools: Mapping[str, Pool]) -> None:
    """Write the pools in one step; drop what other states of the inventory left."""
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for stale in kept.parent.glob("pools-*.json"):
        stale.unlink(missing_ok=True)
    fresh = kept.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(_KEPT.dump_json(dict(pools)))
    fresh.replace(kept)
