"""How a process is traced in a real machine, and what is told of it when it is not, or not wholly."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.domain.outcome import Exited, Outcome, Signaled
from orchestrator.domain.task import TraceProfile
from orchestrator.guest import TRACE_PATH
from orchestrator.trace.command import traced
from tests.guest_ends import Sinks
from tests.machines.real_guests import Boot, as_root, launch, reached

UNTRACED = traced(TraceProfile.NONE, output=TRACE_PATH)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("id -un; pgrep strace; echo to stderr >&2; exit 7", Exited(7)),
        ("id -un; echo to stderr >&2; sleep 600 & kill -KILL $$", Signaled("KILL")),
        ("id -un; echo to stderr >&2; exec /nowhere", Exited(127)),
    ],
)
async def test_without_a_tracer_its_end_is_told_as_truly(boot: Boot, script: str, outcome: Outcome) -> None:
    sinks = Sinks()
    async with reached(boot("sealed")) as guest:
        await guest.start(launch("sh", "-c", script, trace=UNTRACED))
        ended, usage = await guest.follow(*sinks)
    assert ended == outcome
    assert sinks.stdout.data == b"task\n"
    assert sinks.stderr.data.startswith(b"to stderr\n")
    assert usage.cpu_seconds
    assert (sinks.trace.data, guest.cut) == (b"", ())
    assert (guest.tracing.fast_path, guest.tracing.detail_bytes, guest.tracing.lost) == (None, 0, "")


async def test_only_what_is_recorded_stops_the_process(boot: Boot) -> None:
    sinks = Sinks()
    async with reached(boot("sealed")) as guest:
        await guest.start(launch("sh", "-c", "exec 3</etc/passwd; test -e /etc"))
        assert (await guest.follow(*sinks))[0] == Exited(0)
    assert guest.tracing.fast_path is True
    assert guest.tracing.detail_bytes == len(sinks.trace.text)
    assert (guest.tracing.used, guest.tracing.lost, guest.tracing.warnings) == ((), "", "")
    assert b'"/etc/passwd", O_RDONLY) = 3</etc/passwd>\n' in sinks.trace.text


async def test_what_the_tracer_says_itself_is_not_the_process_that_says_it(boot: Boot) -> None:
    """strace falls back from its fast path when all calls are to be recorded, and says so."""
    words = [*traced(TraceProfile.FULL, output=TRACE_PATH)[:-1], "--seccomp-bpf", "--"]
    sinks = Sinks()
    async with reached(boot("sealed")) as guest:
        await guest.start(launch("sh", "-c", "echo mine >&2", trace=tuple(words)))
        assert (await guest.follow(*sinks))[0] == Exited(0)
    assert sinks.stderr.data == b"mine\n"
    assert guest.tracing.fast_path is False
    assert "no syscalls to filter" in guest.tracing.warnings


CALLS = "import os\nfor n in range(3000): os.close(os.open('/', 0))"


async def test_past_the_bound_calls_are_counted_and_the_disk_holds_no_more(boot: Boot) -> None:
    sinks, machine = Sinks(), boot("sealed")
    async with reached(machine) as guest:
        await guest.start(launch("python3", "-ISc", CALLS, max_log_bytes=50_000))
        assert (await guest.follow(*sinks))[0] == Exited(0)
        size = await as_root(machine, "stat -c %s /var/lib/mayfly-task/trace")
    assert guest.tracing.cut and guest.tracing.lost == ""
    assert guest.cut == ("trace",)
    assert int(size) == len(sinks.trace.data) < 50_000
    opened = sinks.trace.text.count(b', "/", O_RDONLY|O_CLOEXEC)')
    assert 0 < opened < 3000
    assert opened + guest.tracing.counts_after_cut["openat"] == 3000


async def test_a_tracer_that_root_kills_is_missed(boot: Boot) -> None:
    sinks, machine = Sinks(), boot("sealed")
    async with reached(machine) as guest:
        await guest.start(launch("sh", "-c", "echo begun; sleep 5; exit 3"))
        following = asyncio.create_task(guest.follow(*sinks))
        while not (sinks.stdout.data or following.done()):
            await asyncio.sleep(0.01)
        await as_root(machine, "kill -KILL $(pgrep -x strace)")
        assert (await following)[0] == Exited(3)
    assert guest.tracing.lost == "the tracer ended before the process did"
    assert guest.cut == ("trace",)
    assert b'execve("/usr/bin/sh", ["sh", "-c"' in sinks.trace.text
