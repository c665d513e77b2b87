"""Sign the receipts that are due: of attempts whose runner did not live to do it, or whose machine went later."""

from __future__ import annotations

from orchestrator.domain.errors import NotFound, NotPossible
from orchestrator.receipts import issue
from orchestrator.scheduler.upkeep import Upkeep

AT_ONCE = 100


class Receipts:
    """The chore. One that cannot be signed is told of, and keeps no other back."""

    interval_seconds = 10.0
    looks_twice = False

    def __init__(self, upkeep: Upkeep) -> None:
        self._upkeep = upkeep

    async def run_once(self) -> list[str]:
        """All that is due. Raises NotPossible when there is no key that may be used."""
        upkeep, lines = self._upkeep, []
        if upkeep.keys is None:
            return []
        after: tuple[str, int] | None = None
        while due := await upkeep.store.attempts.receipt_due(AT_ONCE, after=after):
            for task_id, number in due:
                lines += await self._sign(task_id, number)
            after = due[-1]
        return lines

    async def _sign(self, task_id: str, number: int) -> list[str]:
        upkeep = self._upkeep
        if upkeep.keys is None:
            return []
        try:
            signed = await issue(upkeep.store, upkeep.artifacts, upkeep.keys, task_id, number)
        except NotPossible:
            raise
        except NotFound:  # forgotten meanwhile
            return []
        except (ValueError, OSError) as problem:
            return [f"the receipt of attempt {number} of task {task_id} cannot be signed: {problem}"]
        return [f"the receipt of attempt {number} of task {task_id} is signed"] if signed else []
