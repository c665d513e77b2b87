"""`make chaos`: faults by the thousand on simulated machines, then some on real ones; a table at the end.

    python -m tests.chaos [--faults N] [--real-faults N] [--seed N] [--keep FOLDER]

Exit status 1 when anything was lost, run twice, leaked or stuck.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos.campaign import Result, run_campaign
from tests.chaos.faults import REAL_FAULTS, SIMULATED_FAULTS
from tests.chaos.world import REAL, SIMULATED, make_world
from tests.driver import Mayfly
from tests.machines.conftest import CLOUD_HOME


def show(title: str, seed: int, result: Result) -> None:
    counts = result.counts
    console = Console()
    faults = Table("fault", "times", title=f"{title}: {result.injected} faults in {result.seconds:.0f} s, seed {seed}")
    for name, times in sorted(result.faults.items()):
        faults.add_row(name, str(times))
    console.print(faults)
    ends = ", ".join(f"{many} {end}" for end, many in sorted(counts.ends.items()))
    table = Table("promise", "broken", title=f"{counts.tasks} tasks: {ends}; {counts.starts} processes began")
    for name, broken in (
        ("lost", counts.lost),
        ("run twice", counts.twice),
        ("leaked VMs", counts.leaked),
        ("stuck", counts.stuck),
    ):
        table.add_row(name, str(len(broken)))
    console.print(table)
    console.print(f"run again because a fault took the machine: {counts.again}")
    console.print(f"all was over {result.settling_seconds:.0f} s after the last fault")
    for line in [*counts.lost, *counts.twice, *counts.leaked, *counts.stuck][:50]:
        console.print(f"  {line}", markup=False)


async def simulated(folder: Path, faults: int, seed: int) -> Result:
    async with make_world(folder, SIMULATED, seed) as world:
        return await run_campaign(world, SIMULATED_FAULTS, faults=faults, seed=seed, in_flight=14, settle_seconds=400)


async def real(folder: Path, faults: int, seed: int) -> Result:
    """On the cloud of the tests of real machines, its image built if it is not there yet."""
    mayfly = Mayfly({"MAYFLY_HOME": str(CLOUD_HOME), "ONE_XMLRPC": "", "ONE_AUTH": ""})
    started = mayfly("cloud", "start", "--json")
    if started.exit_code != 0:
        raise SystemExit(started.stderr)
    try:
        built = mayfly("image", "build", "debian-12", "--if-missing", seconds=1800)
        if built.exit_code != 0:
            raise SystemExit(built.stdout + built.stderr)
        facts = started.json()
        cloud = (facts["url"], Path(facts["one_auth"]), CLOUD_HOME / "cloud")
        async with make_world(folder, REAL, seed, cloud=cloud) as world:
            return await run_campaign(
                world, REAL_FAULTS, faults=faults, seed=seed, in_flight=4, settle_seconds=600, pause_seconds=4.0
            )
    finally:
        mayfly("cloud", "stop")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--real-faults", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for the logs of every process, kept")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # also where the shell had it ignored
        signal.signal(number, signal.default_int_handler)
    good = True
    with tempfile.TemporaryDirectory(prefix="mayfly-chaos-") as temporary:
        folder = arguments.keep or Path(temporary)
        if arguments.faults:
            (folder / "simulated").mkdir(parents=True)
            result = asyncio.run(simulated(folder / "simulated", arguments.faults, arguments.seed))
            show("simulated machines", arguments.seed, result)
            good = good and result.counts.good
        if arguments.real_faults:
            (folder / "real").mkdir(parents=True)
            result = asyncio.run(real(folder / "real", arguments.real_faults, arguments.seed))
            show("real machines", arguments.seed, result)
            good = good and result.counts.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
