"""A disk that is full while a process prints, and empty again: the process goes on, and nothing of it is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ON_A_SMALL_DISK = """
set -eu
mount -t tmpfs -o size=2m tmpfs "$1"
exec "$2" -c "$3" "$1"
"""

FOLLOW = """
import asyncio, json, sys
from pathlib import Path
from orchestrator.artifacts import Artifacts, WhenFull
from tests.guest_ends import launch, simulated

async def main(disk):
    told, ballast = [], disk / "ballast"
    ballast.write_bytes(bytes(1_500_000))

    async def tell(message):
        told.append(message)

    async with simulated() as (guest, far):
        logs = Artifacts(disk / "store").attempt("01m7yqqza69eqn6t", 1, when_full=WhenFull(60, tell))
        await guest.start(launch("sh", "-c", "echo before; flood 1000000; echo after; echo 1 > ran; exit 3"))
        following = asyncio.create_task(guest.follow(logs.stdout, logs.stderr, logs.trace))
        while not told:
            await asyncio.sleep(0.01)
        held = logs.stdout.offset
        lingering = not following.done()
        ballast.unlink()
        ended, _ = await following
        text = logs.stdout.read(0, 1 << 24)
        whole = text == b"before\\n" + b"x" * 1_000_000 + b"after\\n"
        listed = [entry.path for entry in await guest.list_outputs()]
    print(json.dumps([str(ended), held < 1_000_000, lingering, whole, listed, told]))

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_disk_that_is_full_for_a_while_holds_up_the_logs_and_not_the_process(tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody have a namespace of their own")
    shell = ["sh", "-c", ON_A_SMALL_DISK, "sh", str(tmp_path), sys.executable, FOLLOW]
    run = subprocess.run([*command, *shell], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    ended, held_up, lingering, whole, listed, told = json.loads(run.stdout)
    assert ended == "Exited(code=3)"
    assert (held_up, lingering, whole, listed) == (True, True, True, ["ran"])
    assert len(told) == 2
    assert "waiting up to 60 s for space" in told[0] and told[1] == "there is space on this machine again"
