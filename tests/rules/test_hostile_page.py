"""The page of the hostile guest tells of every attack that there is, and of no other."""

from __future__ import annotations

from pathlib import Path

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskState
from tests.hostile.attacks import Attack, Told
from tests.hostile.far import SCRIPTS
from tests.hostile.machines import MACHINES
from tests.hostile.report import all_attacks, named, page, row
from tests.hostile.wire import WIRE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "hostile-guest.md"
ATTACK = Attack("one | two", "does", TaskState.FINISHED)


def told(attack: Attack, message: str = "well", **changes: object) -> Told:
    facts = {"reason": None, "seconds": 1.0, "grown": 0, "written": {}, "beside": (), "kept": (), "notes": ()}
    return Told(
        attack=attack, state=attack.state, message=message, neighbour=TaskState.FINISHED, **{**facts, **changes}
    )  # type: ignore[arg-type]


def test_the_page_has_each_attack_once() -> None:
    assert named(PAGE.read_text()) == [attack.name for attack in all_attacks()]


def test_each_attack_has_a_name_of_its_own_and_those_that_only_speak_a_script() -> None:
    names = [attack.name for attack in all_attacks()]
    assert len(set(names)) == len(names)
    assert [attack.name for attack in WIRE] == list(SCRIPTS)
    assert all(attack.command for attack in MACHINES)


def test_a_page_shows_what_a_machine_said_without_obeying_it() -> None:
    shown = row(told(Attack("a", "does"), "\x1b[2J | <script>\n", written={"\u202e": 1}))
    assert shown == "| a | does | FAILED: \\x1b[2J \\| &lt;script>\\n | 1.0 | 0 | \\u202e 1 |\n"
    machines = [attack.name for attack in MACHINES]
    assert named(page([told(Attack("a", "does"))], [told(MACHINES[0])])) == ["a", *machines]


def test_what_did_not_end_as_it_must_is_told() -> None:
    assert told(ATTACK).wrong() == []
    wrong = [
        {"state": TaskState.FAILED},
        {"reason": Reason.INTERNAL},
        {"beside": ("escaped",)},
        {"grown": 1 << 30},
        {"kept": ("shadow",)},
        {"neighbour": TaskState.FAILED},
        {"tried": {"remount /": "SUCCEEDED"}},
    ]
    for change in wrong:
        facts = {field: getattr(told(ATTACK), field) for field in Told.__dataclass_fields__}
        assert len(Told(**{**facts, **change}).wrong()) == 1, change
