"""For how many machines of another queue a pool's ready ones make room."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from orchestrator.decide.quarantine import Quarantine
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.vm import VmState
from orchestrator.runner.supply import Supply
from orchestrator.store import QueueRow, RunnerRow, VmCount

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OURS = Pool(name="ours", image="debian-12", max_vms=4)
SERVED = Pool(name="other", image="debian-12", max_vms=3)
NO_ROOM = QueueRow("other", None, "", Reason.NO_CAPACITY, "no host has it left", NOW, 0, 0)


def runner(name: str, *pools: str, draining_at: datetime | None = None) -> RunnerRow:
    return RunnerRow(name, name, "here", 1, pools, NOW, NOW, None, draining_at)


US, THEM = runner("us", "ours"), runner("them", "other")


def lacking(
    *,
    queue: QueueRow = NO_ROOM,
    runners: tuple[RunnerRow, ...] = (US, THEM),
    waiting: int = 9,
    has: int = 1,
    serve: bool = False,
) -> int:
    supply = Supply(
        runner_id="us",
        now=NOW,
        runners=runners,
        counts=(VmCount("other", "them", VmState.IN_USE, False, has),),
        queues={"ours": dataclasses.replace(NO_ROOM, pool="ours"), "other": queue},
        waiting={"other": waiting, "ours": 7},
        launches=(),
        aside=Quarantine(),
    )
    pools = {"ours": OURS} | ({"other": SERVED} if serve else {})
    return supply.facts(OURS, pools, ready=(), coming=()).lacking


@pytest.mark.parametrize(("waiting", "has", "wanted"), [(9, 1, 2), (1, 1, 1), (9, 3, 0), (9, 4, 0), (0, 0, 0)])
def test_of_a_pool_that_we_serve_as_many_as_it_may_have(waiting: int, has: int, wanted: int) -> None:
    assert lacking(waiting=waiting, has=has, serve=True) == wanted


@pytest.mark.parametrize(("waiting", "wanted"), [(9, 1), (1, 1), (0, 0)])
def test_of_a_pool_that_only_another_runner_serves_one_at_a_time(waiting: int, wanted: int) -> None:
    assert lacking(waiting=waiting) == wanted


@pytest.mark.parametrize("serve", [False, True])
@pytest.mark.parametrize(
    ("reason", "counts"),
    [
        (Reason.NO_CAPACITY, True),
        (Reason.QUOTA, True),
        (Reason.MAX_VMS, False),
        (Reason.NO_SUCH_POOL, False),
        (None, False),
    ],
)
def test_only_what_opennebula_has_no_room_for(serve: bool, reason: Reason | None, counts: bool) -> None:
    assert bool(lacking(queue=dataclasses.replace(NO_ROOM, blocked_reason=reason), serve=serve)) is counts


@pytest.mark.parametrize("serve", [False, True])
def test_nothing_for_a_queue_that_is_paused(serve: bool) -> None:
    assert lacking(queue=dataclasses.replace(NO_ROOM, paused_at=NOW), serve=serve) == 0


@pytest.mark.parametrize("runners", [(US,), (US, runner("them", "other", draining_at=NOW))])
def test_nothing_for_a_pool_that_nobody_serves_any_more(runners: tuple[RunnerRow, ...]) -> None:
    assert lacking(runners=runners) == 0
