"""How many more machines of a pool can be made, and why no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decide.admission import (
    STALL_SECONDS,
    Capacity,
    HostRoom,
    QuotaOf,
    QuotaRoom,
    Room,
    room_for,
    stalled,
)
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool

GIB = 2**30
POOL = Pool(name="small", image="debian-12", cpus=2, memory_bytes=GIB, max_vms=50, max_pending_vms=20, network="sealed")
BIG, SMALL = HostRoom("big", 8, 16 * GIB, frozenset({0})), HostRoom("small", 3, 2 * GIB, frozenset({0, 100}))


def quota(what: QuotaOf, left: float) -> QuotaRoom:
    return QuotaRoom("user mayfly", what, left)


@pytest.mark.parametrize(
    "capacity, count",
    [
        (Capacity(), 20),
        (Capacity(pending=19), 1),
        (Capacity(hosts=(BIG,)), 4),
        (Capacity(hosts=(BIG, SMALL)), 5),
        (Capacity(hosts=(replace(BIG, cpus_free=1.99), SMALL)), 1),
        (Capacity(hosts=(replace(BIG, memory_free_bytes=3 * GIB - 1),)), 2),
        (Capacity(hosts=(replace(BIG, cpus_free=-4, memory_free_bytes=-GIB), SMALL)), 1),
        (Capacity(hosts=(BIG, SMALL), networks={"sealed": frozenset({100})}), 1),
        (Capacity(hosts=(BIG, SMALL), networks={"other": frozenset({100})}), 5),
        (Capacity(hosts=(BIG,), sched_message="what we place ourselves, its scheduler need not"), 4),
        (Capacity(quotas=(quota(QuotaOf.VMS, 3), quota(QuotaOf.CPUS, 5.5))), 2),
        (Capacity(quotas=(quota(QuotaOf.MEMORY, 7 * GIB),)), 7),
        (Capacity(oldest_pending_seconds=STALL_SECONDS), 20),
    ],
)
def test_the_scarcest_thing_says_how_many(capacity: Capacity, count: int) -> None:
    assert room_for(POOL, capacity, open_vms=1) == Room(count)


@pytest.mark.parametrize(
    "capacity, open_vms, reason, words",
    [
        (Capacity(), 50, Reason.MAX_VMS, "pool small may have 50 machines, and has 50"),
        (Capacity(), 51, Reason.MAX_VMS, "pool small may have 50 machines, and has 51"),
        (Capacity(hosts=()), 0, Reason.NO_CAPACITY, "OpenNebula has no host that takes VMs"),
        (
            Capacity(hosts=(replace(BIG, cpus_free=1.5), replace(SMALL, memory_free_bytes=GIB - 1))),
            0,
            Reason.NO_CAPACITY,
            "no host has 2 CPUs and 1024 MiB left; the roomiest, big, has 1.5 CPUs and 16384 MiB",
        ),
        (
            Capacity(hosts=(BIG, SMALL), networks={"sealed": frozenset({7})}),
            0,
            Reason.NO_CAPACITY,
            "no host that takes VMs reaches the network sealed",
        ),
        (
            Capacity(quotas=(quota(QuotaOf.VMS, 0),)),
            0,
            Reason.QUOTA,
            "the quota of user mayfly leaves 0 VMs",
        ),
        (Capacity(quotas=(quota(QuotaOf.CPUS, 1.5),)), 0, Reason.QUOTA, "the quota of user mayfly leaves 1.5 CPUs"),
        (
            Capacity(quotas=(quota(QuotaOf.MEMORY, GIB - 1),)),
            0,
            Reason.QUOTA,
            "the quota of user mayfly leaves 1023 MiB of memory",
        ),
        (
            Capacity(quotas=(quota(QuotaOf.MEMORY, -GIB),)),
            0,
            Reason.QUOTA,
            "the quota of user mayfly leaves 0 MiB of memory",
        ),
        (
            Capacity(pending=25),
            0,
            Reason.NO_CAPACITY,
            "OpenNebula has yet to place 25 VMs, and pool small allows for 20",
        ),
        (
            Capacity(sched_message="[HOST] Not enough CPU on hosts: 0"),
            0,
            Reason.NO_CAPACITY,
            "OpenNebula has no host for another VM: [HOST] Not enough CPU on hosts: 0",
        ),
        (
            Capacity(pending=3, oldest_pending_seconds=121),
            0,
            Reason.NO_CAPACITY,
            "OpenNebula's scheduler seems to have stopped: a VM has had no host for 121 s, and no reason is given",
        ),
    ],
)
def test_where_there_is_no_room_there_is_a_reason(
    capacity: Capacity, open_vms: int, reason: Reason, words: str
) -> None:
    assert room_for(POOL, capacity, open_vms=open_vms) == Room(0, reason, words)


def test_machines_that_were_asked_for_since_count_as_pending() -> None:
    assert room_for(POOL, Capacity(pending=5), open_vms=0, pending_vms=5) == Room(10)
    assert room_for(POOL, Capacity(pending=5), open_vms=0, pending_vms=15).reason is Reason.NO_CAPACITY


def test_a_scheduler_is_stopped_when_a_machine_has_waited_long_without_a_reason() -> None:
    assert stalled(Capacity(pending=9, oldest_pending_seconds=STALL_SECONDS)) == ""
    assert "has had no host for 600 s" in stalled(Capacity(pending=9, oldest_pending_seconds=600))


def test_what_is_asked_for_is_taken_from_the_roomiest_hosts_and_from_quotas() -> None:
    capacity = Capacity((BIG, SMALL), quotas=(quota(QuotaOf.VMS, 3), quota(QuotaOf.MEMORY, 9 * GIB)))
    less = capacity.less(POOL, 2)
    assert less.hosts == (replace(BIG, cpus_free=4, memory_free_bytes=14 * GIB), SMALL)
    assert less.quotas == (quota(QuotaOf.VMS, 1), quota(QuotaOf.MEMORY, 7 * GIB))
    assert less.pending == 0 and Capacity(pending=1).less(POOL, 2).pending == 3


hosts = st.builds(
    HostRoom,
    st.sampled_from("abc"),
    st.floats(-2, 16),
    st.integers(-GIB, 8 * GIB),
    st.frozensets(st.sampled_from([0, 100])),
)
capacities = st.builds(
    Capacity,
    hosts=st.none() | st.lists(hosts, max_size=3, unique_by=lambda host: host.name).map(tuple),
    networks=st.sampled_from([{}, {"sealed": frozenset({100})}]),
    quotas=st.lists(
        st.builds(quota, st.just(QuotaOf.VMS), st.integers(-1, 9))
        | st.builds(quota, st.just(QuotaOf.CPUS), st.floats(-1, 9)),
        max_size=2,
    ).map(tuple),
    pending=st.integers(0, 25),
)


@given(capacities, st.integers(0, 60))
def test_what_there_is_room_for_can_be_taken_and_then_there_is_none(capacity: Capacity, open_vms: int) -> None:
    pool = replace(POOL, max_pending_vms=10_000) if capacity.hosts is not None else POOL
    room = room_for(pool, capacity, open_vms=open_vms)
    assert room.count >= 0 and (room.count == 0) == (room.reason is not None) == bool(room.message)
    for taken in range(room.count + 1):
        left = room_for(pool, capacity.less(pool, taken), open_vms=open_vms + taken)
        assert left.count == room.count - taken
