"""Each journey has a house of its own, that must be empty at the end; one that fails prints its event log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runner import heartbeats, placing, taking, warm
from tests.journeys.house import House, event_log, make_house


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners of this process look more often than they need to in life."""
    monkeypatch.setattr(heartbeats, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(placing, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(taking, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(warm, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(warm, "APART_SECONDS", 0.01)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with make_house(tmp_path / "home") as house:
        yield house


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    house = getattr(item, "funcargs", {}).get("house")
    if report.failed and isinstance(house, House):
        report.sections.append(("event log", event_log(house.settings.home)))
    return report
