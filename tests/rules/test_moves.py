"""The tables of legal moves, and the page that is drawn from them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.domain import task, vm
from orchestrator.domain.diagram import main, mermaid, page
from orchestrator.domain.task import TaskState
from orchestrator.domain.vm import VmState

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("states, moves", [(TaskState, task.LEGAL_MOVES), (VmState, vm.LEGAL_MOVES)])
def test_every_state_is_in_its_table_and_can_be_reached_and_left_for_an_end(states, moves) -> None:
    assert set(moves) == set(states)
    first = next(iter(states))
    reached, frontier = set(), [first]
    while frontier:
        state = frontier.pop()
        if state not in reached:
            reached.add(state)
            frontier += moves[state]
    assert reached == set(states)
    ends = {state for state in states if not moves[state]}
    for state in states:
        seen, frontier = set(), [state]
        while frontier:
            at = frontier.pop()
            if at not in seen:
                seen.add(at)
                frontier += moves[at]
        assert seen & ends, f"{state} never ends"


def test_a_machine_is_used_once() -> None:
    after_use, frontier = set(), [VmState.IN_USE]
    while frontier:
        for state in vm.LEGAL_MOVES[frontier.pop()] - after_use:
            after_use.add(state)
            frontier.append(state)
    assert after_use == {VmState.DESTROYING, VmState.DESTROYED}


def test_what_is_over_stays_over() -> None:
    assert {state for state in TaskState if state.over} == {TaskState.FINISHED, TaskState.FAILED, TaskState.CANCELED}


@pytest.mark.parametrize("moves, begins", [(task.LEGAL_MOVES, [TaskState.NEW]), (vm.LEGAL_MOVES, [VmState.REQUESTED])])
def test_the_drawing_has_each_legal_move_and_no_other(moves, begins) -> None:
    arrows = set(re.findall(r"^    (\w+) --> (\w+)$", mermaid(moves, begins), re.MULTILINE))
    assert arrows == {(str(source), str(target)) for source, targets in moves.items() for target in targets}


def test_the_page_in_the_docs_is_what_the_tables_say() -> None:
    check = [sys.executable, "-m", "orchestrator.domain.diagram", "--check", "docs/reference/states.md"]
    run = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_the_check_fails_when_page_and_tables_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "states.md"
    assert main(["--check", str(copy)]) == 1
    assert main(["--write", str(copy)]) == 0
    assert copy.read_text() == page()
    assert main(["--check", str(copy)]) == 0
    copy.write_text(page().replace("IN_USE --> DESTROYING", "IN_USE --> READY"))
    assert main(["--check", str(copy)]) == 1
    assert "--write" in capsys.readouterr().err
    assert main([]) == 2
