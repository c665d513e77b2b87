"""What is read at run time is in the wheel, under the names by which `settings.data_root` finds it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_everything_that_is_read_beside_the_package_is_put_into_it() -> None:
    read = set()
    for path in (ROOT / "orchestrator").rglob("*.py"):
        read.update(re.findall(r'data_root\(\) / "([^"]+)"', path.read_text()))
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    included = wheel["force-include"]
    assert read >= {"playbooks", "templates", "images", "inventories"}
    assert read <= set(included)
    assert all(included[name] == f"orchestrator/_data/{name}" and (ROOT / name).exists() for name in included)


def test_guest_scripts_and_migrations_lie_inside_the_package() -> None:
    """hatchling takes every file of a package that git does not ignore."""
    ignored = (ROOT / ".gitignore").read_text().split()
    scripts = ("guest/scripts/look.sh", "guest/scripts/arm.py")
    for inside in (*scripts, "store/migrations/script.py.mako"):
        assert (ROOT / "orchestrator" / inside).is_file()
    assert not {"*.sh", "*.mako", "scripts/"} & set(ignored)
