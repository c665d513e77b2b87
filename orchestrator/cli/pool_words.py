"""A pool's plan, and what is worth knowing of its inventory, in words and for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, assert_never

from orchestrator.decide.layers import no_builders
from orchestrator.decide.warm import Destroy, Launch, Step
from orchestrator.domain.pool import Pool

if TYPE_CHECKING:
    from orchestrator.runner.outlook import Outlook, PoolOutlook


def remarks(pool: Pool, pools: Mapping[str, Pool]) -> list[str]:
    """What is no error in its variables, and yet worth knowing. `pools`: all that there are."""
    from orchestrator.provisioning.periods import never_lasts, overlapping

    periods = pool.warm.periods
    named = [f"period {number} ({each.when}, {each.time_zone})" for number, each in enumerate(periods, start=1)]
    never = [
        f"{name} never lasts: no month that it names has the day"
        for name, each in zip(named, periods, strict=True)
        if never_lasts(each)
    ]
    both = [
        f"{named[earlier - 1]} and {named[later - 1]} overlap: where both last, period {later} counts alone"
        for earlier, later in overlapping(periods)
    ]
    wrong = no_builders(pool, pools) if pool.layers else None
    return never + both + ([f"its tasks can bring no packages: {wrong[0]} ({wrong[1]})"] if wrong else [])


def plan_lines(outlook: Outlook) -> Iterator[str]:
    """For people: a line a pool, and below it what would be done and what cannot be."""
    for each in outlook.pools:
        yield f"{each.pool.name}: {_there_is(each)}"
        for runner, found in each.plans.items():
            for step in found.steps:
                yield f"  {runner}: {_step(step)}"
            if found.short:
                yield f"  {runner}: {found.short} fewer than its share of {found.share}: {found.because}"
        if not each.plans and each.wanted:
            yield "  no runner is alive for it: start one with mayfly up or mayfly runner"
        if each.version and each.version_because:
            yield f"  {each.version} is used: {each.version_because}"
    for name, why in outlook.aside.versions.items():
        yield f"image version {name} is in quarantine: {why}"
    for name, why in outlook.aside.hosts.items():
        yield f"host {name} is in quarantine: {why}"
    if not outlook.pools:
        yield "the inventory has no pool: see inventories/local"


def plan_as_dict(outlook: Outlook) -> dict[str, Any]:
    """For JSON."""
    return {
        "pools": [
            {
                "pool": each.pool.name,
                "wanted": each.wanted,
                "period": each.period,
                "ready": each.ready,
                "launching": each.launching,
                "in_use": each.held,
                "waiting": each.waiting,
                "drained": each.drained,
                "image_version": each.version,
                "image_version_because": each.version_because,
                "runners": [
                    {
                        "runner": runner,
                        "share": found.share,
                        "short": found.short,
                        "short_because": found.because,
                        "steps": [_step_as_dict(step) for step in found.steps],
                    }
                    for runner, found in each.plans.items()
                ],
            }
            for each in outlook.pools
        ],
        "quarantine": {"versions": dict(outlook.aside.versions), "hosts": dict(outlook.aside.hosts)},
    }


def _there_is(each: PoolOutlook) -> str:
    period = f" in the period {each.period}" if each.period else ""
    drained = "; it is drained" if each.drained else ""
    on_their_way = f", {each.launching} on their way" if each.launching else ""
    there = f"{each.ready} ready{on_their_way}, {each.held} in use, {each.waiting} waiting"
    return f"{each.wanted} ready are wanted{period}; {there}{drained}"


def _step(step: Step) -> str:
    match step:
        case Launch(version, because):
            return f"launch one of {version}: {because}"
        case Destroy(vm_id, because):
            return f"destroy {vm_id}: {because}"
        case _:
            assert_never(step)


def _step_as_dict(step: Step) -> dict[str, str]:
    match step:
        case Launch(version, because):
            return {"do": "launch", "image_version": version, "because": because}
        case Destroy(vm_id, because):
            return {"do": "destroy", "vm": vm_id, "because": because}
        case _:
            assert_never(step)
