"""One process in a guest: started once, followed through dropped connections, its end told truthfully."""

from __future__ import annotations

import asyncio
import threading

import pytest

from orchestrator.domain.errors import ConnectionLost
from orchestrator.domain.outcome import Exited, Lost, Outcome, OutOfMemory, Signaled, TimedOut, Usage
from orchestrator.guest import AlreadyStarted, LaunchFailed, StepFailed, VmRestarted
from tests.guest_ends import Sinks, launch, misbehaving, simulated
from tests.misbehaving_ssh import Meets, drops_after, frame, never_answers, says, stays_after

STARTED = frame(b"a", b"armed") + frame(b"a", b"started")
ENDED = b"result=success\ncode=exited\nstatus=7\nlaunched=yes\ntraced=yes\noom_kill=0\ncut=\n"


@pytest.mark.parametrize(
    ("script", "outcome", "stdout"),
    [
        ("exit 0", Exited(0), b""),
        ("echo a; exit 7", Exited(7), b"a\n"),
        ("nosuch", Exited(127), b""),
        ("echo partial; kill -9 $$", Signaled("KILL"), b"partial\n"),
        ("crash", Signaled("SEGV"), b""),
        ("echo partial; oom", OutOfMemory(1 << 26), b"partial\n"),
        ("flood 3000000", Exited(0), b"x" * 3_000_000),
    ],
)
async def test_an_end_is_told_with_all_that_was_written(script: str, outcome: Outcome, stdout: bytes) -> None:
    async with simulated() as (guest, _):
        sinks = Sinks()
        await guest.start(launch("sh", "-c", script))
        ended, usage = await guest.follow(*sinks)
    assert ended == outcome
    assert sinks.stdout.data == stdout
    assert b"execve" in sinks.trace.data
    assert usage.cpu_seconds == 0.001


async def test_a_process_that_runs_too_long_is_ended_and_one_that_resists_as_well() -> None:
    for script in ("echo partial; sleep 600", "echo partial; hang"):
        async with simulated() as (guest, _):
            sinks = Sinks()
            await guest.start(launch("sh", "-c", script, timeout_seconds=0.2, kill_grace_seconds=0.1))
            assert (await guest.follow(*sinks))[0] == TimedOut(0.2)
            assert sinks.stdout.data == b"partial\n"


async def test_a_stopped_process_ends_and_keeps_its_partial_output() -> None:
    async with simulated() as (guest, _):
        sinks = Sinks()
        await guest.start(launch("sh", "-c", "echo partial; sleep 600"))
        following = asyncio.create_task(guest.follow(*sinks))
        while not sinks.stdout.data:
            await asyncio.sleep(0)
        await guest.stop(5)
        assert (await following)[0] == Signaled("TERM")
        assert sinks.stdout.data == b"partial\n"
        await guest.stop(5)


async def test_what_resists_a_stop_is_killed() -> None:
    async with simulated() as (guest, _):
        await guest.start(launch("hang"))
        await guest.stop(0.1)
        assert (await guest.follow(*Sinks()))[0] == Signaled("KILL")


async def test_a_vm_has_one_process_and_no_second() -> None:
    async with simulated() as (guest, _):
        await guest.start(launch("sleep", "600"))
        with pytest.raises(AlreadyStarted, match="gets no second one"):
            await guest.start(launch("true"))
        assert [r.name for r in (await guest.facts()).unmet] == ["fresh"]


async def test_a_launch_may_be_repeated() -> None:
    async with simulated() as (guest, _):
        same = launch("sh", "-c", "echo once")
        await guest.start(same)
        await guest.start(same)
        sinks = Sinks()
        assert (await guest.follow(*sinks))[0] == Exited(0)
        assert sinks.stdout.data == b"once\n"


async def test_a_dropped_connection_loses_nothing_and_ends_nothing() -> None:
    async with simulated() as (guest, _):
        sinks = Sinks()
        await guest.start(launch("sh", "-c", "echo before; flood 200000; drop; echo between; drop; echo after; exit 5"))
        assert (await guest.follow(*sinks))[0] == Exited(5)
        assert sinks.stdout.data == b"before\n" + b"x" * 200_000 + b"between\nafter\n"


async def test_a_guest_that_does_not_come_back_is_a_lost_connection() -> None:
    async with simulated(reconnect_seconds=0.3) as (guest, far):
        await guest.start(launch("sleep", "600"))
        following = asyncio.create_task(guest.follow(*Sinks()))
        await asyncio.to_thread(far.close)
        with pytest.raises(ConnectionLost, match="did not come back"):
            await following


async def test_a_vm_that_goes_off_is_told_as_lost() -> None:
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    off, followed = threading.Event(), threading.Event()

    def on_poweroff() -> None:
        off.set()
        followed.wait(10)  # the cloud says so once the runner follows, not while it still starts the process
        loop.call_soon_threadsafe(gone.set)

    async with simulated(on_poweroff=on_poweroff, vm_gone=gone) as (guest, _):
        sinks = Sinks()
        await guest.start(launch("sh", "-c", "echo last words; poweroff"))
        following = asyncio.create_task(guest.follow(*sinks))
        await asyncio.sleep(0)
        followed.set()
        assert await following == (Lost("the VM went away while the process ran"), Usage())
        assert off.is_set()


async def test_a_stream_is_bounded_and_the_cut_is_told() -> None:
    async with simulated() as (guest, _):
        sinks = Sinks()
        await guest.start(launch("sh", "-c", "flood 200000; exit 3", max_log_bytes=100_000))
        assert (await guest.follow(*sinks))[0] == Exited(3)
        assert sinks.stdout.data == b"x" * 100_000
        assert guest.cut == ("stdout",)


async def test_arguments_and_variables_arrive_as_they_are() -> None:
    async with simulated() as (guest, _):
        sinks = Sinks()
        odd = ("a b", "$HOME %n", "'\"\\", "é\n", "", "--", "A=1")
        await guest.start(launch("echo", *odd, environment={"X": "1 ' 2\n"}))
        assert (await guest.follow(*sinks))[0] == Exited(0)
        assert sinks.stdout.data == (" ".join(odd) + "\n").encode()


async def test_an_exit_status_that_never_came_is_no_success() -> None:
    """asyncssh gives None for it and raises nothing."""
    async with misbehaving(says(b"", status=None)) as (guest, server):
        with pytest.raises(ConnectionLost, match="dropped 3 times"):
            await guest.facts()
    assert server.connections == 3


async def test_a_stream_that_drops_in_the_middle_goes_on_where_it_stopped() -> None:
    first = drops_after(STARTED + frame(b"o", b"one ") + frame(b"t", b"trace") + frame(b"o", b"half")[:7])
    then = stays_after(frame(b"o", b"two") + frame(b"x", ENDED))
    async with misbehaving([first, then]) as (guest, server):
        sinks = Sinks()
        await guest.start(launch("x"))
        assert (await guest.follow(*sinks))[0] == Exited(7)
    assert sinks.stdout.data == b"one two"
    assert server.asked[1][0] == "mayfly-attend"
    assert server.asked[1][2:5] == ["4", "0", "5"]


async def test_progress_makes_up_for_drops_but_drops_alone_end_it() -> None:
    answers = [drops_after(STARTED), *(drops_after(frame(b"o", b"x")) for _ in range(6)), drops_after(b"")]
    async with misbehaving(answers) as (guest, server):
        sinks = Sinks()
        await guest.start(launch("x"))
        with pytest.raises(ConnectionLost, match="dropped 3 times"):
            await guest.follow(*sinks)
    assert sinks.stdout.data == b"x" * 6
    assert server.connections == 1 + 9


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (frame(b"?", b""), r"a frame of kind b'\?'"),
        (b"o\xff\xff\xff\xff", "a frame of 4294967295 bytes"),
        (frame(b"o", b"x" * 101), "more of a stream than it was asked for"),
        (frame(b"x", b"code=exited\nstatus=0\nlaunched=yes\ntraced=yes\n"), "the exit record cannot be read"),
    ],
)
async def test_what_no_attendant_would_say_is_refused(output: bytes, complaint: str) -> None:
    async with misbehaving(stays_after(STARTED + output)) as (guest, _):
        await guest.start(launch("x", max_log_bytes=100))
        with pytest.raises(StepFailed, match=complaint):
            await guest.follow(*Sinks())


async def test_a_process_that_nobody_knows_of_is_lost() -> None:
    async with misbehaving(stays_after(STARTED + frame(b"n", b"the VM has\x1b restarted"))) as (guest, _):
        await guest.start(launch("x"))
        assert (await guest.follow(*Sinks()))[0] == Lost("the VM has\\x1b restarted")


async def test_systemd_and_strace_are_not_taken_for_the_process() -> None:
    for record, complaint in [
        (b"result=exit-code\ncode=exited\nstatus=226\n", "systemd did not start the process.*226"),
        (b"result=exit-code\ncode=exited\nstatus=1\nlaunched=yes\n", "strace did not start the process"),
    ]:
        async with misbehaving(stays_after(STARTED + frame(b"x", record))) as (guest, _):
            await guest.start(launch("x"))
            with pytest.raises(LaunchFailed, match=complaint):
                await guest.follow(*Sinks())


@pytest.mark.parametrize(
    ("answer", "error", "complaint"),
    [
        (says(frame(b"a", b"gone")), VmRestarted, "has restarted since it was made ready"),
        (
            says(frame(b"a", b"failed systemd would not: \x1b")),
            LaunchFailed,
            r"not start the process: systemd would.*x1b",
        ),
        (says(frame(b"a", b"armed") + frame(b"a", b"failed full")), LaunchFailed, "would not start the process: full"),
        (says(frame(b"a", b"hello")), StepFailed, "answered 'hello' instead of armed"),
        (says(frame(b"a", b"used") + frame(b"a", b"armed")), StepFailed, "answered 'armed' instead of started"),
        (says(frame(b"o", b"x")), StepFailed, "a frame of kind b'o' instead of b'a'"),
        (says(b"", 2, b"sh: syntax error"), StepFailed, r"mayfly-arm .*status 2\): sh: syntax error"),
    ],
)
async def test_a_launch_that_fails_says_why(answer: object, error: type[Exception], complaint: str) -> None:
    async with misbehaving(answer) as (guest, _):  # type: ignore[arg-type]
        with pytest.raises(error, match=complaint):
            await guest.start(launch("x"))


async def test_a_connection_closed_after_login_is_made_anew() -> None:
    meets = [Meets.CLOSED_AFTER_AUTH, Meets.SERVICE]
    async with misbehaving([stays_after(STARTED)], on_connection=meets) as (guest, server):
        await guest.start(launch("x"))
    assert server.connections == 2


async def test_a_guest_that_never_answers_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.guest.wire.STEP_SECONDS", 0.3)
    async with misbehaving(never_answers) as (guest, _):
        with pytest.raises(LaunchFailed, match="did not answer within"):
            await guest.start(launch("x"))


async def test_a_command_too_long_to_be_asked_for_is_refused() -> None:
    async with simulated() as (guest, _):
        with pytest.raises(LaunchFailed, match="too long"):
            await guest.start(launch("echo", "x" * 130_000))


async def test_nothing_can_be_followed_that_was_not_started() -> None:
    async with simulated() as (guest, _):
        with pytest.raises(StepFailed, match="nothing was started"):
            await guest.follow(*Sinks())


async def test_close_is_final_and_may_be_repeated() -> None:
    async with simulated() as (guest, _):
        await guest.close()
        await guest.close()
