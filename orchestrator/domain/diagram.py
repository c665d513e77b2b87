"""The states, drawn from the tables of legal moves.

    python -m orchestrator.domain.diagram --check FILE | --write FILE

Drawing is pure; only the last part, run as a program, touches a file.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from typing import TypeVar

from orchestrator.domain import task, vm
from orchestrator.domain.outcome import Reason

State = TypeVar("State", bound=StrEnum)


def mermaid(moves: Mapping[State, frozenset[State]], begins: Collection[State]) -> str:
    """A Mermaid state diagram. `begins`: the states in which things come to be. One without a move is an end."""
    order = list(moves)
    lines = ["stateDiagram-v2", *(f"    [*] --> {state}" for state in begins)]
    for source in order:
        lines += [f"    {source} --> {target}" for target in order if target in moves[source]]
        if not moves[source]:
            lines.append(f"    {source} --> [*]")
    return "\n".join(lines)


def page() -> str:
    """The whole page of documentation, Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# States"
    yield ""
    yield "Generated from `LEGAL_MOVES` by `python -m orchestrator.domain.diagram --write docs/reference/states.md`;"
    yield "`make check` fails when this page and the tables differ."
    yield ""
    yield "## Tasks"
    yield ""
    yield from _drawing(mermaid(task.LEGAL_MOVES, [task.TaskState.NEW, task.TaskState.QUEUED]))
    yield "NEW: being described, not yet released. QUEUED: waits for a runner. RUNNING: a runner holds it under a"
    yield "lease. WAITING: it asks its frontend for input. FINISHED: its process ran and exited with 0. Each move is"
    yield "one guarded write to the database; a move that is not drawn here changes nothing."
    yield ""
    yield "## Stages of an attempt"
    yield ""
    yield "Forward only; any stage may jump to the last."
    yield ""
    yield from (f"{number}. {stage}" for number, stage in enumerate(task.Stage, 1))
    yield ""
    yield "## Virtual machines"
    yield ""
    yield from _drawing(mermaid(vm.LEGAL_MOVES, [vm.VmState.REQUESTED]))
    yield "IN_USE never goes back to READY: a machine is used once. It is DESTROYED when OpenNebula says DONE, not when"
    yield "it was asked to end it."
    yield ""
    yield "## Reasons"
    yield ""
    yield "Why a task is where it is, to tell people with:"
    yield ""
    yield from (f"- `{reason}`" for reason in Reason)


def _drawing(text: str) -> Iterator[str]:
    yield "```mermaid"
    yield text
    yield "```"
    yield ""


def main(arguments: list[str]) -> int:
    """Write the page, or compare it: 1 if the file differs, 2 if the arguments are wrong."""
    match arguments:
        case ["--write", name]:
            with open(name, "w", encoding="utf-8") as file:  # noqa: PTH123 - the domain imports no pathlib
                file.write(page())
            return 0
        case ["--check", name]:
            try:
                with open(name, encoding="utf-8") as file:  # noqa: PTH123
                    found = file.read()
            except FileNotFoundError:
                found = ""
            if found == page():
                return 0
            print(f"{name} is not what the tables of legal moves say: write it again with --write", file=sys.stderr)
            return 1
        case _:
            print("usage: python -m orchestrator.domain.diagram --check FILE | --write FILE", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
