"""Work that goes on beside a block."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from orchestrator.runner.beside import beside


async def test_work_that_breaks_off_is_told_while_the_block_runs(caplog: pytest.LogCaptureFixture) -> None:
    """It may be the heartbeats of a runner that works on for days."""
    told: list[str] = []

    async def work() -> None:
        raise ValueError("nobody foresaw that")

    with pytest.raises(ValueError, match="foresaw"):
        async with beside(work(), "heartbeats"):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    while not caplog.records:
                        await asyncio.sleep(0)
            told += [record.getMessage() for record in caplog.records if record.exc_info]
    assert told == ["heartbeats broke off"]


async def test_work_that_is_ended_with_its_block_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    async with beside(work(), "for ever"):
        await asyncio.sleep(0)
    assert not caplog.records
