"""A machine that is made ready before anybody knows for what, and is started with one message."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.domain.errors import ConnectionLost, SealBroken
from orchestrator.domain.outcome import Exited
from orchestrator.guest import AlreadyStarted, Arming, LaunchFailed, StepFailed, VmRestarted, require, require_sealed
from tests.guest_ends import Sinks, launch, misbehaving, reach, simulated
from tests.misbehaving_ssh import Answer, Channel, drops_after, frame, never_answers, says, stays_after

ARMING = Arming(memory_bytes=1 << 27, processes=16, trace=("strace", "--"))
FACTS = b"kernel=6.1\nclock=0\nuptime=3.5\nuser=1000:1000\n"
PROBES = b"gateway\t0\tsilence\n"
ARMED, STARTED = frame(b"a", b"armed"), frame(b"a", b"started")
ENDED = frame(b"x", b"result=success\ncode=exited\nstatus=7\nlaunched=yes\ntraced=yes\noom_kill=0\ncut=\n")


async def test_what_is_ready_is_started_with_one_message() -> None:
    async with simulated() as (guest, far):
        facts, probes = await guest.make_ready(ARMING, extra=[("10.0.2.2", 2633)])
        require(facts)
        require_sealed(probes)
        assert guest.armed
        await guest.start(launch("sh", "-c", "echo a; exit 3"))
        assert not guest.armed
        assert (await guest.follow(*Sinks()))[0] == Exited(3)
    assert far.asked == ["mayfly-arm", "mayfly-start"]


async def test_what_is_not_armed_is_armed_by_the_same_request() -> None:
    async with simulated() as (guest, far):
        assert not guest.armed
        await guest.start(launch("true"))
    assert far.asked == ["mayfly-arm", "mayfly-start"]


@pytest.mark.parametrize(
    ("changes", "requests"),
    [
        ({"memory_bytes": 1, "processes": 1, "timeout_seconds": 1.0, "max_log_bytes": 1, "environment": {"A": ""}}, 1),
        ({"trace": ("strace", "-y", "--")}, 2),
        ({"kill_grace_seconds": 1.0}, 2),
    ],
)
async def test_only_another_tracer_or_grace_needs_arming_anew(changes: dict[str, Any], requests: int) -> None:
    async with simulated() as (guest, far):
        await guest.arm(ARMING)
        await guest.start(launch("true", **changes))
        assert (await guest.follow(*Sinks()))[0] == Exited(0)
    assert far.asked == ["mayfly-arm"] * requests + ["mayfly-start"]


async def test_a_seal_that_does_not_hold_is_told_before_anything_goes_in() -> None:
    async with simulated(outbound=True) as (guest, far):
        _, probes = await guest.make_ready(ARMING)
        with pytest.raises(SealBroken):
            require_sealed(probes)
    assert far.asked == ["mayfly-arm"]


async def test_a_used_machine_is_told_by_its_facts_and_gets_no_second_process() -> None:
    async with simulated() as (guest, _):
        await guest.start(launch("true", token="first"))
        facts, _ = await guest.make_ready(ARMING)
        assert [unmet.name for unmet in facts.unmet] == ["fresh"]
        assert not guest.armed
        with pytest.raises(AlreadyStarted):
            await guest.arm(ARMING)
        with pytest.raises(AlreadyStarted):
            await guest.start(launch("true", token="second"))
        await guest.start(launch("true", token="first"))


async def test_arming_may_be_repeated_and_outlives_the_connection_and_who_armed() -> None:
    async with simulated() as (guest, far):
        await guest.arm(ARMING)
        await guest.arm(ARMING)
        await guest.close()
        assert not guest.armed
        second = await reach(far._spec.nics[0].host_port)
        await second.start(launch("sh", "-c", "exit 4"))
        assert (await second.follow(*Sinks()))[0] == Exited(4)
        await second.close()


async def test_a_connection_that_drops_while_armed_is_noticed_and_made_anew() -> None:
    async with simulated() as (guest, far):
        await guest.make_ready(ARMING)
        await guest.check()
        assert guest.connected
        dropped = asyncio.create_task(guest.dropped())
        await asyncio.sleep(0)
        assert not dropped.done()
        await asyncio.to_thread(far.drop_connections)
        await dropped
        assert not guest.connected
        assert not guest.armed
        await guest.check()
        assert guest.armed
        await asyncio.to_thread(far.drop_connections)
        await guest.start(launch("sh", "-c", "exit 5"))
        assert (await guest.follow(*Sinks()))[0] == Exited(5)


async def test_a_machine_that_is_gone_while_armed_is_told() -> None:
    async with simulated(reconnect_seconds=0.3) as (guest, far):
        await guest.arm(ARMING)
        await asyncio.to_thread(far.close)
        with pytest.raises(ConnectionLost):
            await guest.check()
    gone = asyncio.Event()
    async with simulated(vm_gone=gone) as (guest, _):
        await guest.arm(ARMING)
        dropped = asyncio.create_task(guest.dropped())
        await asyncio.sleep(0)
        gone.set()
        await dropped


async def test_nothing_can_be_checked_that_was_not_armed() -> None:
    async with simulated() as (guest, _):
        with pytest.raises(StepFailed, match="nothing was armed"):
            await guest.check()


async def test_one_that_gives_no_sign_of_life_is_asked_over_a_new_connection() -> None:
    async with misbehaving([stays_after(ARMED), stays_after(ARMED)]) as (guest, server):
        await guest.arm(ARMING)
        await guest.check(within=0.2)
        assert guest.armed
    assert server.connections == 2


async def test_one_that_restarted_while_armed_is_found_out() -> None:
    async with misbehaving([drops_after(ARMED), says(frame(b"a", b"gone"))]) as (guest, _):
        await guest.arm(ARMING)
        await guest.dropped()
        with pytest.raises(VmRestarted, match="since it was made ready"):
            await guest.check()


async def test_one_that_was_given_away_is_found_out() -> None:
    async with misbehaving([drops_after(ARMED), says(frame(b"a", b"used"))]) as (guest, _):
        await guest.arm(ARMING)
        await guest.dropped()
        with pytest.raises(AlreadyStarted):
            await guest.check()


async def test_a_message_that_is_not_answered_is_repeated_by_its_token() -> None:
    """The connection drops when the message has arrived: nobody here knows that. Over there the token says it."""
    answers = [hears_and_drops(b"start ", ARMED), stays_after(frame(b"a", b"used") + STARTED + ENDED)]
    async with misbehaving(answers) as (guest, server):
        await guest.arm(ARMING)
        await guest.start(launch("x", token="mine.1"))
        assert (await guest.follow(*Sinks()))[0] == Exited(7)
    assert [words[0] for words in server.asked] == ["mayfly-arm", "mayfly-arm"]


async def test_one_whose_program_was_ended_while_it_waited_is_asked_anew() -> None:
    killed = says(ARMED, 137, b"Killed")
    async with misbehaving([killed, stays_after(frame(b"a", b"armed") + STARTED + ENDED)]) as (guest, server):
        await guest.arm(ARMING)
        await guest.start(launch("x"))
        assert (await guest.follow(*Sinks()))[0] == Exited(7)
    assert [words[0] for words in server.asked] == ["mayfly-arm", "mayfly-arm"]


async def test_of_two_that_start_one_is_refused() -> None:
    async with simulated() as (one, far):
        other = await reach(far._spec.nics[0].host_port)
        await one.arm(ARMING)
        await other.arm(ARMING)
        await one.start(launch("true", token="one"))
        with pytest.raises(AlreadyStarted, match="gets no second one"):
            await other.start(launch("true", token="other"))
        await other.close()
    assert far.asked.count("mayfly-start") == 2


@pytest.mark.parametrize(
    ("answer", "error", "complaint"),
    [
        (says(frame(b"i", FACTS) + frame(b"p", PROBES) + ARMED[:3]), StepFailed, r"mayfly-arm ended in the guest"),
        (says(frame(b"i", b"") + frame(b"p", PROBES) + ARMED), StepFailed, "facts cannot be read"),
        (says(frame(b"i", FACTS) + frame(b"p", b"") + ARMED), StepFailed, "tried nothing"),
        (says(frame(b"i", FACTS) + frame(b"p", b"x\n") + ARMED), StepFailed, "probes cannot be read"),
        (says(frame(b"p", PROBES) + ARMED), StepFailed, r"a frame of kind b'p' instead of b'i'"),
        (says(b"i\xff\xff\xff\xff"), StepFailed, "a frame of 4294967295 bytes"),
        (never_answers, LaunchFailed, "did not answer within"),
    ],
)
async def test_what_is_no_answer_is_refused(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, error: type[Exception], complaint: str
) -> None:
    monkeypatch.setattr("orchestrator.guest.wire.STEP_SECONDS", 1.0)
    async with misbehaving(answer) as (guest, _):
        with pytest.raises(error, match=complaint):
            await guest.make_ready(ARMING)
        assert not guest.armed


async def test_why_it_cannot_be_armed_is_told_by_what_it_lacks_or_else_by_itself() -> None:
    failed = frame(b"a", b"failed systemd-run: No such file or directory")
    async with misbehaving(says(frame(b"i", FACTS) + frame(b"p", PROBES) + failed)) as (guest, _):
        facts, _ = await guest.make_ready(ARMING)
        assert "programs" in [unmet.name for unmet in facts.unmet]
        with pytest.raises(StepFailed, match="instead of b'a'"):
            await guest.arm(ARMING)
    async with simulated() as (_, far):
        text = far.facts().encode()
    async with misbehaving(says(frame(b"i", text) + frame(b"p", PROBES) + failed)) as (guest, _):
        with pytest.raises(LaunchFailed, match="systemd-run: No such file"):
            await guest.make_ready(ARMING)


@pytest.mark.parametrize(
    "changes",
    [{"memory_bytes": 0}, {"processes": 0}, {"kill_grace_seconds": 0.0}, {"kill_grace_seconds": float("inf")}],
)
def test_an_arming_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Arming(**{"memory_bytes": 1, "processes": 1, "trace": (), **changes})


def hears_and_drops(wanted: bytes, answer: bytes) -> Answer:
    """This answer; and when that has been heard, the connection is gone."""

    def act(channel: Channel, words: list[str]) -> None:
        channel.sendall(answer)
        heard = b""
        while wanted not in heard:
            heard += channel.recv(1024)
        channel.get_transport().close()

    return act
