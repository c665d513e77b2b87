"""A full disk, for real: a small file system of its own, mounted in a namespace of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IN_A_SMALL_DISK = """
set -eu
mount -t tmpfs -o size=2m tmpfs "$1"
exec "$2" -c "$3" "$1" "$4"
"""

FILL = """
import asyncio, hashlib, json, os, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from orchestrator.artifacts import Artifacts
from orchestrator.domain.errors import HostDiskFull
from orchestrator.domain.task import TaskSpec
from orchestrator.store import Store

disk = Path(sys.argv[1])
artifacts = Artifacts(disk / "artifacts")
told = {}

async def tell(name, work):
    try:
        await work
        told[name] = "no error"
    except HostDiskFull as full:
        told[name] = f"{full.reason}: {full}"

async def outputs(attempt, data):
    async with attempt.outputs() as sink:
        class File: path, mode = "out", 0o600
        writer = await sink.open(File)
        await writer.write(data)
        await writer.commit(hashlib.sha256(data).hexdigest())

async def export(target):
    artifacts.export("t", 1, target)

async def main():
    attempt = artifacts.attempt("t", 1)
    await outputs(attempt, os.urandom(600_000))
    store = await Store.open(f"sqlite:///{disk / 'mayfly.db'}")
    await attempt.stdout.write(b"before")
    await tell("input", asyncio.to_thread(artifacts.read_tree, Path(sys.argv[2])))
    await tell("output", outputs(artifacts.attempt("t", 2), os.urandom(4_000_000)))
    await tell("log", attempt.stdout.write(b"x" * 4_000_000))
    told["log kept"] = artifacts.log("t", 1, "stdout").read().decode()
    told["log offset"] = attempt.stdout.offset
    with open(disk / "ballast", "wb", buffering=0) as ballast:
        try:
            while ballast.write(b"x" * 4096):
                pass
        except OSError:
            pass
    await tell("results", export(disk / "results"))
    spec = TaskSpec(pool="p", command=("x" * 100_000,))
    now = datetime.now(UTC)
    async def submit():
        for _ in range(100):
            await store.tasks.submit(spec, now=now, deadline_at=now + timedelta(days=1))
    await tell("database", submit())
    before = len(await store.tasks.list(limit=1000))
    (disk / "ballast").unlink()
    await store.tasks.submit(TaskSpec(pool="p", command=("true",)), now=now, deadline_at=now + timedelta(days=1))
    told["works again"] = len(await store.tasks.list(limit=1000)) == before + 1
    await attempt.stdout.write(b" after")
    told["log then"] = artifacts.log("t", 1, "stdout").read().decode()
    told["left"] = sorted(p.name for p in (disk / "artifacts" / "tmp").iterdir()) + [
        p.name for p in disk.iterdir() if p.name.startswith((".mayfly", "results"))
    ]
    await store.close()
    print(json.dumps(told))

asyncio.run(main())
"""


@pytest.fixture
def namespace() -> list[str]:
    """The command in front of those that may mount."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody have a namespace of their own")
    return command


def test_a_full_disk_is_told_as_one_and_nothing_half_done_stays(tmp_path: Path, namespace: list[str]) -> None:
    disk, large = tmp_path / "disk", tmp_path / "large"
    disk.mkdir()
    large.write_bytes(bytes(8_000_000))
    shell = ["sh", "-c", IN_A_SMALL_DISK, "sh", str(disk), sys.executable, FILL, str(large)]
    run = subprocess.run([*namespace, *shell], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    for name in ("input", "output", "log", "results", "database"):
        assert told[name].startswith("host_disk_full: no space left"), (name, told[name])
    assert (told["log kept"], told["log offset"]) == ("before", 6)
    assert told["log then"] == "before after"
    assert told["works again"]
    assert told["left"] == []
