"""What holds of every round of upkeep, whatever the facts and however the clocks jump."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import assert_never

from hypothesis import given, settings
from hypothesis import strategies as st

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
from orchestrator.domain.outcome import Reason, Verdict, failed
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState

NOW = datetime(2026, 3, 1, tzinfo=UTC)
AGAIN = timedelta(seconds=60)

moments = st.sampled_from([-10 * ADOPT_SECONDS, -ADOPT_SECONDS, -1, 0, 1, 60]).map(lambda s: NOW + timedelta(seconds=s))
verdicts = st.none() | st.sampled_from(
    [Verdict(TaskState.FINISHED, None, "exited with 0", 0), failed(Reason.UNREACHABLE, "no SSH")]
)
tasks = st.builds(
    HeldTask,
    task_id=st.sampled_from(["t1", "t2", "t3"]),
    attempt=st.integers(1, 2),
    runner_id=st.sampled_from(["r1", "r2"]),
    lease_expires_at=moments,
    deadline_at=moments,
    stage=st.none() | st.sampled_from(Stage),
    started=st.booleans(),
    cancel_requested=st.booleans(),
    verdict=verdicts,
)
vm_ids = st.sampled_from(["v1", "v2", "v3", "v4"])
owners = st.tuples(st.sampled_from(["t1", "t2", "t3"]), st.integers(1, 2)) | st.just((None, None))
runner_ids = st.sampled_from(["r1", "r2"])
rows = st.builds(
    lambda vm_id, cloud_id, state, deadline_at, owner, runner: OpenVm(
        vm_id, cloud_id, state, deadline_at, *owner, runner
    ),
    vm_ids,
    st.none() | st.integers(1, 5),
    st.sampled_from(list(VmState)[:-1]),
    moments,
    owners,
    st.none() | runner_ids,
)
machines = st.builds(SeenVm, st.integers(1, 5), vm_ids, st.booleans())
facts = st.builds(
    Facts,
    held=st.lists(tasks, max_size=3, unique_by=lambda task: task.task_id),
    vms=st.lists(rows, max_size=4, unique_by=(lambda vm: vm.vm_id, lambda vm: vm.cloud_id or vm.vm_id)),
    seen=st.lists(machines, max_size=5, unique_by=lambda vm: vm.cloud_id),
    alive=st.frozensets(runner_ids),
)


def as_they_are_made(found: Facts) -> Facts:
    """A row's id in OpenNebula is of a machine that carries the row's tag."""
    tags = {vm.cloud_id: vm.vm_id for vm in found.vms}
    seen = [replace(machine, vm_id=tags.get(machine.cloud_id, machine.vm_id)) for machine in found.seen]
    return replace(found, seen=seen)


true_facts = facts.map(as_they_are_made)
calm = settings(deadline=None)


def twice(found: Facts, now: datetime = NOW) -> Round:
    return reap(found, reap(found, (), now).suspects, now)


def holder(vm: OpenVm, found: Facts) -> HeldTask | None:
    return next((task for task in found.held if (task.task_id, task.attempt) == (vm.task_id, vm.attempt)), None)


@calm
@given(facts)
def test_no_machine_is_destroyed_whose_lease_is_alive(found: Facts) -> None:
    rows_of = {vm.vm_id: vm for vm in found.vms}
    for step in twice(found).decisions:
        match step:
            case Destroy(vm_id, cloud_id):
                for vm in (rows_of[vm_id], *(vm for vm in found.vms if vm.cloud_id == cloud_id)):
                    held = holder(vm, found)
                    assert held is None or held.lease_expires_at <= NOW
            case DestroyOrphan(cloud_id):
                assert cloud_id not in {vm.cloud_id for vm in found.vms}
                [machine] = [machine for machine in found.seen if machine.cloud_id == cloud_id]
                tagged = rows_of.get(machine.vm_id)
                held = None if tagged is None or tagged.cloud_id is not None else holder(tagged, found)
                assert held is None or held.lease_expires_at <= NOW
            case Expire(task) | Conclude(task):
                assert task.lease_expires_at <= NOW
            case Adopt(vm_id) | Close(vm_id):
                held = holder(rows_of[vm_id], found)
                done = any(machine.done and machine.cloud_id == rows_of[vm_id].cloud_id for machine in found.seen)
                assert held is None or held.lease_expires_at <= NOW or done or rows_of[vm_id].cloud_id is None


@calm
@given(facts)
def test_at_the_first_sighting_nothing_is_believed_lost(found: Facts) -> None:
    for step in reap(found, (), NOW).decisions:
        assert not isinstance(step, Expire | Conclude | DestroyOrphan)
        if isinstance(step, Close):
            assert any(machine.done for machine in found.seen)


@calm
@given(facts)
def test_rows_are_closed_on_proof_and_no_machine_is_left_to_nobody(found: Facts) -> None:
    living = {machine.cloud_id for machine in found.seen if not machine.done}
    rows_of = {vm.vm_id: vm for vm in found.vms}
    steps = twice(found).decisions
    for step in steps:
        match step:
            case Close(vm_id):
                assert rows_of[vm_id].cloud_id not in living
            case Destroy(vm_id, cloud_id) | Adopt(vm_id, cloud_id):
                assert cloud_id in living and rows_of[vm_id].cloud_id in (cloud_id, None)
            case DestroyOrphan(cloud_id):
                assert cloud_id in living
    awaited = {vm.vm_id for vm in found.vms if vm.cloud_id is None}
    touched = {step.cloud_id for step in steps if isinstance(step, Destroy | DestroyOrphan)}
    kept = {vm.cloud_id for vm in found.vms} | {vm.cloud_id for vm in found.seen if vm.vm_id in awaited}
    assert living <= touched | kept, "a machine that nobody answers for goes on"


@calm
@given(facts)
def test_a_process_that_may_run_ends_before_its_task_does_unless_it_is_beyond_its_deadline(found: Facts) -> None:
    listed = {machine.cloud_id for machine in found.seen if not machine.done}
    for plan in twice(found).plans:
        for number, step in enumerate(plan):
            if isinstance(step, Expire | Conclude) and step.task.started and step.task.deadline_at > NOW:
                ours = [vm for vm in found.vms if holder(vm, found) == step.task]
                gone = {earlier.vm_id for earlier in plan[:number] if isinstance(earlier, Destroy | Close)}
                assert {vm.vm_id for vm in ours} <= gone
                assert not any(vm.cloud_id in listed and vm.vm_id not in gone for vm in ours)


@calm
@given(facts)
def test_a_spare_is_its_runners_while_that_is_alive_and_gone_once_it_is_not(found: Facts) -> None:
    first, steps = reap(found, (), NOW), twice(found).decisions
    rows_of = {vm.vm_id: vm for vm in found.vms}
    for step in first.decisions:
        if isinstance(step, Destroy) and step.spare:
            assert rows_of[step.vm_id].deadline_at <= NOW, "a runner may beat again before the second sighting"
    for step in steps:
        if isinstance(step, Destroy):
            assert step.spare == (rows_of[step.vm_id].task_id is None)
            late = rows_of[step.vm_id].deadline_at <= NOW
            assert late or not step.spare or rows_of[step.vm_id].runner_id not in found.alive
    there = {machine.cloud_id for machine in found.seen if not machine.done}
    ended = {step.vm_id for step in steps if isinstance(step, Destroy)}
    for vm in found.vms:
        if vm.task_id is None and vm.runner_id not in found.alive and vm.cloud_id in there:
            assert vm.vm_id in ended or vm.state is VmState.DESTROYING


def carried_out(found: Facts, done: Round, ends: Callable[[int], bool]) -> Facts:
    """The facts after a round whose writes all came in time. ends: whether a machine is DONE soon enough."""
    held = {task.task_id: task for task in found.held}
    vms = {vm.vm_id: vm for vm in found.vms}
    seen = {machine.cloud_id: machine for machine in found.seen}
    for plan in done.plans:
        for step in plan:
            if not _step(step, held, vms, seen, ends):
                break
    return Facts(list(held.values()), list(vms.values()), list(seen.values()), found.alive)


def _step(
    step: Decision,
    held: dict[str, HeldTask],
    vms: dict[str, OpenVm],
    seen: dict[int, SeenVm],
    ends: Callable[[int], bool],
) -> bool:
    match step:
        case Expire(task) | Conclude(task):
            del held[task.task_id]
        case Adopt(vm_id, cloud_id):
            vms[vm_id] = replace(vms[vm_id], cloud_id=cloud_id)
        case Destroy(vm_id, cloud_id):
            if not ends(cloud_id):
                vms[vm_id] = replace(vms[vm_id], state=VmState.DESTROYING, deadline_at=NOW + AGAIN)
                return False
            del vms[vm_id]
            seen[cloud_id] = replace(seen[cloud_id], done=True)
        case DestroyOrphan(cloud_id):
            seen[cloud_id] = replace(seen[cloud_id], done=True)
        case Close(vm_id):
            del vms[vm_id]
        case _:
            assert_never(step)
    return True


@calm
@given(true_facts, st.sets(st.integers(1, 5)))
def test_what_was_carried_out_is_not_asked_for_again(found: Facts, stubborn: set[int]) -> None:
    first = twice(found)
    after = carried_out(found, first, lambda cloud_id: cloud_id not in stubborn)
    assert reap(after, first.suspects, NOW).plans == ()


@calm
@given(true_facts)
def test_when_every_deadline_has_passed_nothing_is_left(found: Facts) -> None:
    late = NOW + timedelta(days=1)
    suspects: frozenset[str] = frozenset()
    for _ in range(5):
        done = reap(found, suspects, late)
        found, suspects = carried_out(found, done, lambda cloud_id: True), done.suspects
    assert not found.held and not found.vms
    assert all(machine.done for machine in found.seen)


jumps = st.floats(-1e6, 1e6).map(lambda seconds: timedelta(seconds=seconds))
beating = st.sets(st.sampled_from(["t1", "t2", "t3"]))
rounds = st.lists(st.tuples(jumps, beating), max_size=12)


@calm
@given(facts, rounds)
def test_under_any_jump_of_the_clock_nothing_alive_is_ended(
    found: Facts, rounds: list[tuple[timedelta, set[str]]]
) -> None:
    """A runner that is alive beats between two rounds, by a clock that may be wrong as well. One that beat since the
    last round keeps its task, and its machine unless OpenNebula says DONE of that."""
    suspects: frozenset[str] = frozenset()
    for number, (jump, beating) in enumerate(rounds):
        tick = timedelta(microseconds=number + 1)  # no two beats give the same lease
        held = [
            replace(task, lease_expires_at=task.lease_expires_at + tick) if task.task_id in beating else task
            for task in found.held
        ]
        found = replace(found, held=held)
        decided = reap(found, suspects, NOW + jump)
        suspects = decided.suspects
        alive = {(task.task_id, task.attempt) for task in held if task.task_id in beating}
        theirs = {vm.vm_id: vm for vm in found.vms if (vm.task_id, vm.attempt) in alive}
        for step in decided.decisions:
            match step:
                case Expire(task) | Conclude(task):
                    assert task.task_id not in beating
                case Destroy(vm_id) | Adopt(vm_id):
                    assert vm_id not in theirs
                case Close(vm_id, proof):
                    assert vm_id not in theirs or proof.startswith("OpenNebula says DONE")
                case DestroyOrphan(cloud_id):
                    assert cloud_id not in {vm.cloud_id for vm in theirs.values()}
                case _:
                    assert_never(step)
