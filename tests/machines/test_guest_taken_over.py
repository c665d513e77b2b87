"""A process in a real machine whose first client is killed: another, which knows only the way to the machine and the
launch, goes on with it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import asyncssh
import pytest

from orchestrator.artifacts import Artifacts, AttemptLogs
from orchestrator.domain.outcome import Exited, Lost, Usage
from orchestrator.guest import AlreadyStarted, Guest, Launch, Started, VmRestarted
from tests.guest_ends import CLIENT, HOST, MemoryOutputs, Sinks
from tests.machines.real_guests import MIB, Boot, Machine, launch, reached

ROOT = Path(__file__).resolve().parents[2]
TASK = "01m7yqqza69eqn6t"

FIRST = """
import asyncio, json, sys
from pathlib import Path
from orchestrator.artifacts import Artifacts
from orchestrator.domain.seal import Seal
from orchestrator.guest import Launch, connect

async def main(address, port, host_key, client_key, launch, store):
    launch["seal"] = Seal(**launch["seal"])
    logs = Artifacts(Path(store)).attempt("01m7yqqza69eqn6t", 1)
    guest = await connect(address, port, host_key=host_key, client_key=client_key, deadline=180)
    print((await guest.resume(Launch(**launch))).name, flush=True)
    await guest.start(Launch(**launch))
    await guest.follow(logs.stdout, logs.stderr, logs.trace)

asyncio.run(main(*json.loads(sys.stdin.read())))
"""

COUNT = """
cat /proc/sys/kernel/random/boot_id; echo pid $$; echo to stderr >&2
i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; sleep 0.2; done
echo {lines} >result; exit 9
"""


def numbered(lines: int) -> list[bytes]:
    return [b"line %d" % number for number in range(1, lines + 1)]


def start_and_be_killed(machine: Machine, wanted: Launch, store: Path, lines: int) -> None:
    """Start it from a process of its own, which is killed once its log has so many lines."""
    command = json.dumps([machine.address, machine.port, HOST.public, CLIENT.private, asdict(wanted), str(store)])
    log = Artifacts(store).log(TASK, 1, "stdout")
    with subprocess.Popen(
        [sys.executable, "-c", FIRST], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdin and first.stdout
        first.stdin.write(command)
        first.stdin.close()
        assert first.stdout.readline() == "NEVER\n"
        while log.read().count(b"\n") < lines:
            assert first.poll() is None
        first.kill()
    assert first.returncode == -9


async def to_the_end(guest: Guest, logs: AttemptLogs) -> tuple[object, Usage]:
    async with asyncio.timeout(120):
        return await guest.follow(logs.stdout, logs.stderr, logs.trace)


async def test_another_process_goes_on_with_one_that_runs(boot: Boot, tmp_path: Path) -> None:
    machine, mine = boot("sealed"), launch("sh", "-c", COUNT.format(lines=60), token=f"{TASK}.1")
    await asyncio.to_thread(start_and_be_killed, machine, mine, tmp_path, 10)
    logs, outputs = Artifacts(tmp_path).attempt(TASK, 1), MemoryOutputs()
    async with reached(machine) as guest:
        assert await guest.resume(mine) is Started.RUNNING
        outcome, usage = await to_the_end(guest, logs)
        await guest.stage_out(await guest.list_outputs(), outputs, limit_bytes=MIB)
        with pytest.raises(AlreadyStarted):
            await guest.resume(launch("true", token=f"{TASK}.2"))
    assert outcome == Exited(9)
    assert usage.cpu_seconds and usage.memory_peak_bytes
    boot_id, pid, *counted = logs.stdout.read().splitlines()
    assert len(boot_id) == 36 and pid.startswith(b"pid ")
    assert counted == numbered(60)
    assert logs.stderr.read() == b"to stderr\n"
    assert logs.trace.read().count(b'execve("/bin/sh"') + logs.trace.read().count(b'execve("/usr/bin/sh"') == 1
    assert logs.trace.read().endswith(b"+++ exited with 9 +++\n")
    assert outputs.files == {"result": b"60\n"}


async def test_another_process_tells_of_one_that_ended_while_nobody_looked(boot: Boot, tmp_path: Path) -> None:
    machine, mine = boot("sealed"), launch("sh", "-c", COUNT.format(lines=20), token=f"{TASK}.1")
    await asyncio.to_thread(start_and_be_killed, machine, mine, tmp_path, 3)
    async with reached(machine) as guest:
        async with asyncio.timeout(60):
            while await guest.resume(mine) is Started.RUNNING:
                pass
        assert await guest.resume(mine) is Started.ENDED
    for _ in range(2):  # and the third as well, if the second is killed
        logs = Artifacts(tmp_path).attempt(TASK, 1)
        async with reached(machine) as guest:
            assert await guest.resume(mine) is Started.ENDED
            outcome, usage = await to_the_end(guest, logs)
        assert outcome == Exited(9)
        assert usage.cpu_seconds and usage.memory_peak_bytes
        assert logs.stdout.read().splitlines()[2:] == numbered(20)


async def test_one_whose_machine_restarted_is_lost_and_is_not_run_again(boot: Boot) -> None:
    """Reset at once: nothing has time to reach the disk by itself."""
    machine, mine = boot("sealed"), launch("sh", "-c", "sleep 600", token=f"{TASK}.1")
    async with reached(machine) as guest:
        before = (await guest.facts()).boot_id
        connection = await asyncssh.connect(
            machine.address,
            machine.port,
            username="root",
            client_keys=[asyncssh.import_private_key(CLIENT.private)],
            known_hosts=([asyncssh.import_public_key(HOST.public)], [], []),
            config=None,
            keepalive_interval=1,
            keepalive_count_max=2,
        )
        async with connection, asyncio.timeout(60):
            button = await connection.create_process(
                "echo 1 >/proc/sys/kernel/sysrq; read _; echo b >/proc/sysrq-trigger"
            )
            await guest.start(mine)
            button.stdin.write("press\n")
            await connection.wait_closed()
    async with reached(machine) as guest:
        assert (await guest.facts()).boot_id != before
        assert await guest.resume(mine) is Started.GONE
        outcome, usage = await guest.follow(*Sinks())
        assert isinstance(outcome, Lost) and "restarted" in outcome.why and usage == Usage()
        with pytest.raises(VmRestarted):
            await guest.start(mine)
