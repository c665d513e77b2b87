"""A machine that lies, stalls and floods: each attack ends in time, for a true reason, and touches nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.attacks import Attack
from tests.hostile.far import SCRIPTS
from tests.hostile.wire import WIRE, attacked


@pytest.mark.parametrize("attack", WIRE, ids=lambda attack: attack.name)
async def test_an_attack_of_a_machine_that_only_speaks(attack: Attack, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    told = await attacked(attack, folder)
    assert told.wrong() == []


def test_each_attack_has_its_script() -> None:
    assert [attack.name for attack in WIRE] == list(SCRIPTS)
