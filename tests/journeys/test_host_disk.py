"""The disk of this machine, full or in disorder, while a task runs: a verdict all the same, and no machine left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskState
from tests.journeys.house import ON_A_SMALL_DISK, House

ROOT = Path(__file__).parents[2]

FILL = """
import asyncio, json, sys
from pathlib import Path
from tests.journeys.house import make_house

async def main():
    async with make_house(Path(sys.argv[1])) as house:
        told = []
        impatient = house.with_pool(staging_timeout_seconds=1.0)
        for script in ("echo before; flood 4000000; hang", "echo part > part.txt; write big 4000000", "echo small"):
            task = await house.submit(script, outputs=("*",) if "big" in script else ())
            done = await house.run(task, impatient)
            told.append([done.state, done.reason, done.exit_code, len(house.log(task, "stdout")), house.outputs(task)])
            for log in (house.artifacts.root / "attempts").rglob("stdout"):
                log.unlink()
    print(json.dumps(told))

asyncio.run(main())
"""


def test_a_full_disk_while_logs_or_outputs_come_in(tmp_path: Path) -> None:
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody have a namespace of their own")
    shell = ["sh", "-c", ON_A_SMALL_DISK, "sh", str(tmp_path / "home"), sys.executable, FILL]
    run = subprocess.run([*command, *shell], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    logs, outputs, after = json.loads(run.stdout)
    assert logs[:3] == ["FAILED", "host_disk_full", 125]
    assert 0 < logs[3] < 1 << 20
    assert outputs[:3] == ["FAILED", "host_disk_full", 125]
    assert after == ["FINISHED", None, 0, 6, []]


async def test_a_folder_that_cannot_be_written(house: House) -> None:
    (house.artifacts.root).mkdir(exist_ok=True)
    (house.artifacts.root / "attempts").write_text("in the way")
    task = await house.submit("true")
    done = await house.run(task)
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.INTERNAL, 125)
    assert "attempts" in done.message
    assert await house.store.vms.of_task(task.id) == ()


async def test_evidence_that_cannot_be_kept_does_not_hide_the_failure(house: House) -> None:
    task = await house.submit("true")
    house.guests.behave(task, listens=False)
    (house.artifacts.root / "attempts" / task.id / "1" / "console").mkdir(parents=True)
    done = await house.run(task, house.with_pool(boot_timeout_seconds=0.3))
    assert (done.state, done.reason, done.exit_code) == (TaskState.FAILED, Reason.UNREACHABLE, 125)
