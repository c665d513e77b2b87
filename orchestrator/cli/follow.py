"""Following a task: its stages and what its process prints, as they come, until it is over."""

from __future__ import annotations

import asyncio
import os
import select
import sys
from typing import BinaryIO

from orchestrator.bootstrap import House
from orchestrator.cli.bars import StageLine
from orchestrator.domain.task import Stage, TaskState
from orchestrator.store import TaskRow

POLL_SECONDS = 0.1
READER_SECONDS = 0.02
"""How soon a reader of ours that is not ready for more (a pager) is asked again."""

_CHUNK = 1 << 20


class Output:
    """Copies one stream of an attempt to ours, from where it stopped last time.

    closed: nobody reads ours any more (`mayfly run … | head`), so nothing is copied either; the log has it all.
    """

    def __init__(self, house: House, task_id: str, stream: str, target: BinaryIO) -> None:
        self._house = house
        self._task_id = task_id
        self._stream = stream
        self._target = target
        self._attempt = 0
        self._offset = 0
        self.closed = False

    async def copy(self, attempt: int) -> None:
        """Everything that is there by now of this attempt's stream."""
        if attempt == 0 or self.closed:
            return
        if attempt != self._attempt:
            self._attempt, self._offset = attempt, 0
        log = self._house.artifacts.log(self._task_id, attempt, self._stream)
        while chunk := await asyncio.to_thread(log.read, self._offset, _CHUNK):
            try:
                await write(self._target, chunk)
            except BrokenPipeError:
                self.closed = True
                return
            self._offset += len(chunk)


async def write(target: BinaryIO, data: bytes) -> None:
    """Write to a file, pipe or terminal whose reader may pause: only this coroutine waits for it, while heartbeats and
    signals go on. Raises BrokenPipeError when the reader has gone."""
    target.flush()
    ready = select.poll()
    ready.register(target.fileno(), select.POLLOUT)
    left = memoryview(data)
    while left:
        if ready.poll(0):
            left = left[os.write(target.fileno(), left[: select.PIPE_BUF]) :]  # so much a ready pipe takes at once
        else:
            await asyncio.sleep(READER_SECONDS)


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
