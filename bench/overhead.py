"""`python -m bench main_job`: what a task costs from submit to the end of its machine, beside the floor.

The floor, measured in the same run, is a bare QEMU with the same image, kernel, memory and CPUs, and OpenSSH's `ssh`:
no queue, no cloud, no seal, no trace. Rounds alternate, so that whatever else the machine does falls on both alike.
Medians; nothing is asserted.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict

from bench.floor import Floor, floor_round
from bench.main_job import mayfly_round, surroundings


def main(words: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench main_job", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(words).rounds
    with surroundings() as place:
        print(f"{rounds} rounds, alternating; medians in seconds; accelerator {place.accelerator}\n")
        floors: list[Floor] = []
        figures: dict[str, list[float]] = defaultdict(list)
        stages: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            floors.append(floor_round(place))
            measured = mayfly_round(place)
            for name, value in measured.figures.items():
                figures[name].append(value)
            for name, value in measured.stages.items():
                stages[name].append(value)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    start = statistics.median(each.start_to_output for each in floors)
    kill = statistics.median(each.exit_to_gone for each in floors)
    print(f"{'':34}{'floor':>8}{'Mayfly':>9}{'ratio':>8}{'added':>8}")
    for name, floor, ours in (
        ("cold boot to SSH", start, medians["boot_to_ssh"]),
        ("submit to the process's first line", start, medians["submit_to_output"]),
        ("process exit to VM gone", kill, medians["exit_to_gone"]),
        ("all of it", start + kill, medians["submit_to_output"] + medians["exit_to_gone"]),
    ):
        print(f"{name:34}{floor:8.2f}{ours:9.2f}{ours / floor:8.2f}{ours - floor:8.2f}")
    print(f"\n{'stage':34}{'seconds':>8}{'share':>9}")
    total = sum(statistics.median(values) for values in stages.values())
    for name, values in stages.items():
        median = statistics.median(values)
        print(f"{name:34}{median:8.2f}{median / total:9.0%}")
