"""What upkeep closes, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.decide.reap import (
    ADOPT_SECONDS,
    Adopt,
    Close,
    Conclude,
    Decision,
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
from orchestrator.decide.retry import Failure
from orchestrator.domain.outcome import CANCELED_EXIT, Reason, Verdict
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PAST, FUTURE = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
LISTED, DONE = SeenVm(7, "v1", False), SeenVm(7, "v1", True)
OVER = "its attempt is over"


def twice(facts: Facts) -> Round:
    return reap(facts, reap(facts, (), NOW).suspects, NOW)


def row(
    state: VmState = VmState.IN_USE,
    cloud_id: int | None = 7,
    deadline_at: datetime = FUTURE,
    task_id: str | None = "t",
    vm_id: str = "v1",
    runner_id: str | None = "r",
) -> OpenVm:
    return OpenVm(vm_id, cloud_id, state, deadline_at, task_id, None if task_id is None else 1, runner_id)


def task(
    stage: Stage | None = None,
    *,
    lease: datetime = PAST,
    deadline_at: datetime = FUTURE,
    cancel_requested: bool = False,
    verdict: Verdict | None = None,
    started: bool | None = None,
) -> HeldTask:
    began = stage in (Stage.EXECUTING, Stage.STAGING_OUT) if started is None else started
    return HeldTask("t", 1, "r", lease, deadline_at, stage, began, cancel_requested, verdict)


def lost(where: str, *, started: bool = False) -> Failure:
    message = f"runner r stopped answering at {where}: its lease ran out"
    return Failure(Reason.RUNNER_LOST, message + (", and the machine is gone" if started else ""), started)


ALIVE = task(Stage.EXECUTING, lease=FUTURE)


def test_what_goes_well_is_left_alone() -> None:
    facts = Facts(
        held=[ALIVE, HeldTask("t2", 4, "r", FUTURE, FUTURE), HeldTask("t3", 1, "r", FUTURE, FUTURE)],
        vms=[
            row(),
            OpenVm("v2", None, VmState.REQUESTED, FUTURE, "t2", 4),
            OpenVm("v3", 9, VmState.DESTROYING, FUTURE, "t0", 1),
            OpenVm("v4", 4, VmState.READY, FUTURE, None, None, "r"),
        ],
        seen=[LISTED, SeenVm(9, "v3", False), SeenVm(3, "v0", True), SeenVm(4, "v4", False)],
        alive=["r"],
    )
    assert twice(facts) == Round((), frozenset())


@pytest.mark.parametrize("state", list(VmState)[:-1])
@pytest.mark.parametrize("seen", [[LISTED], []])
@pytest.mark.parametrize("cloud_id", [7, None])
def test_while_its_lease_is_alive_a_machine_is_its_runners_however_late(
    state: VmState, seen: list[SeenVm], cloud_id: int | None
) -> None:
    assert twice(Facts(held=[ALIVE], vms=[row(state, cloud_id, PAST)], seen=seen)).plans == ()


@pytest.mark.parametrize("late", [PAST, FUTURE])
def test_two_machines_with_the_tag_of_one_that_a_runner_is_about_to_hear_of_are_no_orphans(late: datetime) -> None:
    facts = Facts([ALIVE], [row(VmState.REQUESTED, None, late)], [LISTED, SeenVm(8, "v1", False)])
    assert twice(facts).plans == ()


def test_a_lease_counts_as_run_out_when_it_is_seen_so_twice() -> None:
    expired = task(lease=NOW)
    first = reap(Facts(held=[expired]), (), NOW)
    assert first.plans == ()
    assert reap(Facts(held=[expired]), first.suspects, NOW).plans == ((Expire(expired, lost("its very beginning")),),)


@pytest.mark.parametrize(
    "meanwhile", [{"lease_expires_at": NOW - timedelta(seconds=0.5)}, {"runner_id": "other"}, {"attempt": 2}]
)
def test_a_lease_that_moved_between_two_sightings_is_a_living_runners(meanwhile: dict[str, object]) -> None:
    """A clock that jumps ahead makes all leases look old; the next heartbeat makes each of the living ones another."""
    first = reap(Facts(held=[task()]), (), NOW)
    assert reap(Facts(held=[replace(task(), **meanwhile)]), first.suspects, NOW).plans == ()


STAGES_BEFORE = [None, *list(Stage)[: list(Stage).index(Stage.EXECUTING)]]


@pytest.mark.parametrize("stage", STAGES_BEFORE)
def test_an_attempt_that_started_no_process_ends_first_and_its_machine_then(stage: Stage | None) -> None:
    held = task(stage)
    facts = Facts([held], [row(VmState.BOOTING)], [LISTED])
    expire = Expire(held, lost(stage or "its very beginning"))
    assert twice(facts).plans == ((expire, Destroy("v1", 7, "its runner is lost")),)


def test_an_attempt_whose_machine_may_yet_be_made_ends_and_the_machine_is_settled_later() -> None:
    held = task(Stage.PROVISIONING)
    asked = row(VmState.REQUESTED, None)
    assert twice(Facts([held], [asked])).plans == ((Expire(held, lost("PROVISIONING")),),)
    made = twice(Facts([held], [asked], [LISTED])).plans
    assert made == ((Expire(held, lost("PROVISIONING")), Adopt("v1", 7), Destroy("v1", 7, "its runner is lost")),)


@pytest.mark.parametrize("stage", [Stage.EXECUTING, Stage.STAGING_OUT])
def test_a_process_that_may_run_is_left_for_another_runner(stage: Stage) -> None:
    long_ago = task(stage, lease=NOW - timedelta(days=1))
    assert twice(Facts([long_ago], [row()], [LISTED])).plans == ()


@pytest.mark.parametrize(
    "vms, seen, closes",
    [
        ([], [], ()),
        ([row()], [DONE], (Close("v1", "OpenNebula says DONE of VM 7", 7),)),
        ([row()], [], (Close("v1", "OpenNebula does not list VM 7 any more, seen twice", 7),)),
    ],
)
def test_a_process_whose_machine_is_gone_is_lost(
    vms: list[OpenVm], seen: list[SeenVm], closes: tuple[Decision, ...]
) -> None:
    held = task(Stage.EXECUTING)
    assert twice(Facts([held], vms, seen)).plans == ((*closes, Expire(held, lost("EXECUTING", started=True))),)


def test_a_process_that_nobody_can_adopt_ends_with_its_machine_before_it_is_given_up() -> None:
    held = task(Stage.DESTROYING, started=True)
    destroy, expire = Destroy("v1", 7, "its runner is lost"), Expire(held, lost("DESTROYING", started=True))
    assert twice(Facts([held], [row()], [LISTED])).plans == ((destroy, expire),)
    assert twice(Facts([held], [row(VmState.DESTROYING)], [LISTED])).plans == ()
    again = replace(destroy, because="it was asked to end, and has not by its deadline")
    assert twice(Facts([held], [row(VmState.DESTROYING, deadline_at=PAST)], [LISTED])).plans == ((again, expire),)


GOOD = Verdict(TaskState.FINISHED, None, "exited with 0", 0)


def test_what_a_lost_runner_wanted_to_say_is_said_once_the_machine_is_gone() -> None:
    held = task(Stage.DESTROYING, verdict=GOOD, started=True)
    conclude = Conclude(held, GOOD)
    assert twice(Facts([held], [row()], [LISTED])).plans == ((Destroy("v1", 7, OVER), conclude),)
    assert twice(Facts([held], [row(VmState.DESTROYING)], [LISTED])).plans == ()
    assert twice(Facts([held], [row()], [DONE])).plans == ((Close("v1", "OpenNebula says DONE of VM 7", 7), conclude),)
    assert twice(Facts([held])).plans == ((conclude,),)


def test_a_recorded_verdict_stands_before_a_cancel_that_came_later() -> None:
    held = task(Stage.DESTROYING, verdict=GOOD, cancel_requested=True)
    assert twice(Facts([held])).plans == ((Conclude(held, GOOD),),)


def test_a_recorded_verdict_waits_for_the_machine_no_longer_than_the_attempts_deadline() -> None:
    held = task(Stage.DESTROYING, verdict=GOOD, deadline_at=PAST)
    assert twice(Facts([held], [row(VmState.DESTROYING)], [LISTED])).plans == ((Conclude(held, GOOD),),)
    assert twice(Facts([held], [row()], [LISTED])).plans == ((Conclude(held, GOOD), Destroy("v1", 7, OVER)),)


CANCELED = Verdict(
    TaskState.CANCELED, Reason.CANCELED, "canceled, when its runner had stopped answering", CANCELED_EXIT
)


def test_a_canceled_process_is_left_to_be_adopted_for_a_while_then_its_machine_ends_and_it_with_it() -> None:
    adoptable = task(Stage.EXECUTING, cancel_requested=True, lease=NOW - timedelta(seconds=ADOPT_SECONDS - 1))
    assert twice(Facts([adoptable], [row()], [LISTED])).plans == ()
    held = replace(adoptable, lease_expires_at=NOW - timedelta(seconds=ADOPT_SECONDS))
    destroy = Destroy("v1", 7, "its task is canceled")
    assert twice(Facts([held], [row()], [LISTED])).plans == ((destroy, Conclude(held, CANCELED)),)
    assert twice(Facts([held], [row(VmState.DESTROYING)], [LISTED])).plans == ()
    closing = twice(Facts([adoptable], [row()], [DONE])).plans
    assert closing == ((Close("v1", "OpenNebula says DONE of VM 7", 7), Conclude(adoptable, CANCELED)),)


@pytest.mark.parametrize("stage", STAGES_BEFORE)
def test_a_task_that_is_canceled_before_its_process_is_so_when_its_machine_is_gone(stage: Stage | None) -> None:
    held = task(stage, cancel_requested=True)
    destroy = Destroy("v1", 7, "its task is canceled")
    assert twice(Facts([held], [row(VmState.BOOTING)], [LISTED])).plans == ((destroy, Conclude(held, CANCELED)),)
    assert twice(Facts([held], [row(VmState.REQUESTED, None)])).plans == ()
    assert twice(Facts([held])).plans == ((Conclude(held, CANCELED),),)


@pytest.mark.parametrize("stage", [None, *Stage])
def test_an_attempt_beyond_its_deadline_ends_for_good(stage: Stage | None) -> None:
    held = task(stage, deadline_at=NOW)
    [(expire, destroy)] = twice(Facts([held], [row()], [LISTED])).plans
    assert isinstance(expire, Expire) and expire.failure.reason is Reason.DEADLINE_PASSED and expire.failure.final
    assert destroy == Destroy("v1", 7, OVER)


@pytest.mark.parametrize("held", [[], [HeldTask("t", 2, "r", FUTURE, FUTURE)]], ids=["no task", "a later attempt"])
@pytest.mark.parametrize("state", [VmState.REQUESTED, VmState.BOOTING, VmState.READY, VmState.IN_USE])
def test_a_machine_whose_attempt_is_over_is_destroyed(state: VmState, held: list[HeldTask]) -> None:
    assert reap(Facts(held, [row(state)], [LISTED]), (), NOW).plans == ((Destroy("v1", 7, OVER),),)


ON_ITS_WAY = [VmState.REQUESTED, VmState.BOOTING, VmState.READY]


@pytest.mark.parametrize("state", ON_ITS_WAY)
def test_a_spare_of_a_living_runner_may_stay_until_its_deadline(state: VmState) -> None:
    on_time = Facts(vms=[row(state, task_id=None)], seen=[LISTED], alive=["r"])
    assert twice(on_time).plans == ()
    late = replace(on_time, vms=[row(state, deadline_at=PAST, task_id=None)])
    assert reap(late, (), NOW).plans == ((Destroy("v1", 7, f"it was {state} beyond its deadline", spare=True),),)


@pytest.mark.parametrize("state", ON_ITS_WAY)
@pytest.mark.parametrize("runner_id", ["r", None])
def test_a_spare_whose_runner_is_lost_is_destroyed_when_that_was_seen_twice(
    state: VmState, runner_id: str | None
) -> None:
    facts = Facts(vms=[row(state, task_id=None, runner_id=runner_id)], seen=[LISTED], alive=["r2"])
    first = reap(facts, (), NOW)
    assert first.plans == () and first.suspects
    assert reap(facts, first.suspects, NOW).plans == ((Destroy("v1", 7, "its runner is lost", spare=True),),)
    assert reap(replace(facts, alive=["r", "r2"]), first.suspects, NOW).plans == (
        () if runner_id else twice(facts).plans
    )


def test_of_a_spare_that_was_taken_meanwhile_a_dead_runner_is_no_matter() -> None:
    spare = Facts(vms=[row(VmState.READY, task_id=None)], seen=[LISTED])
    taken = Facts([ALIVE], [row()], [LISTED])
    assert reap(taken, reap(spare, (), NOW).suspects, NOW).plans == ()


def test_a_lost_runners_spare_that_nobody_heard_of_is_known_first_and_closed_if_it_never_was() -> None:
    asked = row(VmState.REQUESTED, None, task_id=None)
    assert twice(Facts(vms=[asked], seen=[])).plans == ()
    made = twice(Facts(vms=[asked], seen=[LISTED])).plans
    assert made == ((Adopt("v1", 7), Destroy("v1", 7, "its runner is lost", spare=True)),)
    late = row(VmState.REQUESTED, None, deadline_at=PAST, task_id=None)
    never = "OpenNebula never made it: twice it listed no VM tagged v1"
    assert twice(Facts(vms=[late], seen=[])).plans == ((Close("v1", never, spare=True),),)


@pytest.mark.parametrize(("task_id", "spare"), [(None, True), ("t1", False)])
def test_a_spare_that_is_gone_is_closed_only_while_it_is_one(task_id: str | None, spare: bool) -> None:
    ready = row(VmState.READY, task_id=task_id)
    [(listed,)] = reap(Facts(vms=[ready], seen=[DONE]), (), NOW).plans
    [(missed,)] = twice(Facts(vms=[ready], seen=[])).plans
    for close in (listed, missed):
        assert isinstance(close, Close) and (close.cloud_id, close.spare) == (7, spare)


def test_a_lost_runners_spare_that_is_ending_has_until_its_deadline() -> None:
    ending = row(VmState.DESTROYING, task_id=None)
    assert twice(Facts(vms=[ending], seen=[LISTED])).plans == ()
    [(again,)] = twice(Facts(vms=[replace(ending, deadline_at=PAST)], seen=[LISTED])).plans
    assert again == Destroy("v1", 7, "it was asked to end, and has not by its deadline", spare=True)


def test_a_machine_that_will_not_end_is_asked_again_after_its_deadline() -> None:
    assert reap(Facts(vms=[row(VmState.DESTROYING)], seen=[LISTED]), (), NOW).plans == ()
    again = reap(Facts(vms=[row(VmState.DESTROYING, deadline_at=PAST)], seen=[LISTED]), (), NOW).plans
    assert again == ((Destroy("v1", 7, "it was asked to end, and has not by its deadline"),),)


@pytest.mark.parametrize("held", [[], [ALIVE]])
def test_a_machine_is_closed_when_opennebula_says_done(held: list[HeldTask]) -> None:
    facts = Facts(held, [row(VmState.DESTROYING)], [DONE])
    assert reap(facts, (), NOW).plans == ((Close("v1", "OpenNebula says DONE of VM 7", 7),),)


def test_a_machine_that_is_not_listed_is_closed_at_the_second_sighting_only() -> None:
    facts = Facts(vms=[row(VmState.DESTROYING)])
    first = reap(facts, (), NOW)
    assert first.plans == ()
    assert reap(facts, first.suspects, NOW).plans == (
        (Close("v1", "OpenNebula does not list VM 7 any more, seen twice", 7),),
    )
    back = reap(replace(facts, seen=[LISTED]), first.suspects, NOW)
    assert back == Round((), frozenset())


def test_a_request_is_not_missed_before_its_deadline() -> None:
    asked = row(VmState.REQUESTED, cloud_id=None)
    assert twice(Facts(vms=[asked])) == Round((), frozenset())
    late = twice(Facts(vms=[row(VmState.REQUESTED, cloud_id=None, deadline_at=PAST)])).plans
    assert late == ((Close("v1", "OpenNebula never made it: twice it listed no VM tagged v1"),),)


def test_a_machine_whose_making_was_answered_by_silence_is_known_by_its_tag_and_ended() -> None:
    facts = Facts(vms=[row(VmState.REQUESTED, None)], seen=[LISTED])
    assert reap(facts, (), NOW).plans == ((Adopt("v1", 7), Destroy("v1", 7, OVER)),)


def test_an_orphan_is_destroyed_at_the_second_sighting_only() -> None:
    facts = Facts(seen=[SeenVm(5, "gone", False)])
    first = reap(facts, (), NOW)
    assert first.plans == ()
    [[decision]] = reap(facts, first.suspects, NOW).plans
    assert isinstance(decision, DestroyOrphan) and decision.cloud_id == 5


def test_of_two_machines_with_one_tag_one_is_its_rows_and_the_other_is_an_orphan() -> None:
    seen = [SeenVm(8, "v1", False), LISTED]
    orphan = (DestroyOrphan(8, "no open VM of ours is this 'v1'"),)
    fresh = twice(Facts(vms=[row(VmState.REQUESTED, None)], seen=seen)).plans
    assert fresh == ((Adopt("v1", 7), Destroy("v1", 7, OVER)), orphan)
    known = twice(Facts([ALIVE], [row()], seen)).plans
    assert known == (orphan,)
    one_died = twice(Facts(vms=[row(VmState.REQUESTED, None)], seen=[SeenVm(6, "v1", True), *seen])).plans
    assert one_died[0][0] == Adopt("v1", 7)


@pytest.mark.parametrize("stage", [Stage.EXECUTING, Stage.STAGING_OUT])
def test_a_machine_that_went_off_is_left_to_nobody_once_it_was_seen_so_twice(stage: Stage) -> None:
    off = replace(LISTED, off=True)
    facts = Facts([task(stage)], [row()], [off])
    expired = Expire(task(stage), lost(stage, started=True))
    assert twice(facts).decisions == (Destroy("v1", 7, "its runner is lost"), expired)
    ran_before = reap(replace(facts, seen=[LISTED]), (), NOW)
    assert reap(facts, ran_before.suspects, NOW).decisions == ()  # seen off once only: it may be on its way up again


def test_a_machine_that_went_off_under_a_lease_is_its_runners() -> None:
    assert twice(Facts([ALIVE], [row()], [replace(LISTED, off=True)])).decisions == ()
