"""What became of attacks, kept in a file, so that a run that was broken off goes on where it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import TaskState
from tests.hostile.attacks import Attack, Told


class Kept:
    """One line of JSON an attack in `file`; None: nothing is kept."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file and file.exists() else []
        self._told = {each["attack"]: each for each in map(json.loads, lines)}

    def of(self, attack: Attack) -> Told | None:
        """What became of it, if it ended as it must."""
        facts = self._told.get(attack.name)
        told = None if facts is None else _told(attack, facts)
        return told if told and not told.wrong() else None

    def add(self, told: Told) -> None:
        if self._file:
            facts = {field.name: getattr(told, field.name) for field in dataclasses.fields(Told)}
            with self._file.open("a") as file:
                print(json.dumps({**facts, "attack": told.attack.name}), file=file)


def _told(attack: Attack, facts: dict[str, Any]) -> Told:
    state, reason = TaskState(facts["state"]), facts["reason"] and Reason(facts["reason"])
    lists = {name: tuple(facts[name]) for name in ("beside", "kept", "notes")}
    read = {**facts, **lists, "state": state, "reason": reason, "neighbour": TaskState(facts["neighbour"])}
    return Told(**{**read, "attack": attack.that_ended(state, reason)})
