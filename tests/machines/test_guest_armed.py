"""A real machine that is armed before its process is known: what is there then, what the process finds, what counts."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import asyncssh
import pytest

from orchestrator.domain.outcome import DiskFull, Exited, OutOfMemory, TimedOut
from orchestrator.domain.task import TraceProfile
from orchestrator.guest import (
    TRACE_PATH,
    AlreadyStarted,
    Arming,
    LaunchFailed,
    Started,
    VmRestarted,
    require,
    require_sealed,
)
from orchestrator.trace.command import traced
from orchestrator.trace.parse import Call, Parser
from tests.guest_ends import Entry, Sinks
from tests.machines.real_guests import MIB, Boot, as_root, launch, reached

ARMING = Arming.of(launch("x", memory_bytes=300 * MIB))


# What the process of an armed unit has: no descriptor but its three, no way to what starts and ends it.
LOOK = """
for each in /proc/self/fd/*; do echo "$each $(readlink $each)"; done | grep -v 'fd/[012] ' | grep ' .'
for name in go launch ready timer exit token armed lock stdout.state; do
    for path in /run/mayfly-task/$name /proc/1/root/run/mayfly-task/$name; do
        if (: >$path) 2>/dev/null || cat $path 2>/dev/null; then echo "GOT AT $path"; fi
    done
done
rm -rf /run/mayfly-task /var/lib/mayfly-task; ls /run/mayfly-task /var/lib/mayfly-task
(echo 1 >/sys/fs/cgroup/system.slice/mayfly-task.service/cgroup.kill) && echo KILLED
(echo max >/sys/fs/cgroup/system.slice/mayfly-task.service/memory.max) && echo RAISED
cat /task/in/late; env | grep -c .
"""


async def test_an_armed_machine_is_fresh_and_what_starts_it_is_out_of_reach_of_the_process(boot: Boot) -> None:
    machine, sinks = boot("sealed"), Sinks()
    async with reached(machine) as first:
        facts, probes = await first.make_ready(ARMING)
        require(facts)
        require_sealed(probes)
    async with reached(machine) as guest:  # the first one's connection, and its channel, are gone
        assert await guest.resume(launch("x")) is Started.NEVER
        require((await guest.make_ready(ARMING))[0])
        await guest.stage_in([Entry("late", b"staged in later\n")])
        await guest.check()
        mine = launch("sh", "-c", LOOK, token="mine.1")
        await guest.start(mine)
        await guest.start(mine)
        with pytest.raises(AlreadyStarted):
            await guest.start(launch("true", token="mine.2"))
        outcome, usage = await guest.follow(*sinks)
        assert [unmet.name for unmet in (await guest.facts()).unmet] == ["fresh"]
    assert outcome == Exited(0), sinks.stderr.data
    assert sinks.stdout.data == b"staged in later\n8\n", sinks.stderr.data
    assert usage.cpu_seconds and usage.memory_peak_bytes


@pytest.mark.parametrize("profile", [TraceProfile.AUDIT, TraceProfile.FULL])
async def test_the_trace_begins_with_the_process_whatever_it_was_armed_for(boot: Boot, profile: TraceProfile) -> None:
    sinks = Sinks()
    async with reached(boot("sealed")) as guest:
        await guest.arm(ARMING)
        words = traced(profile, output=TRACE_PATH)
        await guest.start(launch("sh", "-c", "echo 1; exit 3", trace=words))
        assert (await guest.follow(*sinks))[0] == Exited(3)
        assert guest.cut == ()
    parser = Parser()
    calls = [what for _, _, what in parser.feed(sinks.trace.text) if isinstance(what, Call)]
    assert {call.name for call in calls[:2]} == {"execve"}
    assert calls[1].arguments.startswith(b'"/usr/bin/sh", ["sh", "-c", "echo 1; exit 3"]')
    assert sinks.trace.text.endswith(b"+++ exited with 3 +++\n")
    assert parser.unread == 0
    assert ("write" in {call.name for call in calls}) is (profile is TraceProfile.FULL)


async def test_the_time_of_a_process_begins_with_its_start(boot: Boot) -> None:
    async with reached(boot("sealed")) as guest:
        await guest.arm(ARMING)
        until = time.monotonic() + 4
        while time.monotonic() < until:  # it is armed for longer than the process may run
            await guest.check()
        await guest.start(launch("sh", "-c", "sleep 2; exec sleep 60", timeout_seconds=4))
        assert (await guest.follow(*Sinks()))[0] == TimedOut(4)


async def test_a_limit_below_that_of_the_arming_holds(boot: Boot) -> None:
    async with reached(boot("sealed")) as guest:
        await guest.arm(ARMING)
        await guest.start(launch("python3", "-c", "bytearray(200 << 20)", memory_bytes=128 * MIB))
        assert (await guest.follow(*Sinks()))[0] == OutOfMemory(128 * MIB)


async def test_a_limit_above_that_of_the_arming_is_given(boot: Boot) -> None:
    async with reached(boot("sealed")) as guest:
        await guest.arm(Arming.of(launch("x", memory_bytes=64 * MIB, processes=1)))
        await guest.start(launch("sh", "-c", "python3 -c 'bytearray(200 << 20)' & wait $!", memory_bytes=300 * MIB))
        assert (await guest.follow(*Sinks()))[0] == Exited(0)


async def test_one_that_restarted_while_armed_is_given_to_nobody(boot: Boot) -> None:
    machine = boot("sealed")
    async with reached(machine) as guest:
        boot_id = (await guest.make_ready(ARMING))[0].boot_id
        with suppress(asyncssh.Error, OSError):
            await as_root(machine, "echo 1 >/proc/sys/kernel/sysrq; echo b >/proc/sysrq-trigger; sleep 60")
        with pytest.raises(VmRestarted):
            await guest.check()
        with pytest.raises(VmRestarted):
            await guest.start(launch("true"))
        facts, _ = await guest.make_ready(ARMING)
        assert facts.boot_id != boot_id
        assert [unmet.name for unmet in facts.unmet] == ["fresh"]


async def test_a_unit_that_ended_while_armed_is_no_process(boot: Boot) -> None:
    machine = boot("sealed")
    async with reached(machine) as guest:
        await guest.arm(ARMING)
        await as_root(machine, "systemctl stop mayfly-task")
        with pytest.raises(LaunchFailed, match="not there any more"):
            await guest.start(launch("true"))


async def test_a_full_disk_is_said_when_it_is_armed_and_does_not_keep_an_armed_one_from_starting(boot: Boot) -> None:
    fill = "rm -f /fill; cat /dev/zero >/fill 2>/dev/null || sync"
    machine = boot("sealed")
    async with reached(machine) as guest:
        await guest.arm(ARMING)
        await as_root(machine, fill)
        sinks = Sinks()
        await guest.start(launch("sh", "-c", "exit 3"))
        match (await guest.follow(*sinks))[0]:
            case DiskFull("the disk", _, 3):
                pass
            case other:
                pytest.fail(f"ended with {other}")
        assert b"execve" in sinks.trace.text
    machine = boot("sealed")
    async with reached(machine) as guest:
        await as_root(machine, fill)
        facts, _ = await guest.make_ready(ARMING)
        assert [unmet.name for unmet in facts.unmet] == ["free disk"]
        assert not guest.armed
        with pytest.raises(LaunchFailed, match="No space left"):
            await guest.start(launch("true"))


async def test_two_that_arm_at_once_find_one_unit(boot: Boot) -> None:
    machine = boot("sealed")
    async with reached(machine) as one, reached(machine) as two:
        await asyncio.gather(one.arm(ARMING), two.arm(ARMING))
        started = await asyncio.gather(
            one.start(launch("sh", "-c", "echo one", token="one")),
            two.start(launch("sh", "-c", "echo two", token="two")),
            return_exceptions=True,
        )
        [refused] = [each for each in started if each is not None]
        assert isinstance(refused, AlreadyStarted)
        winner, word = (one, b"one\n") if started[0] is None else (two, b"two\n")
        sinks = Sinks()
        assert (await winner.follow(*sinks))[0] == Exited(0)
        assert sinks.stdout.data == word
