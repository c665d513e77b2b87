"""The tables of `bench queue`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.queue.measures import PickUp, Rates

LIMITS = """\
How it was measured, and how far it carries
- Calls: 10 callers in one process, on a pool of 20 connections; "many" is 100 tasks enqueued, 10 claimed or finished
  in one call, where a system offers it ("-": it does not). "work" is the system's own worker (ours: claim, finish,
  wait, as the runner does) with at most 20 jobs under way, jobs that do nothing. Rates are tasks per second; medians
  over the rounds, in which the systems take turns; so other work on this machine falls on all alike, but it does fall
  on them.
- The same server for all: Debian's PostgreSQL as it comes, fsync and synchronous_commit on, a unix socket. Client and
  server share this machine's CPUs, so these are figures of CPU cost as much as of the disk.
- Depth: so many tasks wait in the queue, put there by bulk INSERT (procrastinate's and ours with their events;
  PgQueuer's with its log); then VACUUM, ANALYZE and CHECKPOINT, for all. SQLite gets no ANALYZE, as nobody would run
  one there.
- Not the same work: Mayfly writes an attempt, its events, a lease and a turn of the fair shares for each task;
  procrastinate events by triggers; PgQueuer a log row, and its worker sends finishes in batches, after the job has
  ended.
- Pick-up: from the call of enqueue to the begin of the job, in one process, one task at a time, the depth waiting in
  another queue, which this worker does not serve.
"""


def print_rates(found: Mapping[str, Mapping[int, Rates]], ours: str) -> None:
    """For each depth a table of rates and, for the others than `ours`, of our rate by theirs."""
    depths = sorted({depth for rates in found.values() for depth in rates})
    for depth in depths:
        print(f"\n{depth:,} waiting: tasks per second")
        columns = ("enqueue", "many", "claim", "many", "finish", "many", "work", "claim ms", "p95")
        print(f"{'':24}" + "".join(f"{column:>10}" for column in columns))
        for name, by_depth in found.items():
            if depth in by_depth:
                print(f"{name:24}" + _row(by_depth[depth]))
        reference = found[ours].get(depth) if ours in found else None
        for name, by_depth in found.items():
            if reference is not None and not name.startswith("Mayfly") and depth in by_depth:
                print(f"{'Mayfly / ' + name:24}" + _ratios(reference, by_depth[depth]))


def _values(rates: Rates) -> Sequence[float | None]:
    return (
        rates.enqueue,
        rates.enqueue_many,
        rates.claim,
        rates.claim_many,
        rates.finish,
        rates.finish_many,
        rates.work,
    )


def _row(rates: Rates) -> str:
    cells = "".join(f"{'-':>10}" if value is None else f"{value:10,.0f}" for value in _values(rates))
    return cells + "".join(f"{value:10.1f}" for value in rates.claim_ms)


def _ratios(ours: Rates, theirs: Rates) -> str:
    """Above 1 is in our favour. Who offers no call for many is taken by its single one."""
    mine, other = list(_values(ours)), list(_values(theirs))
    for values in (mine, other):
        for single, many in ((2, 3), (4, 5)):
            values[many] = values[single] if values[many] is None else values[many]
    pairs = zip(mine, other, strict=True)
    return "".join(f"{a / b:9.2f}x" if a is not None and b else f"{'-':>10}" for a, b in pairs)


def print_pick_ups(found: Mapping[str, Mapping[int, PickUp]]) -> None:
    """One row for each system, one pair of columns for each depth."""
    depths = sorted({depth for pick_ups in found.values() for depth in pick_ups})
    print("\npick-up latency, milliseconds: median and 95th percentile, with so many waiting in another queue")
    print(f"{'':24}" + "".join(f"{depth:>20,}" for depth in depths))
    for name, by_depth in found.items():
        cells = (by_depth.get(depth) for depth in depths)
        print(f"{name:24}" + "".join(" " * 20 if c is None else f"{c.median:12.1f}{c.slow:8.1f}" for c in cells))


def print_flatness(found: Mapping[str, Mapping[int, Rates]]) -> None:
    """A claim at the greatest depth by one at the smallest: 1 is flat."""
    print("\ncost of a claim, the deepest queue by the shallowest (median of a single claim; 1 is flat)")
    for name, by_depth in found.items():
        low, high = min(by_depth), max(by_depth)
        print(f"{name:24}{by_depth[high].claim_ms[0] / by_depth[low].claim_ms[0]:8.2f}  ({low:,} to {high:,})")
