"""The suite in several processes, as `make test` runs it (`pytest -n 2`): what shares something stays in one."""

from __future__ import annotations

import pytest

TOGETHER = {"machines": "machines", "chaos": "machines"}
"""By folder: real machines all use the one cloud of the run, and campaigns want a processor to themselves."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(config.rootpath / "tests").parts[0] if "tests" in item.path.parts else ""
        if group := TOGETHER.get(folder):
            item.add_marker(pytest.mark.xdist_group(group))
