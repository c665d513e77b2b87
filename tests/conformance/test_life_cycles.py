"""Whatever runners, frontends, operators and upkeep do, in whatever order and however late: the store does what a plain
model of it does, and its event log tells the same story."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from orchestrator.domain.task import Delivery, Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store import Finished, Lease, Store
from tests.conformance.life_moves import FRONTENDS, LEASE_SECONDS, POOLS, Draft, Life

Database = Callable[[], Coroutine[Any, Any, Store]]

LASTS = (Stage.PROVISIONING, Stage.EXECUTING, Stage.EXECUTING, Stage.STAGING_OUT, Stage.DESTROYING)
LAST_OF_SPARES = (VmState.REQUESTED, VmState.BOOTING, VmState.READY, VmState.READY, VmState.READY, VmState.READY)
ASKED = ["cancel"] * 4 + ["release"] * 2 + ["depend"] * 2 + ["reject"]
AT_ONCE = ("finish", "requeue", "enter", "let go", "destroy")
ACTS = {
    "heed": 14,
    "submit": 14,
    "claim": 24,
    "claim only": 2,
    "prepare": 9,
    "tire of": 5,
    "work on": 26,
    "conclude": 9,
    "requeue": 3,
    "finish": 2,
    "work": 10,
    "at once": 4,
    "adopt": 6,
    "silence": 6,
    "upkeep": 15,
    "move": 3,
    "ask": 7,
    "operate": 4,
    "lay": 12,
}
"""What is done, and how often."""
NEED_A_TASK = {"claim only", "ask"}
NEED_A_LEASE = {"work on", "conclude", "requeue", "finish", "work", "at once", "silence"}
LASTS = (Stage.PROVISIONING, Stage.EXECUTING, Stage.EXECUTING, Stage.STAGING_OUT, Stage.DESTROYING)
ENDS = (TaskState.FINISHED, TaskState.FINISHED, TaskState.FAILED, TaskState.CANCELED, None, None)
"""None: back to the queue."""


class Acts(Life):
    """One thing after the other, each drawn by chance."""

    def begin(self, chance: random.Random) -> None:
        """Some tasks wait, and both runners have something to do."""
        for _ in range(8):
            self.submitted(drafted(chance))
        for runner in range(2):
            for lease in self.claimed(runner, POOLS, 2, None):
                self.worked_on(lease, True, chance.choice(LASTS))

    def act(self, verb: str, chance: random.Random) -> None:
        if (verb in NEED_A_TASK and not self.model.tasks) or (verb in NEED_A_LEASE and not self.leases):
            return
        which, runner, odd = chance.randrange(16), chance.randrange(2), chance.random() < 0.25
        match verb:
            case "submit":
                for _ in range(4):
                    self.submitted(drafted(chance))
            case "claim":
                room = chance.choice([POOLS, POOLS, POOLS, {"a": 1, "b": 1}, {"a": 0, "b": 2}, {}])
                self.claimed(runner, room, chance.choice([1, 2, 3]), None, self.offered(chance))
            case "claim only":
                room = chance.choice([POOLS, {}])
                self.claimed(runner, room, 1, self.a_task(which), self.offered(chance))
            case "prepare":
                for _ in range(2):
                    self.spare(runner, chance.choice(list(POOLS)), not odd, chance.choice(LAST_OF_SPARES))
            case "tire of" if self.model.vms:
                vm = self.a_vm(which)
                self.ended_spare(vm, None if odd else self.model.vms[vm].runner_id)
            case "adopt":
                self.adopted(runner, chance.choice([["a", "b"], ["a", "b"], ["a"]]), chance.choice([1, 2]))
            case "silence":
                self.falls_silent(runner)
                self.adopted(1 - runner, ["a", "b"], chance.choice([1, 3]))
            case "work on":
                self.worked_on(self.a_lease(which), not odd, chance.choice(LASTS))
            case "conclude":
                self.ended(self.a_lease(which), chance.choice(ENDS))
            case "requeue":
                self.requeued(self.a_lease(which), odd, self.now + timedelta(seconds=chance.choice([0, 0, 30])))
            case "finish":
                end = chance.choice([state for state in TaskState if state.over])
                self.finished(Finished(self.a_lease(which), end), odd)
            case "at once":
                leases = {lease.task_id: lease for lease in (self.a_lease(chance.randrange(16)) for _ in range(5))}
                self.all_at_once(leases, [chance.choice(AT_ONCE) for _ in range(3)])
            case "upkeep":
                self.upkeep(stubborn=odd, lost=chance.choice([[], [], [], self.runners[:1], self.runners[1:]]))
            case "move" if self.model.vms:
                self.moved(self.a_vm(which), chance.choice(list(VmState)), None if odd else chance.choice(self.runners))
            case "heed":
                self.heed(chance.choice(["admit"] * 6 + ["a moment", "a lease", "overdue", "jump"]))
            case "work":
                self.work(self.a_lease(which), chance.choice(["enter", "beat", "let go", "record"]), chance)
            case "ask":
                self.ask(
                    self.a_task(which),
                    chance.choice(["cancel"] * 4 + ["release"] * 2 + ["depend"] * 2 + ["reject"]),
                    chance,
                )
            case "lay":
                self.lay(chance.choice(["order"] * 4 + ["ready"] * 3 + ["refuse"]), chance)
            case "operate":
                self.operate(chance.choice(["resume"] * 8 + ["pause"] * 2 + ["delete"]), chance.choice(list(POOLS)))

    def offered(self, chance: random.Random) -> dict[str, list[str]]:
        """VMs that somebody believes to be ready: mostly all that are, now and then whichever."""
        if chance.random() < 0.2 or not self.model.vms:
            return {}
        vms = list(self.model.vms.values())
        if chance.random() < 0.7:
            vms = [vm for vm in vms if vm.spare and vm.state is VmState.READY]
        some = [vm.id for vm in vms[-8:]]
        chance.shuffle(some)
        if chance.random() < 0.3:
            return dict.fromkeys(POOLS, some)
        return {pool: [each for each in some if self.model.vms[each].pool == pool] for pool in POOLS}

    def heed(self, verb: str) -> None:
        match verb:
            case "admit":
                self.admit()
            case "overdue":
                self.end_what_is_overdue()
            case "a moment" | "a lease":
                self.now += timedelta(seconds=5 if verb == "a moment" else LEASE_SECONDS + 10)
            case "jump":
                self.the_clock_jumps_back()

    def work(self, lease: Lease, verb: str, chance: random.Random) -> None:
        match verb:
            case "enter":
                self.enter(lease, chance.choice(list(Stage)))
            case "beat":
                self.beat(self.runners.index(lease.runner_id), self.leases[-12:])
            case "let go":
                self.let_go(lease)
            case "record":
                self.record(lease)

    def ask(self, task: str, verb: str, chance: random.Random) -> None:
        match verb:
            case "cancel":
                self.cancel(task)
            case "release":
                self.release(task)
            case "depend":
                self.depend(task, self.a_task(chance.randrange(16)))
            case "reject":
                self.reject(task)

    def lay(self, verb: str, chance: random.Random) -> None:
        key = chance.choice("klm")
        match verb:
            case "order":
                self.order(key, chance.choice(list(POOLS)), chance.choice([1, 4, 16]))
            case "ready":
                self.ready(key)
            case "refuse":
                self.refuse(key)

    def operate(self, verb: str, pool: str) -> None:
        match verb:
            case "pause":
                self.pause(pool)
            case "resume":
                for each in POOLS:
                    self.resume(each)
            case "delete":
                self.delete(pool)


def drafted(chance: random.Random) -> Draft:
    return Draft(
        pool=chance.choice(list(POOLS)),
        frontend=chance.choice(FRONTENDS),
        priority=chance.choice([0, 0, 5]),
        later=chance.choice([None, None, None, None, -1, 20, 60]),
        key=chance.choice([*[None] * 12, *"kl"]),
        hold=chance.random() > 0.85,
        delivery=chance.choice(list(Delivery)),
        room=chance.choice([None, None, 6]),
        on=chance.choice([None, None, None, chance.randrange(16)]),
        packages=chance.random() < 0.25,
    )


class LifeCycles(RuleBasedStateMachine):
    """One rule, because of several Hypothesis leaves some out of each example: most of what matters needs them all."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.life = Acts(database)

    def teardown(self) -> None:
        self.life.close()

    @initialize(chance=st.randoms(use_true_random=False))
    def begin(self, chance: random.Random) -> None:
        self.life.begin(chance)

    @rule(
        verb=st.sampled_from([verb for verb, often in ACTS.items() for _ in range(often)]),
        chance=st.randoms(use_true_random=False),
    )
    def act(self, verb: str, chance: random.Random) -> None:
        self.life.act(verb, chance)

    @invariant()
    def all_holds(self) -> None:
        self.life.all_holds()


EMPTIED = "tasks, attempts, vms, events, runners, dependencies, queues, shares, leaders, schedules, layers, reviews"


@pytest.fixture
def database(store_url: str, tmp_path: Path) -> Database:
    """Opens an empty database, each time: one that was made once is copied, or emptied."""
    if store_url.startswith("sqlite"):
        made = tmp_path / "made.db"
        asyncio.run(_make(f"sqlite:///{made}"))
        numbers = itertools.count()

        def copied() -> Coroutine[Any, Any, Store]:
            path = tmp_path / f"{next(numbers)}.db"
            shutil.copyfile(made, path)
            return Store.open(f"sqlite:///{path}")

        return copied
    asyncio.run(_make(store_url))

    def emptied() -> Coroutine[Any, Any, Store]:
        with psycopg.connect(store_url, autocommit=True) as connection:
            connection.execute(f"TRUNCATE {EMPTIED}")
        return Store.open(store_url)

    return emptied


async def _make(url: str) -> None:
    async with await Store.open(url):
        pass


def test_life_cycles(database: Database) -> None:
    run_state_machine_as_test(
        lambda: LifeCycles(database),
        settings=settings(max_examples=10, stateful_step_count=30, deadline=None, derandomize=True, database=None),
    )


OFTEN = {
    "task.claimed": 20,
    "task.adopted": 2,
    "task.requeued": 5,
    "task.admitted": 3,
    "task.canceled": 4,
    "task.finished": 5,
    "task.let_go": 1,
    "a ready vm is taken": 4,
    "task.layer": 6,
    "layer.ready": 3,
}
"""What a long life brings at least, so that it shows something: by kind of event."""


@pytest.mark.parametrize("seed", [1, 5])
def test_a_long_life(database: Database, seed: int) -> None:
    """In which more comes together than in the short ones."""
    life, chance = Acts(database), random.Random(seed)
    try:
        for step, verb in enumerate(chance.choices(list(ACTS), list(ACTS.values()), k=300)):
            life.act(verb, chance)
            if step % 3 == 0:
                life.all_holds()
        life.all_holds()
        log = life.run(life.store.events.list(limit=10_000))
        told = Counter(event.kind for event in log)
        told["a ready vm is taken"] = sum("it was ready" in event.data.get("because", "") for event in log)
        assert {kind: told[kind] for kind, count in OFTEN.items() if told[kind] < count} == {}
        assert max(task.attempt for task in life.model.tasks.values()) > 2
    finally:
        life.close()
