"""What holds of every plan for ready machines, and where plans lead when they are carried out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.decide.admission import Room
from orchestrator.decide.sharing import shares
from orchestrator.decide.warm import Destroy, Facts, Launch, Plan, Ready, Stock, build_of, plan
from orchestrator.domain.pool import Pool, Warm

NOW = datetime(2026, 3, 2, tzinfo=UTC)
V1, V2 = "mayfly-debian-12-1", "mayfly-debian-12-2"
AGE = 100.0

calm = settings(deadline=None)
small = st.integers(0, 6)
runners = st.sampled_from([("us",), ("a", "us"), ("us", "z"), ("a", "us", "z"), ("a", "z")])
pools = st.builds(
    lambda min_ready, max_ready, factor, max_vms: Pool(
        name="small",
        image="debian-12",
        max_vms=max_vms,
        warm=Warm(min_ready=min_ready, max_ready=max_ready, scale_factor=factor, max_ready_age_seconds=AGE),
    ),
    small,
    st.none() | small,
    st.sampled_from([0.0, 0.5, 2.0]),
    st.integers(1, 12),
)
USUAL = build_of(Pool(name="small", image="debian-12"))
spares = st.lists(
    st.builds(
        Ready,
        vm_id=st.just(""),
        image_version=st.sampled_from([V1, V2]),
        since=st.integers(0, 200).map(lambda seconds: NOW - timedelta(seconds=seconds)),
        build=st.sampled_from([None, USUAL, replace(USUAL, cpus=9)]),
        asked_at=st.none() | st.integers(0, 300).map(lambda seconds: NOW - timedelta(seconds=seconds)),
    ),
    max_size=6,
)


def named(found: list[Ready], prefix: str) -> tuple[Ready, ...]:
    return tuple(replace(each, vm_id=f"{prefix}{number}") for number, each in enumerate(found))


def as_counted(facts: Facts) -> Facts:
    """What is open: what the living have, what is ending, and a few that nobody answers for."""
    others = sum(stock.ready + stock.launching for stock in facts.elsewhere.values())
    ours = len(facts.ready) + len(facts.launching)
    return replace(facts, open_spares=facts.open_spares + others + ours + facts.destroying)


situations = st.builds(
    Facts,
    runner_id=st.just("us"),
    runners=runners,
    ready=spares.map(lambda found: named(found, "r")),
    launching=spares.map(lambda found: named(found, "l")),
    elsewhere=st.dictionaries(st.sampled_from(["a", "z", "gone"]), st.builds(Stock, small, small)),
    held=small,
    open_spares=st.sampled_from([0, 0, 0, 1, 2]),
    destroying=st.sampled_from([0, 0, 1, 3]),
    waiting=st.sampled_from([0, 0, 1, 4]),
    lacking=st.sampled_from([0, 0, 0, 1, 4]),
    free_slots=st.integers(-2, 12),
    allowed_launches=small,
    room=st.integers(0, 12).map(Room),
    resting_until=st.sampled_from([None, None, NOW, NOW + timedelta(seconds=1)]),
    wanted_version=st.sampled_from([V2, V2, V1, ""]),
    drained=st.sampled_from([False, False, False, True]),
    rotated_at=st.sampled_from([None, NOW - timedelta(seconds=50), NOW]),
).map(as_counted)


def launched(found: Plan) -> int:
    return sum(isinstance(step, Launch) for step in found.steps)


def ended(found: Plan) -> list[Destroy]:
    return [step for step in found.steps if isinstance(step, Destroy)]


def in_place(found: Plan) -> int:
    return sum("no room for the next beside it" in step.because for step in ended(found))


def after(facts: Facts, done: Plan) -> Facts:
    """What is known at once when the steps were carried out: rows were written, nothing is there or gone yet."""
    gone = {step.vm_id for step in ended(done)}
    new = [Ready(f"n{number}", V2, NOW) for number in range(launched(done))]
    new = [replace(each, image_version=facts.wanted_version) for each in new]
    return replace(
        facts,
        ready=tuple(each for each in facts.ready if each.vm_id not in gone),
        launching=(*(each for each in facts.launching if each.vm_id not in gone), *new),
        destroying=facts.destroying + len(gone),
        open_spares=facts.open_spares + len(new),
        free_slots=facts.free_slots - len(new),
        allowed_launches=facts.allowed_launches - len(new),
        room=Room(facts.room.count - len(new)),
    )


@calm
@given(pools, situations)
def test_no_limit_is_exceeded(pool: Pool, facts: Facts) -> None:
    done = plan(pool, facts, NOW)
    if not (new := launched(done)):
        return
    cold = max(0, facts.waiting - len(facts.ready) - sum(stock.ready for stock in facts.elsewhere.values()))
    assert facts.held + facts.open_spares + new + cold <= pool.max_vms
    assert new + cold <= facts.room.count
    assert new + cold <= facts.free_slots
    assert new <= facts.allowed_launches
    assert facts.resting_until is None or facts.resting_until <= NOW
    assert not facts.drained and not facts.lacking and "us" in facts.runners
    assert {step.image_version for step in done.steps if isinstance(step, Launch)} == {facts.wanted_version} - {""}


@calm
@given(pools, situations)
def test_what_was_carried_out_is_not_asked_for_again(pool: Pool, facts: Facts) -> None:
    first = plan(pool, facts, NOW)
    again = plan(pool, after(facts, first), NOW)
    assert again.steps == ()
    assert again.short == first.short or in_place(first), "another runner may launch what takes its place"


@calm
@given(pools, situations)
def test_no_more_is_destroyed_than_the_surplus_and_only_what_is_ours(pool: Pool, facts: Facts) -> None:
    done = plan(pool, facts, NOW)
    ours = {each.vm_id: each for each in (*facts.ready, *facts.launching)}
    gone = [step.vm_id for step in ended(done)]
    assert len(set(gone)) == len(gone) and set(gone) <= set(ours)
    assert all(step.because for step in done.steps)
    usable = {name for name, each in ours.items() if each.build in (None, USUAL)}
    rotated = {step.vm_id for step in ended(done) if "was rotated" in step.because and step.vm_id[0] == "l"}
    usable -= rotated
    assert in_place(done) <= 1
    assert len(usable - set(gone)) >= min(len(usable), done.share) - in_place(done)
    assert set(ours) - usable <= set(gone)


@calm
@given(pools, situations)
def test_what_is_short_has_a_reason_and_what_is_not_has_none(pool: Pool, facts: Facts) -> None:
    done = plan(pool, facts, NOW)
    assert bool(done.because) == (done.short > 0)
    assert 0 <= done.short <= done.share


@calm
@given(pools, situations)
def test_a_drained_pool_ends_at_zero(pool: Pool, facts: Facts) -> None:
    facts = replace(facts, drained=True)
    done = plan(pool, facts, NOW)
    assert launched(done) == 0
    assert {step.vm_id for step in ended(done)} == {each.vm_id for each in (*facts.ready, *facts.launching)}


has = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), small, min_size=1, max_size=5)


@calm
@given(st.integers(0, 30), has)
def test_shares_add_up_and_nobody_gives_while_another_gets(total: int, has: dict[str, int]) -> None:
    found = shares(total, has)
    assert list(found) == list(has)
    assert sum(found.values()) == total and min(found.values()) >= 0
    moved = [found[name] - has[name] for name in has]
    assert all(each >= 0 for each in moved) or all(each <= 0 for each in moved)
    got = [found[name] for name in has if found[name] > has[name]]
    gave = [found[name] for name in has if found[name] < has[name]]
    assert not got or max(got) - min(found.values()) <= 1
    assert not gave or max(found.values()) - min(gave) <= 1


@dataclass
class World:
    """Runners that plan on what they see, one after the other or all at once, while launches take a round."""

    pool: Pool
    names: tuple[str, ...]
    ready: dict[str, list[Ready]]
    room: int
    held: int = 0
    now: datetime = NOW
    launching: dict[str, list[Ready]] = field(default_factory=dict)
    ending: int = 0
    ids: Iterator[int] = field(default_factory=count)

    def facts(self, name: str) -> Facts:
        mine = self.launching.setdefault(name, [])
        stocks = {other: Stock(len(self.ready[other]), len(self.launching.get(other, ()))) for other in self.names}
        return Facts(
            runner_id=name,
            runners=self.names,
            ready=tuple(self.ready[name]),
            launching=tuple(mine),
            elsewhere={other: stock for other, stock in stocks.items() if other != name},
            held=self.held,
            open_spares=self.open(),
            destroying=self.ending,
            room=Room(max(0, self.room - self.held - self.open())),
            wanted_version=V2,
            rotated_at=NOW,
        )

    def open(self) -> int:
        there = [*self.ready.values(), *self.launching.values()]
        return sum(map(len, there)) + self.ending

    def apply(self, name: str, done: Plan) -> None:
        gone = {step.vm_id for step in ended(done)}
        self.ready[name] = [each for each in self.ready[name] if each.vm_id not in gone]
        self.launching[name] = [each for each in self.launching[name] if each.vm_id not in gone]
        self.ending += len(gone)
        for _ in range(launched(done)):
            if self.held + self.open() < self.pool.max_vms:  # the guarded write of the row
                self.launching[name].append(Ready(f"n{next(self.ids)}", V2, self.now))

    def round(self, at_once: bool) -> bool:
        """Whether anything was done."""
        seen = {name: plan(self.pool, self.facts(name), self.now) for name in self.names} if at_once else {}
        done = []
        for name in self.names:
            found = seen.get(name) or plan(self.pool, self.facts(name), self.now)
            self.apply(name, found)
            done.append(found)
        self.now += timedelta(seconds=1)
        moved = any(found.steps for found in done) or self.ending > 0 or any(self.launching.values())
        for name, coming in self.launching.items():
            self.ready[name] += [replace(each, since=self.now, asked_at=each.since) for each in coming]
            coming.clear()
        self.ending = 0
        return moved


def before(found: list[Ready], name: str) -> list[Ready]:
    """All from before the pool was rotated."""
    return [replace(each, since=each.since - timedelta(seconds=1), asked_at=None) for each in named(found, name)]


worlds = st.builds(
    lambda names, found, min_ready, max_vms, held, room: World(
        Pool(
            name="small",
            image="debian-12",
            max_vms=max_vms,
            warm=Warm(min_ready=min_ready, max_ready_age_seconds=AGE),
        ),
        names,
        {name: before(found.get(name, []), name) for name in names},
        room=max(room, held + sum(len(found.get(name, [])) for name in names)),
        held=min(held, max_vms),
    ),
    st.sampled_from([("a",), ("a", "b"), ("a", "b", "c")]),
    st.dictionaries(st.sampled_from("abc"), spares),
    small,
    st.integers(1, 12),
    small,
    st.integers(0, 30),
)


@calm
@given(worlds, st.booleans())
def test_runners_that_know_nothing_of_each_other_come_to_what_is_wanted_and_to_rest(
    world: World, at_once: bool
) -> None:
    for _ in range(60):
        if not world.round(at_once):
            break
    else:
        raise AssertionError("they never come to rest")
    wanted = min(world.pool.warm.min_ready, world.pool.max_vms - world.held)
    there = [each for found in world.ready.values() for each in found]
    fits = max(0, min(wanted, world.room - world.held))
    # two that ask at once for the last room both get it: OpenNebula lets one wait
    assert fits <= len(there) <= max(wanted, 0) if at_once else len(there) == fits
    assert all(each.build in (None, USUAL) and each.image_version == V2 for each in there)
    # a second has passed since the last plan
    assert all((world.now - each.since).total_seconds() <= AGE for each in there)


@calm
@given(worlds)
def test_the_shares_of_all_add_up_to_what_is_wanted(world: World) -> None:
    for name in world.names:
        world.ready[name] = [replace(each, build=None, since=NOW, image_version=V2) for each in world.ready[name]]
    found = [plan(world.pool, world.facts(name), NOW) for name in world.names]
    assert len({each.target for each in found}) == 1
    assert sum(each.share for each in found) == found[0].target
