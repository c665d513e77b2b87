"""Tasks: what frontends submit, what runners claim. Each change of state is one guarded write, in the room of the one
who makes it."""

from __future__ import annotations

from orchestrator.store.admitting import Admitting
from orchestrator.store.claiming import Claiming
from orchestrator.store.ending import Ending
from orchestrator.store.holding import Holding
from orchestrator.store.pruning import Pruning
from orchestrator.store.reading import Reading
from orchestrator.store.submitting import Submitting


class Tasks(Submitting, Admitting, Claiming, Holding, Ending, Pruning, Reading):
    """All that can be asked of tasks."""
