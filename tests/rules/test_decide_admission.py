"""What may start."""

from __future__ import annotations

import pytest

from orchestrator.decide.admission import Room, why_not_start
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool

POOL = Pool(name="small", image="debian-12", cpus=2, memory_bytes=2**30, max_vms=3)


@pytest.mark.parametrize(
    "room, reason",
    [
        (Room(0), None),
        (Room(2), None),
        (Room(3), Reason.NO_CAPACITY),
        (Room(9), Reason.NO_CAPACITY),
        (Room(0, 2, 2**30), None),
        (Room(0, 1.99, 2**30), Reason.NO_CAPACITY),
        (Room(0, 2, 2**30 - 1), Reason.NO_CAPACITY),
    ],
)
def test_a_task_starts_or_there_is_a_reason(room: Room, reason: Reason | None) -> None:
    assert why_not_start(POOL, room) is reason
