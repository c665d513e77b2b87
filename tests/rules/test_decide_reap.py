"""What upkeep closes, and what it leaves alone; what may start."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decide.admission import Room, why_not_start
from orchestrator.decide.reap import (
    Adopt,
    Close,
    Destroy,
    DestroyOrphan,
    Expire,
    Facts,
    HeldTask,
    OpenVm,
    Round,
    SeenVm,
    reap,
)
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.vm import VmState

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PAST, FUTURE = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)


def twice(facts: Facts) -> Round:
    return reap(facts, reap(facts, (), NOW).suspects, NOW)


def row(
    state: VmState = VmState.IN_USE, cloud_id: int | None = 7, deadline_at: datetime = FUTURE, wanted: bool = True
) -> OpenVm:
    return OpenVm("v1", cloud_id, state, deadline_at, wanted)


def test_what_goes_well_is_left_alone() -> None:
    facts = Facts(
        held=[HeldTask("t", 1, "r", FUTURE)],
        vms=[
            row(),
            OpenVm("v2", None, VmState.REQUESTED, FUTURE, True),
            OpenVm("v3", 9, VmState.DESTROYING, FUTURE, False),
        ],
        seen=[SeenVm(7, "v1", False), SeenVm(9, "v3", False), SeenVm(3, "v0", True)],
    )
    assert twice(facts) == Round((), frozenset())


def test_a_lease_that_ran_out_ends_its_attempt_at_once() -> None:
    expired = HeldTask("t", 1, "r", NOW)
    assert reap(Facts(held=[expired]), (), NOW).decisions == (Expire(expired, Reason.RUNNER_LOST),)


@pytest.mark.parametrize("state", [VmState.REQUESTED, VmState.BOOTING, VmState.READY, VmState.IN_USE])
def test_a_machine_that_nobody_wants_or_that_is_late_is_destroyed(state: VmState) -> None:
    seen = [SeenVm(7, "v1", False)]
    unwanted = reap(Facts(vms=[row(state, wanted=False)], seen=seen), (), NOW).decisions
    assert unwanted == (Destroy("v1", 7, "its attempt is over"),)
    late = reap(Facts(vms=[row(state, deadline_at=PAST)], seen=seen), (), NOW).decisions
    assert late == (Destroy("v1", 7, f"it was {state} beyond its deadline"),)


def test_a_machine_that_will_not_end_is_asked_again_after_its_deadline() -> None:
    seen = [SeenVm(7, "v1", False)]
    assert reap(Facts(vms=[row(VmState.DESTROYING, wanted=False)], seen=seen), (), NOW).decisions == ()
    again = reap(Facts(vms=[row(VmState.DESTROYING, deadline_at=PAST)], seen=seen), (), NOW).decisions
    assert again == (Destroy("v1", 7, "it was asked to end, and has not by its deadline"),)


def test_a_machine_is_closed_when_opennebula_says_done() -> None:
    facts = Facts(vms=[row(VmState.DESTROYING, wanted=False)], seen=[SeenVm(7, "v1", True)])
    assert reap(facts, (), NOW).decisions == (Close("v1", "OpenNebula says DONE of VM 7"),)


def test_a_machine_that_is_not_listed_is_closed_at_the_second_sighting_only() -> None:
    facts = Facts(vms=[row()])
    first = reap(facts, (), NOW)
    assert first.decisions == ()
    assert reap(facts, first.suspects, NOW).decisions == (
        Close("v1", "OpenNebula does not list VM 7 any more, seen twice"),
    )
    back = reap(Facts(vms=[row()], seen=[SeenVm(7, "v1", False)]), first.suspects, NOW)
    assert back == Round((), frozenset())


def test_a_request_is_not_missed_before_its_deadline() -> None:
    asked = row(VmState.REQUESTED, cloud_id=None)
    assert twice(Facts(vms=[asked])) == Round((), frozenset())
    late = twice(Facts(vms=[row(VmState.REQUESTED, cloud_id=None, deadline_at=PAST)])).decisions
    assert late == (Close("v1", "OpenNebula never made it: twice it listed no VM tagged v1"),)


def test_a_machine_whose_making_was_answered_by_silence_is_adopted_and_ended_if_unwanted() -> None:
    seen = [SeenVm(7, "v1", False)]
    assert reap(Facts(vms=[row(VmState.REQUESTED, None)], seen=seen), (), NOW).decisions == (Adopt("v1", 7),)
    unwanted = reap(Facts(vms=[row(VmState.REQUESTED, None, wanted=False)], seen=seen), (), NOW).decisions
    assert unwanted == (Adopt("v1", 7), Destroy("v1", 7, "its attempt is over"))


def test_an_orphan_is_destroyed_at_the_second_sighting_only() -> None:
    facts = Facts(seen=[SeenVm(5, "gone", False)])
    first = reap(facts, (), NOW)
    assert first.decisions == ()
    [decision] = reap(facts, first.suspects, NOW).decisions
    assert isinstance(decision, DestroyOrphan) and decision.cloud_id == 5


def test_of_two_machines_with_one_tag_one_is_kept_and_the_other_is_an_orphan() -> None:
    seen = [SeenVm(8, "v1", False), SeenVm(7, "v1", False)]
    fresh = twice(Facts(vms=[row(VmState.REQUESTED, None)], seen=seen)).decisions
    assert fresh == (Adopt("v1", 7), DestroyOrphan(8, "no open VM of ours is this 'v1'"))
    known = twice(Facts(vms=[row(cloud_id=8)], seen=seen)).decisions
    assert known == (DestroyOrphan(7, "no open VM of ours is this 'v1'"),)
    one_died = twice(Facts(vms=[row(VmState.REQUESTED, None)], seen=[SeenVm(6, "v1", True), *seen])).decisions
    assert one_died[0] == Adopt("v1", 7)


moments = st.sampled_from([PAST, FUTURE])
ids = st.sampled_from(["v1", "v2", "v3"])
rows = st.builds(
    OpenVm, ids, st.none() | st.integers(1, 4), st.sampled_from(list(VmState)[:-1]), moments, st.booleans()
)
machines = st.builds(SeenVm, st.integers(1, 4), ids, st.booleans())
facts = st.builds(
    Facts,
    vms=st.lists(rows, max_size=3, unique_by=(lambda vm: vm.vm_id, lambda vm: vm.cloud_id or vm.vm_id)),
    seen=st.lists(machines, max_size=4, unique_by=lambda vm: vm.cloud_id),
)


@given(facts)
def test_whatever_the_facts_no_living_machine_is_closed_and_no_wanted_one_ended_before_its_time(found: Facts) -> None:
    living = {vm.cloud_id for vm in found.seen if not vm.done}
    rows_of = {vm.vm_id: vm for vm in found.vms}
    once, again = reap(found, (), NOW), twice(found)
    assert set(once.decisions) <= set(again.decisions)
    for decision in again.decisions:
        match decision:
            case Close(vm_id):
                assert rows_of[vm_id].cloud_id not in living
            case Destroy(vm_id, cloud_id):
                vm = rows_of[vm_id]
                assert cloud_id in living and (not vm.wanted or vm.deadline_at <= NOW)
            case DestroyOrphan(cloud_id):
                assert cloud_id in living and cloud_id not in {vm.cloud_id for vm in found.vms}
            case Adopt(vm_id, cloud_id):
                assert rows_of[vm_id].cloud_id is None and cloud_id in living
    touched = {d.cloud_id for d in again.decisions if isinstance(d, Destroy | DestroyOrphan)}
    kept = {vm.cloud_id for vm in found.vms} | {d.cloud_id for d in again.decisions if isinstance(d, Adopt)}
    assert living <= touched | kept, "a machine that nobody answers for goes on"


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
