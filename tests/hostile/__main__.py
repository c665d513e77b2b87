"""Runs every attack and tells what became of each; see the package."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator.domain.task import TaskState
from tests.hostile.attacks import Attack, Told
from tests.hostile.kept import Kept
from tests.hostile.machines import MACHINES, MachineAttack, Site
from tests.hostile.report import page, row
from tests.hostile.wire import WIRE, attacked
from tests.machines.conftest import started_cloud

_Attack = TypeVar("_Attack", bound=Attack)


def main() -> int:
    asked = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    asked.add_argument("--write", type=Path, metavar="FILE", help="put the page there; all attacks are run for it")
    asked.add_argument("--only", default="", metavar="TEXT", help="those whose name holds this")
    asked.add_argument("--no-machines", action="store_true", help="run none in real machines: a page says so")
    asked.add_argument("--kept", type=Path, metavar="FILE", help="keep there how each ended; run those that it lacks")
    words = asked.parse_args()
    kept = Kept(words.kept)
    if words.write and words.only:
        asked.error("a page tells of all attacks")
    logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="mayfly-hostile-") as folder:
        wire = [
            kept.of(each) or _told(kept, asyncio.run(attacked(each, _new(folder))))
            for each in _chosen(WIRE, words.only)
        ]
        chosen = _chosen(MACHINES, words.only)
        lacking = [] if words.no_machines else [each for each in chosen if not kept.of(each)]
        fresh = {each.attack.name: each for each in _in_machines(kept, lacking, _new(folder))} if lacking else {}
        machines = [told for each in chosen if (told := kept.of(each) or fresh.get(each.name))]
    if any(each.wrong() for each in (*wire, *machines)):
        return 1
    if words.write:
        words.write.write_text(page(wire, machines))
    return 0


def _chosen(attacks: Sequence[_Attack], text: str) -> list[_Attack]:
    return [each for each in attacks if text in each.name]


def _new(folder: str) -> Path:
    made = Path(tempfile.mkdtemp(dir=folder)) / "here"
    made.mkdir()
    return made


def _told(kept: Kept, told: Told) -> Told:
    kept.add(told)
    print(row(told), end="", flush=True)
    for wrong in told.wrong():
        print(f"  {told.attack.name}: {wrong}", file=sys.stderr, flush=True)
    return told


def _in_machines(kept: Kept, attacks: Sequence[MachineAttack], folder: Path) -> Iterator[Told]:
    with started_cloud() as cloud:
        site = Site.made(cloud, folder)
        assert site.honest() is TaskState.FINISHED
        before = site.kept()
        for attack in attacks:
            yield _told(kept, site.attacked(attack))
        assert before.items() <= site.kept().items(), "what another task left has changed"
        assert site.honest() is TaskState.FINISHED, "no task ends well any more"


if __name__ == "__main__":
    sys.exit(main())
