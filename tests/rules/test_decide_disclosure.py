"""Who may see results, and who may release them."""

from __future__ import annotations

import itertools

import pytest

from orchestrator.decide.disclosure import in_force, why_not_by, withheld
from orchestrator.domain.pool import Disclosure

OPEN, REVIEW, FOUR_EYES = Disclosure


@pytest.mark.parametrize(("recorded", "pool"), list(itertools.product([None, *Disclosure], repeat=2)))
def test_the_stricter_of_two_holds_and_what_nobody_opened_is_closed(
    recorded: Disclosure | None, pool: Disclosure | None
) -> None:
    said = {each for each in (recorded, pool) if each is not None}
    expected = FOUR_EYES if FOUR_EYES in said else REVIEW if REVIEW in said or not said else OPEN
    assert in_force(recorded, pool) is expected


@pytest.mark.parametrize(
    ("disclosure", "decision", "seen"),
    [
        (OPEN, None, True),
        (OPEN, "released", True),
        (OPEN, "rejected", False),
        (REVIEW, None, False),
        (REVIEW, "released", True),
        (REVIEW, "rejected", False),
        (FOUR_EYES, None, False),
        (FOUR_EYES, "released", True),
        (FOUR_EYES, "rejected", False),
    ],
)
def test_what_may_be_seen(disclosure: Disclosure, decision: str | None, seen: bool) -> None:
    assert (withheld(disclosure, decision) == "") is seen


def test_a_decision_that_there_is_not_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="maybe"):
        withheld(OPEN, "maybe")


@pytest.mark.parametrize("disclosure", [OPEN, REVIEW])
def test_anybody_decides_where_four_eyes_are_not_asked_for(disclosure: Disclosure) -> None:
    assert why_not_by(disclosure, submitted_by="ada", by="ada") == ""
    assert why_not_by(disclosure, submitted_by="", by="ada") == ""


def test_four_eyes_are_those_of_two() -> None:
    assert why_not_by(FOUR_EYES, submitted_by="ada", by="bob") == ""
    assert "ada submitted it" in why_not_by(FOUR_EYES, submitted_by="ada", by="ada")
    assert "nobody knows" in why_not_by(FOUR_EYES, submitted_by="", by="bob")
