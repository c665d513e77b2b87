"""What a guest says of itself, and of what it can reach."""

from __future__ import annotations

import pytest

from orchestrator.domain.errors import SealBroken, Unreachable
from orchestrator.guest import StepFailed, require, require_sealed
from tests.guest_ends import misbehaving, simulated
from tests.misbehaving_ssh import drips, floods, never_answers, says

FACTS = b"kernel=6.1\nclock=0\nuptime=3.5\nuser=1000:1000\ndirectory=/task/in:1000:755\ndisk=1:4096\nused=yes\n"


async def test_a_fit_guest_passes() -> None:
    async with simulated() as (guest, _):
        require(await guest.facts())


async def test_what_is_unmet_is_named_with_its_hint() -> None:
    async with misbehaving(says(FACTS)) as (guest, _):
        facts = await guest.facts()
    assert [requirement.name for requirement in facts.unmet] == [
        "programs", "systemd", "cgroup v2", "task directories", "free disk", "clock", "fresh",
    ]  # fmt: skip
    assert facts.disk_free_bytes == 4096
    with pytest.raises(Unreachable, match=r"free disk: 0 MiB free \(at least 128 MiB are needed"):
        require(facts)


async def test_a_slow_answer_is_an_answer() -> None:
    async with misbehaving(drips(FACTS)) as (guest, _):
        assert (await guest.facts()).uptime_seconds == 3.5


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (says(b""), "facts cannot be read"),
        (says(b"clock=now\nuptime=1\n"), "facts cannot be read"),
        (says(FACTS.replace(b"3.5", b"inf")), "a time that is none"),
        (says(FACTS.replace(b"clock=0", b"clock=nan")), "a time that is none"),
        (says(FACTS, 1, b"no \x1b[31m memory\n"), r"status 1\): no \\x1b\[31m memory"),
        (floods, "wrote more than 1048576 bytes"),
    ],
)
async def test_facts_that_are_none_are_refused(answer: object, complaint: str) -> None:
    async with misbehaving(answer) as (guest, _):  # type: ignore[arg-type]
        with pytest.raises(StepFailed, match=complaint):
            await guest.facts()


async def test_a_step_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.guest.wire.STEP_SECONDS", 0.2)
    async with misbehaving(never_answers) as (guest, _):
        with pytest.raises(StepFailed, match=r"did not end mayfly-stop within 0\.3 s"):
            await guest.stop(0.1)


async def test_a_sealed_guest_reaches_nothing() -> None:
    async with simulated() as (guest, _):
        probes = await guest.probe_seal([("10.0.2.2", 2633)])
    assert probes
    assert not any(probe.reached for probe in probes)
    require_sealed(probes)


async def test_a_guest_that_reaches_something_breaks_its_seal() -> None:
    async with simulated(outbound=True) as (guest, _):
        probes = await guest.probe_seal()
    with pytest.raises(SealBroken, match=r"could reach gateway 10\.0\.2\.2 TCP 22 \(connected\), DNS"):
        require_sealed(probes)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (says(b""), "tried nothing"),
        (says(b"a\t0\tsilence\nb\n"), "probes cannot be read: b"),
        (says(b"a\tno\tsilence\n"), "probes cannot be read"),
        (says(b"a\t0\tx\n" * 201), "probes cannot be read"),
        (says(b"a\t0\tx\n", 1, b"Traceback"), r"could not try its seal \(status 1\): Traceback"),
    ],
)
async def test_a_seal_is_never_taken_on_trust(answer: object, complaint: str) -> None:
    async with misbehaving(answer) as (guest, _):  # type: ignore[arg-type]
        with pytest.raises(StepFailed, match=complaint):
            await guest.probe_seal()


@pytest.mark.parametrize("target", [("$(reboot)", 1), ("localhost", 1), ("10.0.0.1", 0), ("10.0.0.1", 65536)])
async def test_a_target_is_a_literal_address_and_a_port(target: tuple[str, int]) -> None:
    async with simulated() as (guest, _):
        with pytest.raises(ValueError, match=r"port|address"):
            await guest.probe_seal([target])
