"""A process that one connection started, and another, which knows only the way and the launch, takes over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from orchestrator.domain.errors import ConnectionLost
from orchestrator.domain.outcome import Exited, Lost, Signaled, Usage
from orchestrator.guest import AlreadyStarted, Guest, Started, StepFailed
from orchestrator.localcloud.hypervisors.ssh_guest import SimulatedGuest, start_guest
from tests.guest_ends import MemoryOutputs, MemorySink, Sinks, free_port, launch, misbehaving, reach, spec
from tests.misbehaving_ssh import drops_after, frame, says, stays_after

ENDED = b"result=success\ncode=exited\nstatus=7\nlaunched=yes\ntraced=yes\noom_kill=0\ncut=\n"
MINE = "01m7yqqza69eqn6t.1"


@asynccontextmanager
async def machine() -> AsyncIterator[tuple[SimulatedGuest, int]]:
    """A simulated guest, not reached yet."""
    wanted = spec(free_port())
    far = await asyncio.to_thread(start_guest, wanted)
    try:
        yield far, wanted.nics[0].host_port
    finally:
        await asyncio.to_thread(far.close)


@asynccontextmanager
async def reached(port: int) -> AsyncIterator[Guest]:
    guest = await reach(port)
    try:
        yield guest
    finally:
        await guest.close()


async def test_another_goes_on_where_the_first_one_stopped() -> None:
    sinks, outputs = Sinks(), MemoryOutputs()
    script = "echo one; flood 100000; sleep 0.3; echo two; echo 1 > result; exit 5"
    async with machine() as (far, port):
        async with reached(port) as first:
            await first.start(launch("sh", "-c", script, token=MINE))
            following = asyncio.create_task(first.follow(*sinks))
            while not sinks.stdout.data:
                await asyncio.sleep(0)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        async with reached(port) as second:
            assert await second.resume(launch("sh", "-c", script, token=MINE)) is Started.RUNNING
            ended, usage = await second.follow(*sinks)
            await second.stage_out(await second.list_outputs(), outputs, limit_bytes=10)
    assert (ended, usage.cpu_seconds) == (Exited(5), 0.001)
    assert sinks.stdout.data == b"one\n" + b"x" * 100_000 + b"two\n"
    assert sinks.trace.data.count(b"execve") == 1
    assert outputs.files == {"result": b"1\n"}
    assert far.asked.count("mayfly-start") == 1


async def test_one_that_ended_meanwhile_is_told_in_full_and_as_often_as_asked() -> None:
    async with machine() as (_, port):
        async with reached(port) as first:
            await first.start(launch("sh", "-c", "echo a; exit 3", token=MINE))
            await first.follow(*Sinks())
        for _ in range(2):
            async with reached(port) as next_one:
                sinks = Sinks()
                assert await next_one.resume(launch("x", token=MINE)) is Started.ENDED
                assert (await next_one.follow(*sinks))[0] == Exited(3)
                assert sinks.stdout.data == b"a\n"
                assert await next_one.resume(launch("x", token=MINE)) is Started.ENDED


async def test_one_that_is_taken_over_can_be_stopped() -> None:
    async with machine() as (_, port):
        async with reached(port) as first:
            await first.start(launch("sleep", "600", token=MINE))
        async with reached(port) as second:
            await second.resume(launch("sleep", "600", token=MINE))
            following = asyncio.create_task(second.follow(*Sinks()))
            await second.stop(5)
            assert (await following)[0] == Signaled("TERM")


async def test_of_two_that_both_follow_each_gets_everything() -> None:
    """The first one was thought dead, and is not."""
    async with machine() as (_, port), reached(port) as first, reached(port) as second:
        one, two = Sinks(), Sinks()
        await first.start(launch("sh", "-c", "echo a; sleep 0.2; echo b", token=MINE))
        following = asyncio.create_task(first.follow(*one))
        assert await second.resume(launch("x", token=MINE)) is Started.RUNNING
        assert (await second.follow(*two))[0] == (await following)[0] == Exited(0)
        assert one.stdout.data == two.stdout.data == b"a\nb\n"


async def test_what_was_never_started_is_said_and_may_be_started() -> None:
    async with machine() as (far, port), reached(port) as guest:
        mine = launch("sh", "-c", "echo once", token=MINE)
        assert await guest.resume(mine) is Started.NEVER
        with pytest.raises(StepFailed, match="nothing was started"):
            await guest.follow(*Sinks())
        assert "mayfly-start" not in far.asked
        await guest.start(mine)
        assert (await guest.follow(*Sinks()))[0] == Exited(0)


async def test_the_process_of_another_launch_is_not_taken_over() -> None:
    async with machine() as (_, port), reached(port) as guest:
        await guest.start(launch("sleep", "600", token="another.1"))
        with pytest.raises(AlreadyStarted, match="the process of another launch"):
            await guest.resume(launch("sleep", "600", token=MINE))


async def test_one_that_was_gone_with_a_restart_is_lost() -> None:
    restarted = stays_after(frame(b"n", b"the VM has restarted, and the process is gone"))
    async with misbehaving([says(b"gone\n"), restarted]) as (guest, server):
        assert await guest.resume(launch("x", token=MINE)) is Started.GONE
        assert await guest.follow(*Sinks()) == (Lost("the VM has restarted, and the process is gone"), Usage())
    assert [words[:2] for words in server.asked] == [["mayfly-look", MINE], ["mayfly-attend", MINE]]


async def test_a_question_that_drops_is_asked_again() -> None:
    async with misbehaving([drops_after(b"run"), says(b"running\n"), stays_after(frame(b"x", ENDED))]) as (guest, _):
        assert await guest.resume(launch("x", token=MINE)) is Started.RUNNING
        assert (await guest.follow(*Sinks()))[0] == Exited(7)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (says(b"perhaps\x1b\n"), r"answered 'perhaps.*' \(status 0\)"),
        (says(b"", 2, b"sh: broken"), r"answered '' \(status 2\).*sh: broken"),
        (says(b"never\n", 1), r"answered 'never' \(status 1\)"),
    ],
)
async def test_an_answer_that_is_none_is_no_leave_to_start(answer: object, complaint: str) -> None:
    async with misbehaving(answer) as (guest, _):  # type: ignore[arg-type]
        with pytest.raises(StepFailed, match=complaint):
            await guest.resume(launch("x", token=MINE))


async def test_what_the_sinks_hold_is_not_asked_for_again_nor_what_is_over_the_limit() -> None:
    held = Sinks()
    await held.stdout.write(b"12345678")
    await held.trace.write(b"123")
    async with misbehaving([says(b"running\n"), stays_after(frame(b"x", ENDED))]) as (guest, server):
        await guest.resume(launch("x", token=MINE, max_log_bytes=5))
        await guest.follow(*held)
    assert server.asked[1] == ["mayfly-attend", MINE, "5", "0", "3", "5"]


async def test_the_time_that_a_sink_takes_is_not_the_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk holds the sinks up for longer than the guest has to tell the end."""
    monkeypatch.setattr("orchestrator.guest.guest._REPORT_SECONDS", 0.0)
    told = stays_after(frame(b"o", b"a") + frame(b"o", b"b") + frame(b"x", ENDED))
    async with misbehaving([says(b"running\n"), told]) as (guest, _):
        sinks = Sinks()
        sinks.stdout = _Slow(0.5)
        await guest.resume(launch("x", token=MINE, timeout_seconds=0.3, kill_grace_seconds=0.01))
        assert (await guest.follow(*sinks))[0] == Exited(7)
        assert sinks.stdout.data == b"ab"
    async with misbehaving([says(b"running\n"), stays_after(frame(b"o", b"a"))]) as (guest, _):
        await guest.resume(launch("x", token=MINE, timeout_seconds=0.3, kill_grace_seconds=0.01))
        with pytest.raises(ConnectionLost, match="did not say within"):
            await guest.follow(_Slow(0.1), MemorySink(), MemorySink())


class _Slow(MemorySink):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def write(self, data: bytes, /) -> None:
        await asyncio.to_thread(threading.Event().wait, self._seconds)
        await super().write(data)


@pytest.mark.parametrize("token", ["", "a b", "a\n", "a;b", "x" * 129, "a/b", "é"])
def test_what_is_no_token_is_no_launch(token: str) -> None:
    with pytest.raises(ValueError, match="no token"):
        launch("x", token=token)
