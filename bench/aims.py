"""`python -m bench aims`: the table of aims, each figure beside its floor in the same run.

Written to OUT as JSON and as a chart; `--publish` also writes docs/reference/performance.md with the command that made
it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.chart import chart
from bench.main_job import Place, surroundings
from bench.row import Row, table
from bench.start.cold import cold
from bench.start.fresh import fresh
from bench.start.many import many
from bench.start.warm import warm
from bench.transfers import transfers

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "performance.md"

_HEAD = """# Performance

Measured by `{command}` on {machine}, {when}. Each ratio was computed in one run: Mayfly's figure by its floor's, turned
round where more is better, so that below 1 is better than the floor. The local cloud's host is said to have eight cores
there, so that four machines run at once on fewer. Other measurements: `python -m bench --help`.

![ratios to the floor](performance.svg)

"""


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench aims", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="tasks of a kind, one after the other [%(default)s]")
    parser.add_argument("--tasks", type=int, default=100, help="tasks at once [%(default)s]")
    parser.add_argument("--floor-tasks", type=int, default=40, help="of the floor of those [%(default)s]")
    parser.add_argument("--fresh", type=int, default=200, help="tasks of which each must see its own machine [200]")
    parser.add_argument("--mib", type=int, default=1024, help="of the large file that is copied [%(default)s]")
    parser.add_argument("--files", type=int, default=10_000, help="small files that are copied [%(default)s]")
    parser.add_argument(
        "--only", action="append", help="one of warm, cold, many, fresh, transfers. Repeatable [all of them]"
    )
    parser.add_argument("--out", type=Path, default=Path("results/bench"), help="folder for JSON and chart")
    parser.add_argument("--publish", action="store_true", help=f"write {PAGE.relative_to(ROOT)} too")
    given = parser.parse_args(words)
    measures: dict[str, Callable[[Place], list[Row]]] = {
        "warm": lambda place: warm(place, given.rounds),
        "cold": lambda place: cold(place, given.rounds),
        "many": lambda place: many(place, given.tasks, given.floor_tasks),
        "fresh": lambda place: fresh(place, given.fresh),
        "transfers": lambda place: transfers(place, given.mib, given.files),
    }
    if unknown := set(given.only or ()) - set(measures):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    with surroundings() as place:
        for name, measure in measures.items():
            if not given.only or name in given.only:
                print(f"-- {name}", flush=True)
                found = measure(place)
                rows += found
                print(table(found), flush=True)
        machine = f"{os.cpu_count()} cores, {platform.machine()}, machines under {place.accelerator.partition(':')[0]}"
    command = " ".join(["python -m bench aims", *words])
    when = datetime.now(UTC).date().isoformat()
    given.out.mkdir(parents=True, exist_ok=True)
    report = {"command": command, "machine": machine, "when": when, "rows": [row.as_json() for row in rows]}
    (given.out / "aims.json").write_text(json.dumps(report, indent=2) + "\n")
    picture = chart(rows, f"Ratio to the floor: {machine}")
    (given.out / "aims.svg").write_text(picture)
    if given.publish:
        PAGE.write_text(_HEAD.format(command=command, machine=machine, when=when) + table(rows) + "\n")
        PAGE.with_suffix(".svg").write_text(picture)


if __name__ == "__main__":
    main()
