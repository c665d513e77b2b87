"""Following a task: its stages and what its process prints, as they come, until it is over."""

from __future__ import annotations

import asyncio
import sys
from typing import BinaryIO

from orchestrator.bootstrap import House
from orchestrator.cli.bars import StageLine
from orchestrator.domain.task import Stage, TaskState
from orchestrator.store import TaskRow

POLL_SECONDS = 0.1
_CHUNK = 1 << 20


class Output:
    """Copies one stream of an attempt to ours, from where it stopped last time."""

    def __init__(self, house: House, task_id: str, stream: str, target: BinaryIO) -> None:
        self._house = house
        self._task_id = task_id
        self._stream = stream
        self._target = target
        self._attempt = 0
        self._offset = 0

    async def copy(self, attempt: int) -> None:
        """Everything that is there by now of this attempt's stream."""
        if attempt == 0:
            return
        if attempt != self._attempt:
            self._attempt, self._offset = attempt, 0
        log = self._house.artifacts.log(self._task_id, attempt, self._stream)
        while chunk := await asyncio.to_thread(log.read, self._offset, _CHUNK):
            self._target.write(chunk)
            self._target.flush()
            self._offset += len(chunk)


async def follow(house: House, task_id: str, line: StageLine, *, copy: bool) -> TaskRow:
    """Until the task is over. `copy`: what the process prints goes to our stdout and stderr."""
    outputs = (
        [Output(house, task_id, "stdout", sys.stdout.buffer), Output(house, task_id, "stderr", sys.stderr.buffer)]
        if copy
        else []
    )
    shown: tuple[TaskState, Stage | None] | None = None
    while True:
        task = await house.store.tasks.get(task_id)
        if (task.state, task.stage) != shown:
            shown = (task.state, task.stage)
            if task.stage is not None:
                line.stage(task.stage)
            elif task.state is TaskState.QUEUED:
                line.show("waiting in the queue")
        for output in outputs:
            await output.copy(task.attempt)
        if task.state.over:
            return task
        await asyncio.sleep(POLL_SECONDS)
