"""The suite in several processes, as `make test` runs it (`pytest -n 2`): what shares something stays in one."""

from __future__ import annotations

import pytest

TOGETHER = frozenset({"machines", "chaos"})
"""Folders: real machines all use the one cloud of the run, and campaigns want a processor to themselves."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Before the plugin that spreads the tests looks at their marks."""
    if item.path.parent.name in TOGETHER:
        item.add_marker(pytest.mark.xdist_group("machines"))
