"""How many machines of a pool stand ready, and which are launched or destroyed for that: facts and `now` in, steps out.

Each runner plans for its own ones. From the counts of all of them each comes to the same shares, so that together they
have what the pool wants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta

from orchestrator.decide.admission import Room
from orchestrator.decide.periods import most_ready, numbers, wanted_ready
from orchestrator.decide.sharing import shares
from orchestrator.domain.pool import Pool

SETTLE_SECONDS = 60.0
"""So long at least a machine is kept that is ready only because others are in use: the next ones may be in use soon."""

UNLIMITED = 1_000_000


@dataclass(frozen=True, slots=True)
class Build:
    """What a machine is made by. A spare that was made by another than the pool's of now is for no task."""

    image: str
    cpus: int
    memory_bytes: int
    network: str
    ssh_port: int


def build_of(pool: Pool) -> Build:
    """What the pool's machines are made by now."""
    return Build(pool.image, pool.cpus, pool.memory_bytes, pool.network, pool.ssh_port)


@dataclass(frozen=True, slots=True)
class Ready:
    """A spare of ours, READY or on its way there. since: it is READY; of one on its way: it was asked for. asked_at:
    when a READY one was asked for, where known. build: None: not known, and taken for the pool's of now."""

    vm_id: str
    image_version: str
    since: datetime
    host: str = ""
    build: Build | None = None
    asked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Stock:
    """What another runner has: READY spares, and those on their way there."""

    ready: int = 0
    launching: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is to be known of a pool.

    runners: ids of those that are alive, serve the pool and do not drain, in order. ready, launching: our spares.
    elsewhere: the others' by runner; who is not in `runners` does not count. held: tasks of the pool that runners hold.
    open_spares: all machines of the pool that are for no held task, of all runners; destroying: how many of them are
    DESTROYING. waiting: tasks of the pool that may start now. lacking: machines that tasks of other queues lack because
    OpenNebula has no room. free_slots: how many more machines we may have by our own limit. allowed_launches: by the
    rate. room: what OpenNebula has room for. resting_until: launches failed, and are tried again then. wanted_version:
    the image version to launch; "": none can be, for version_because. drained, rotated_at: what operators said.
    """

    runner_id: str
    runners: tuple[str, ...]
    ready: tuple[Ready, ...] = ()
    launching: tuple[Ready, ...] = ()
    elsewhere: Mapping[str, Stock] = field(default_factory=dict)
    held: int = 0
    open_spares: int = 0
    destroying: int = 0
    waiting: int = 0
    lacking: int = 0
    free_slots: int = UNLIMITED
    allowed_launches: int = UNLIMITED
    room: Room = field(default_factory=lambda: Room(UNLIMITED))
    resting_until: datetime | None = None
    wanted_version: str = ""
    version_because: str = ""
    drained: bool = False
    drained_because: str = ""
    rotated_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """Ask for one more machine, of this image version."""

    image_version: str
    because: str


@dataclass(frozen=True, slots=True)
class Destroy:
    """End a spare of ours, or stop launching it."""

    vm_id: str
    because: str


Step = Launch | Destroy


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order. target: what the pool wants, over all runners; share: ours. short: so many fewer than that are
    there or launched by these steps, for this reason."""

    steps: tuple[Step, ...]
    target: int
    share: int
    short: int = 0
    because: str = ""


def plan(pool: Pool, facts: Facts, now: datetime) -> Plan:
    """What this runner does now for the pool's ready machines.

    One that is too old, or of an image version that was rotated away, serves until the next is ready; where there is no
    room for both it goes first, one at a time. Tasks that wait come before spares, and so do those of other queues.
    """
    return _Look(pool, facts, now).plan()


@dataclass(frozen=True, slots=True)
class _Limit:
    """How many may be launched, by one thing alone. of_room: a machine less makes it one more."""

    count: int
    because: str
    of_room: bool = False


class _Look:
    """The facts, put together.

    misfits: ours that are for no task; they are destroyed at once. stale: ready ones that are to be replaced.
    """

    def __init__(self, pool: Pool, facts: Facts, now: datetime) -> None:
        self.pool, self.facts, self.now = pool, facts, now
        self.numbers = numbers(pool, now)
        self.misfits = _named((each, self._misfit(each)) for each in (*facts.ready, *facts.launching))
        self.misfits |= _named((each, self._rotated(each)) for each in facts.launching)
        self.ready = [each for each in facts.ready if each.vm_id not in self.misfits]
        self.launching = [each for each in facts.launching if each.vm_id not in self.misfits]
        self.stale = _named((each, self._aged(each) or self._rotated(each)) for each in self.ready)
        # what is on its way in place of a stale one is one more only when it is there
        self.ours = max(len(self.ready), len(self.ready) - len(self.stale) + len(self.launching))
        ready = len(self.ready) + sum(stock.ready for stock in self._others().values())
        self.reserved = max(0, facts.waiting - ready)
        """Machines that tasks will ask for at once."""

    def plan(self) -> Plan:
        wanted, why_no_more = self._capped(wanted_ready(self.numbers, self.facts.held))
        share = self._share(wanted)
        ends: list[Step] = [Destroy(vm_id, why) for vm_id, why in self.misfits.items()]
        ends += self._surplus(share, why_no_more)
        gone = {end.vm_id for end in ends if isinstance(end, Destroy)}
        stale = [each for each in self.ready if each.vm_id in self.stale and each.vm_id not in gone]
        coming = [each for each in self.launching if each.vm_id not in gone]
        fresh = sum(each.vm_id not in gone for each in self.ready) - len(stale) + len(coming)
        need = max(0, share - fresh)
        limits = self._limits()
        tightest = min(limits, key=lambda limit: limit.count)
        launches = max(0, min(need, tightest.count))
        if stale and need > launches and not (ends or coming) and self._only_room_lacks(limits):
            first = min(stale, key=_age)
            ends.append(Destroy(first.vm_id, f"{self.stale[first.vm_id]}; there is no room for the next beside it"))
            stale.remove(first)
        replaced = sorted(stale, key=_age)[len(coming) :]
        why = f"{self._wants(wanted)}, {share} of them here, and {fresh} are there or on their way"
        whys = [f"it replaces {each.vm_id}: {self.stale[each.vm_id]}" for each in replaced[:launches]]
        whys += [why] * (launches - len(whys))
        steps = (*ends, *(Launch(self.facts.wanted_version, because) for because in whys))
        short = need - launches
        return Plan(steps, wanted, share, short, tightest.because if short else "")

    def _capped(self, count: int) -> tuple[int, str]:
        """So many, or fewer; and why there are not more."""
        facts = self.facts
        if facts.drained:
            return 0, "the pool is drained" + (f": {facts.drained_because}" if facts.drained_because else "")
        if facts.runner_id not in facts.runners:
            return count, f"runner {facts.runner_id} takes no more tasks of the pool"
        has = sum(self._has(launching=False).values())
        if facts.lacking > 0:
            left = max(0, has - max(0, facts.lacking - facts.destroying))
            if left < count:
                return left, "tasks of another queue wait for room"
        if count == self.numbers.max_vms - facts.held:
            return count, f"the pool may have {self.numbers.max_vms} machines, and its tasks hold {facts.held}"
        return count, f"{self._wants(count)}, and there are {has}"

    def _share(self, wanted: int) -> int:
        """Ours of what the pool wants. What others have on its way is no reason to end one of ours."""
        us = self.facts.runner_id
        if us not in self.facts.runners:
            return 0
        everything, there = self._has(launching=True), self._has(launching=False)
        if sum(everything.values()) < wanted:
            return shares(wanted, everything)[us]
        if sum(there.values()) > wanted:
            return shares(wanted, there)[us]
        return self.ours

    def _has(self, *, launching: bool) -> dict[str, int]:
        """Spares of each living runner. launching: the others' that are on their way, too."""
        others = {name: each.ready + launching * each.launching for name, each in self._others().items()}
        return {name: self.ours if name == self.facts.runner_id else others[name] for name in self.facts.runners}

    def _others(self) -> dict[str, Stock]:
        names = [name for name in self.facts.runners if name != self.facts.runner_id]
        return {name: self.facts.elsewhere.get(name, Stock()) for name in names}

    def _surplus(self, share: int, because: str) -> Iterator[Destroy]:
        """What we have above our share. What is ready only because others are in use is kept for a while."""
        above = self._above(share)
        firm = {each.vm_id for each in above}
        if self.numbers.scale_factor > 0:
            most, _ = self._capped(most_ready(self.numbers, self.facts.held))
            firm = {each.vm_id for each in self._above(self._share(most))}
        for each in above:
            if each.vm_id in firm or self.now - each.since >= timedelta(seconds=SETTLE_SECONDS):
                yield Destroy(each.vm_id, self.stale.get(each.vm_id, because))

    def _above(self, share: int) -> list[Ready]:
        """Stale ones that stand in for none, the oldest first; then what was asked for last; then the oldest."""
        stale = sorted((each for each in self.ready if each.vm_id in self.stale), key=_age)
        fresh = sorted((each for each in self.ready if each.vm_id not in self.stale), key=_age)
        coming = sorted(self.launching, key=_age, reverse=True)
        stand_in = max(0, share - len(fresh))
        too_many = max(0, len(fresh) + len(coming) - share)
        return stale[: max(0, len(stale) - stand_in)] + [*coming, *fresh][:too_many]

    def _limits(self) -> list[_Limit]:
        """All that bounds how many may be launched now."""
        facts, most = self.facts, self.numbers.max_vms
        has = facts.held + facts.open_spares
        waiting = f", and {self.reserved} tasks wait for machines" if self.reserved else ""
        version = facts.version_because or f"image {self.pool.image} has no version to launch"
        resting = facts.resting_until is not None and facts.resting_until > self.now
        until = f"until {facts.resting_until.isoformat(timespec='seconds')}" if facts.resting_until else ""
        return [
            _Limit(UNLIMITED if facts.wanted_version else 0, version),
            _Limit(0 if resting else UNLIMITED, f"the last launches failed, and there is a rest {until}"),
            _Limit(0 if facts.lacking > 0 else UNLIMITED, "tasks of another queue wait for room"),
            _Limit(
                most - has - self.reserved, f"the pool may have {most} machines, and has {has}{waiting}", of_room=True
            ),
            _Limit(
                facts.room.count - self.reserved,
                facts.room.message or f"OpenNebula has room for {facts.room.count}{waiting}",
                of_room=True,
            ),
            _Limit(
                facts.free_slots - self.reserved,
                f"this runner may have {facts.free_slots} more machines{waiting}",
                of_room=True,
            ),
            _Limit(facts.allowed_launches, f"no more than {self.pool.warm.launch_rate:g} are launched in a minute"),
        ]

    def _only_room_lacks(self, limits: Iterable[_Limit]) -> bool:
        """An end of one of ours would let the next be launched."""
        if self.reserved or self.facts.destroying:
            return False
        scarce = [limit for limit in limits if limit.count <= 0]
        return bool(scarce) and all(limit.of_room and limit.count == 0 for limit in scarce)

    def _misfit(self, spare: Ready) -> str:
        """Why no task may have it; "" when one may."""
        ours = build_of(self.pool)
        if spare.build is None or spare.build == ours:
            return ""
        differing = [each.name for each in fields(Build) if getattr(spare.build, each.name) != getattr(ours, each.name)]
        return f"the inventory has changed its {' and '.join(differing)}"

    def _rotated(self, spare: Ready) -> str:
        wanted, rotated_at = self.facts.wanted_version, self.facts.rotated_at
        if rotated_at is None or not wanted or spare.image_version == wanted:
            return ""
        if (spare.asked_at or spare.since) >= rotated_at:
            return ""
        return f"the pool was rotated, and this is {spare.image_version}, not {wanted}"

    def _aged(self, spare: Ready) -> str:
        most = self.pool.warm.max_ready_age_seconds
        seconds = (self.now - spare.since).total_seconds()
        return f"it has been ready for {seconds:.0f} s, and {most:g} s is the most" if seconds >= most else ""

    def _wants(self, count: int) -> str:
        period = f" in the period {self.numbers.period}" if self.numbers.period else ""
        return f"{count} ready are wanted{period}"


def _named(spares: Iterable[tuple[Ready, str]]) -> dict[str, str]:
    """Those of which there is something to say."""
    return {spare.vm_id: why for spare, why in spares if why}


def _age(spare: Ready) -> tuple[datetime, str]:
    """For sorting: the oldest first, and of equals always the same."""
    return spare.since, spare.vm_id
