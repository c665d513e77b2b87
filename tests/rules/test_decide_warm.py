"""What stands ready: which machines are launched and which destroyed, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.decide.admission import Room
from orchestrator.decide.warm import Build, Destroy, Facts, Launch, Plan, Ready, Step, Stock, build_of, plan
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Period, Pool, Times, Warm

NOW = datetime(2026, 3, 2, 20, 0, tzinfo=UTC)  # a Monday
V1, V2 = "mayfly-debian-12-1", "mayfly-debian-12-2"
WARM = Warm(min_ready=2, max_ready_age_seconds=3600)
POOL = Pool(name="small", image="debian-12", max_vms=10, warm=WARM)
US = Facts(runner_id="us", runners=("us",), wanted_version=V2)
NIGHT = Period(
    when="* 19-23 * * *",
    min_ready=1,
    times=(
        Times(
            frozenset(range(60)),
            frozenset(range(19, 24)),
            frozenset(range(1, 32)),
            frozenset(range(1, 13)),
            frozenset(range(7)),
        ),
    ),
)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def spare(name: str, seconds: float = 10, version: str = V2, **more: object) -> Ready:
    return replace(Ready(name, version, ago(seconds)), **more)


def warm(**numbers: object) -> Pool:
    return replace(POOL, warm=replace(WARM, **numbers))


def launch(because: str) -> Launch:
    return Launch(V2, because)


@dataclass(frozen=True)
class Case:
    """A situation, and the plan for it. short: how many are lacking all the same, and why."""

    name: str
    facts: Facts
    steps: tuple[Step, ...] = ()
    pool: Pool = POOL
    short: int = 0
    because: str = ""


def us(**facts: object) -> Facts:
    """Ours alone; what we have is counted as open."""
    found = replace(US, **facts)
    if "open_spares" not in facts:
        found = replace(found, open_spares=len(found.ready) + len(found.launching) + found.destroying)
    return found


READY = (spare("a"), spare("b"))
OLD = spare("old", 3600)
AGED = "it has been ready for 3600 s, and 3600 s is the most"
FULL = replace(POOL, max_vms=2)
TWO = ("r1", "us")
ROTATED = f"the pool was rotated, and this is {V1}, not {V2}"
OTHERS_WAIT = "tasks of another queue wait for room"

CASES = [
    Case("nothing is wanted", us(), pool=warm(min_ready=0)),
    Case("there are as many as wanted", us(ready=READY)),
    Case("one is ready, one on its way", us(ready=(spare("a"),), launching=(spare("b"),))),
    Case(
        "an empty pool is filled",
        us(),
        (launch("2 ready are wanted, 2 of them here, and 0 are there or on their way"),) * 2,
    ),
    Case(
        "one was taken",
        us(ready=(spare("a"),), held=1),
        (launch("2 ready are wanted, 2 of them here, and 1 are there or on their way"),),
    ),
    Case(
        "fewer are wanted than there are: the oldest goes",
        us(ready=(spare("a", 10), spare("b", 30), spare("c", 20))),
        (Destroy("b", "2 ready are wanted, and there are 3"),),
    ),
    Case(
        "fewer are wanted than are on their way: the last asked for goes, before one that is ready",
        us(ready=(spare("a", 99),), launching=(spare("b", 5), spare("c", 3))),
        (Destroy("c", "2 ready are wanted, and there are 3"),),
    ),
    Case(
        "what is left when none are wanted any more",
        us(ready=(spare("a"),)),
        (Destroy("a", "0 ready are wanted, and there are 1"),),
        pool=warm(min_ready=0),
    ),
    # -- in proportion to what is in use
    Case(
        "more are ready while more are in use",
        us(ready=READY, held=3),
        (launch("4 ready are wanted, 4 of them here, and 2 are there or on their way"),) * 2,
        pool=warm(scale_factor=0.5),
    ),
    Case("up to a limit", us(ready=READY, held=6), pool=warm(scale_factor=0.5, max_ready=2)),
    Case(
        "what was ready for those in use is kept for a while",
        us(ready=(*READY, spare("c", 59), spare("d", 3))),
        pool=warm(scale_factor=0.5),
    ),
    Case(
        "and then goes",
        us(ready=(*READY, spare("c", 60), spare("d", 3))),
        (Destroy("c", "2 ready are wanted, and there are 4"),),
        pool=warm(scale_factor=0.5),
    ),
    Case(
        "what is above max_ready goes at once",
        us(ready=(*READY, spare("c"))),
        (Destroy("a", "2 ready are wanted, and there are 3"),),
        pool=warm(scale_factor=0.5, max_ready=2),
    ),
    # -- periods
    Case(
        "a period wants fewer",
        us(ready=(spare("a", 20), spare("b", 10))),
        (Destroy("a", "1 ready are wanted in the period * 19-23 * * * (UTC), and there are 2"),),
        pool=warm(periods=(NIGHT,)),
    ),
    Case(
        "of two periods that match the last counts",
        us(),
        (launch("1 ready are wanted in the period * * * * * (UTC), 1 of them here, and 0 are there or on their way"),),
        pool=warm(periods=(replace(NIGHT, min_ready=7), replace(NIGHT, when="* * * * *"))),
    ),
    Case(
        "a period without machines",
        us(ready=(spare("a"),), held=1),
        (Destroy("a", "the pool may have 1 machines, and its tasks hold 1"),),
        pool=warm(periods=(replace(NIGHT, min_ready=2, max_vms=1),)),
    ),
    # -- limits
    Case(
        "max_vms",
        us(held=8, ready=(spare("a"),)),
        (launch("2 ready are wanted, 2 of them here, and 1 are there or on their way"),),
    ),
    Case(
        "max_vms, where others have what is left",
        us(held=7, open_spares=3),
        short=2,
        because="the pool may have 10 machines, and has 10",
    ),
    Case("max_vms, all held: none is wanted", us(held=10)),
    Case(
        "max_vms was lowered below what there is",
        us(held=1, ready=(spare("a", 20), spare("b", 10))),
        (Destroy("a", "the pool may have 2 machines, and its tasks hold 1"),),
        pool=FULL,
    ),
    Case(
        "machines that are being destroyed still count",
        us(destroying=2, ready=()),
        short=2,
        because="the pool may have 2 machines, and has 2",
        pool=FULL,
    ),
    Case(
        "OpenNebula has room for one",
        us(room=Room(1)),
        (launch("2 ready are wanted, 2 of them here, and 0 are there or on their way"),),
        short=1,
        because="OpenNebula has room for 1",
    ),
    Case(
        "OpenNebula has room for none",
        us(room=Room(0, Reason.QUOTA, "the quota of user mayfly leaves 0 VMs")),
        short=2,
        because="the quota of user mayfly leaves 0 VMs",
    ),
    Case(
        "our own limit",
        us(free_slots=1),
        (launch("2 ready are wanted, 2 of them here, and 0 are there or on their way"),),
        short=1,
        because="this runner may have 1 more machines",
    ),
    Case(
        "our own limit, of which a task that waits takes a part",
        us(free_slots=2, waiting=1),
        (launch("2 ready are wanted, 2 of them here, and 0 are there or on their way"),),
        short=1,
        because="this runner may have 2 more machines, and 1 tasks wait for machines",
    ),
    Case("our own limit is overdrawn", us(free_slots=-3), short=2, because="this runner may have -3 more machines"),
    Case(
        "the rate",
        us(allowed_launches=0),
        short=2,
        because="no more than 60 are launched in a minute",
    ),
    Case(
        "a rest after launches that failed",
        us(resting_until=ago(-5)),
        short=2,
        because="the last launches failed, and there is a rest until 2026-03-02T20:00:05+00:00",
    ),
    Case(
        "the rest is over",
        us(resting_until=NOW),
        (launch("2 ready are wanted, 2 of them here, and 0 are there or on their way"),) * 2,
    ),
    Case(
        "no version to launch",
        us(wanted_version=""),
        short=2,
        because="image debian-12 has no version to launch",
    ),
    Case(
        "all versions are put aside",
        us(wanted_version="", version_because=f"{V2} is put aside: 3 failed"),
        short=2,
        because=f"{V2} is put aside: 3 failed",
    ),
    # -- tasks first
    Case(
        "tasks that wait get the room",
        us(room=Room(3), waiting=2),
        (launch("2 ready are wanted, 2 of them here, and 0 are there or on their way"),),
        short=1,
        because="OpenNebula has room for 3, and 2 tasks wait for machines",
    ),
    Case(
        "tasks that wait get the last machines of the pool",
        us(waiting=9),
        (launch("2 ready are wanted, 2 of them here, and 0 are there or on their way"),),
        short=1,
        because="the pool may have 10 machines, and has 0, and 9 tasks wait for machines",
    ),
    Case(
        "tasks that ready ones are there for need no room",
        us(room=Room(1), waiting=1, ready=(spare("a"),)),
        (launch("2 ready are wanted, 2 of them here, and 1 are there or on their way"),),
    ),
    Case(
        "another queue waits for room: so many go",
        us(ready=(spare("a", 20), spare("b", 10)), lacking=1),
        (Destroy("a", OTHERS_WAIT),),
    ),
    Case(
        "another queue waits, and one is going already",
        us(ready=(spare("b"),), destroying=1, lacking=1),
        short=0,
    ),
    Case(
        "another queue waits for more than there is",
        us(ready=(spare("a", 20), spare("b", 10)), lacking=9),
        (Destroy("a", OTHERS_WAIT), Destroy("b", OTHERS_WAIT)),
    ),
    Case(
        "another queue waits: an old one is not replaced",
        us(ready=(OLD, spare("b")), destroying=1, lacking=1),
        short=1,
        because=OTHERS_WAIT,
    ),
    # -- what is replaced
    Case(
        "one is too old: the next is launched first",
        us(ready=(OLD, spare("b"))),
        (launch(f"it replaces old: {AGED}"),),
    ),
    Case("one is nearly too old", us(ready=(spare("old", 3599), spare("b")))),
    Case("one is too old, and the next on its way", us(ready=(OLD, spare("b")), launching=(spare("c"),))),
    Case(
        "two are too old, and the next of the older one is on its way",
        us(ready=(OLD, spare("older", 3700)), launching=(spare("c"),)),
        (launch(f"it replaces old: {AGED}"),),
    ),
    Case(
        "one is too old, and the next is there",
        us(ready=(OLD, spare("b"), spare("c"))),
        (Destroy("old", AGED),),
    ),
    Case(
        "all are too old, one at a time where there is room for one",
        us(ready=(OLD, spare("older", 3700)), room=Room(1)),
        (launch("it replaces older: it has been ready for 3700 s, and 3600 s is the most"),),
        short=1,
        because="OpenNebula has room for 1",
    ),
    Case(
        "there is no room for both: the old one goes first",
        us(ready=(spare("older", 3700), OLD)),
        (
            Destroy(
                "older",
                "it has been ready for 3700 s, and 3600 s is the most; there is no room for the next beside it",
            ),
        ),
        pool=FULL,
        short=2,
        because="the pool may have 2 machines, and has 2",
    ),
    Case(
        "there is no room for both: one at a time",
        us(ready=(OLD,), destroying=1),
        pool=FULL,
        short=2,
        because="the pool may have 2 machines, and has 2",
    ),
    Case(
        "an old one is kept while launches fail",
        us(ready=(OLD, spare("b")), resting_until=ago(-9)),
        pool=FULL,
        short=1,
        because="the last launches failed, and there is a rest until 2026-03-02T20:00:09+00:00",
    ),
    Case(
        "an old one is kept while the rate allows for none",
        us(ready=(OLD, spare("b")), allowed_launches=0),
        pool=FULL,
        short=1,
        because="the pool may have 2 machines, and has 2",
    ),
    Case(
        "an old one is kept for a task that waits for it",
        us(ready=(OLD,), waiting=2, held=1),
        pool=FULL,
        short=1,
        because="the pool may have 2 machines, and has 2, and 1 tasks wait for machines",
    ),
    Case(
        "too many, and one too old: that one goes",
        us(ready=(*READY, OLD)),
        (Destroy("old", AGED),),
    ),
    Case(
        "an old one is kept where the room that there is, is for a task",
        us(ready=(OLD,), waiting=2),
        pool=FULL,
        short=2,
        because="the pool may have 2 machines, and has 1, and 1 tasks wait for machines",
    ),
    Case(
        "an old one is kept while the next is on its way, though there is no room for more",
        us(ready=(OLD,), launching=(spare("c"),)),
        pool=FULL,
        short=1,
        because="the pool may have 2 machines, and has 2",
    ),
    Case(
        "an old one is kept while another goes",
        us(ready=(OLD, spare("b", build=replace(build_of(POOL), cpus=2)))),
        (Destroy("b", "the inventory has changed its cpus"),),
        pool=FULL,
        short=2,
        because="the pool may have 2 machines, and has 2",
    ),
    Case(
        "what is kept for a while only, has no next to make room for",
        us(ready=(spare("a"), spare("b", version=V1)), rotated_at=ago(5)),
        pool=replace(FULL, warm=replace(WARM, min_ready=1, scale_factor=0.5)),
    ),
    # -- rotate
    Case("an older version stays until the pool is rotated", us(ready=(spare("a", version=V1), spare("b")))),
    Case(
        "the pool was rotated",
        us(ready=(spare("a", version=V1), spare("b")), rotated_at=ago(5)),
        (launch(f"it replaces a: {ROTATED}"),),
    ),
    Case(
        "the pool was rotated before that one was made, of an earlier version as the last was put aside",
        us(ready=(spare("a", version=V1), spare("b")), rotated_at=ago(11)),
    ),
    Case(
        "it was asked for before the pool was rotated, and ready after",
        us(ready=(spare("a", version=V1, asked_at=ago(30)), spare("b")), rotated_at=ago(11)),
        (launch(f"it replaces a: {ROTATED}"),),
    ),
    Case(
        "the pool was rotated while one of the older version is on its way",
        us(ready=(spare("a"),), launching=(spare("b", version=V1),), rotated_at=ago(5)),
        (
            Destroy("b", ROTATED),
            launch("2 ready are wanted, 2 of them here, and 1 are there or on their way"),
        ),
    ),
    Case(
        "the pool was rotated, and nobody knows to what",
        us(ready=(spare("a", version=V1), spare("b")), rotated_at=ago(5), wanted_version=""),
    ),
    # -- the inventory makes other machines now
    Case(
        "a machine that the inventory makes otherwise now is for no task",
        us(ready=(spare("a", build=replace(build_of(POOL), memory_bytes=2**30, cpus=2)), spare("b"))),
        (
            Destroy("a", "the inventory has changed its cpus and memory_bytes"),
            launch("2 ready are wanted, 2 of them here, and 1 are there or on their way"),
        ),
    ),
    Case(
        "one on its way, too, and also where there is no room for the next",
        us(
            ready=(spare("a", build=build_of(POOL)),),
            launching=(spare("b", build=Build("debian-13", 1, 512 * 2**20, "sealed", 22)),),
        ),
        (Destroy("b", "the inventory has changed its image"),),
        pool=FULL,
        short=1,
        because="the pool may have 2 machines, and has 2",
    ),
    # -- drain
    Case(
        "a drained pool",
        us(ready=(spare("a"),), launching=(spare("b"),), drained=True, drained_because="new switches"),
        (Destroy("b", "the pool is drained: new switches"), Destroy("a", "the pool is drained: new switches")),
    ),
    Case(
        "drained without a word",
        us(ready=(spare("a", 1),), drained=True),
        (Destroy("a", "the pool is drained"),),
        pool=warm(scale_factor=3.0),
    ),
    Case("a drained pool that is empty", us(drained=True)),
    # -- other runners
    Case(
        "two runners, nothing there: even shares",
        us(runners=TWO, elsewhere={}),
        (launch("3 ready are wanted, 1 of them here, and 0 are there or on their way"),),
        pool=warm(min_ready=3),
    ),
    Case(
        "two runners, the first gets the odd one",
        us(runners=("us", "zz")),
        (launch("3 ready are wanted, 2 of them here, and 0 are there or on their way"),) * 2,
        pool=warm(min_ready=3),
    ),
    Case("another has what is wanted", us(runners=TWO, elsewhere={"r1": Stock(ready=2)}, open_spares=2)),
    Case("another makes what is wanted", us(runners=TWO, elsewhere={"r1": Stock(1, 1)}, open_spares=2)),
    Case(
        "what another is only making is no reason to end one of ours",
        us(runners=TWO, ready=READY, elsewhere={"r1": Stock(0, 1)}, open_spares=3),
    ),
    Case(
        "nor is it when that is more than is wanted",
        us(runners=TWO, ready=READY, elsewhere={"r1": Stock(0, 2)}, open_spares=4),
        pool=warm(min_ready=3),
    ),
    Case(
        "what another is making too many of is no reason to launch",
        us(runners=TWO, elsewhere={"r1": Stock(1, 2)}, open_spares=3),
    ),
    Case("a runner joins: nothing moves", us(runners=("new", "us"), ready=READY)),
    Case(
        "a runner that is no more leaves its part to us",
        us(ready=(spare("a"),), elsewhere={"gone": Stock(1)}, open_spares=2),
        (launch("2 ready are wanted, 2 of them here, and 1 are there or on their way"),),
    ),
    Case(
        "there are too many, and we have the most",
        us(runners=TWO, ready=(*READY, spare("c", 9)), elsewhere={"r1": Stock(1)}, open_spares=4),
        (Destroy("a", "2 ready are wanted, and there are 4"), Destroy("b", "2 ready are wanted, and there are 4")),
    ),
    Case(
        "there are too many, and another has the most",
        us(runners=TWO, ready=(spare("a"),), elsewhere={"r1": Stock(2)}, open_spares=3),
    ),
    Case(
        "this runner takes no more tasks",
        us(runners=("r1",), ready=(spare("a"),)),
        (Destroy("a", "runner us takes no more tasks of the pool"),),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_done(case: Case) -> None:
    found = plan(case.pool, case.facts, NOW)
    assert (found.steps, found.short, found.because) == (case.steps, case.short, case.because)


def test_every_situation_has_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_plan_says_what_is_wanted_and_our_share() -> None:
    found = plan(warm(min_ready=3), us(runners=TWO, elsewhere={"r1": Stock(1)}, open_spares=1), NOW)
    assert found == Plan(found.steps, target=3, share=1)
    assert plan(POOL, us(drained=True), NOW) == Plan((), target=0, share=0)
