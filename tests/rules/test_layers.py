"""`make check` notices a broken layer: a copy of the tree with a violation in it fails, the bare copy passes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VIOLATIONS = {
    "domain imports a door": ("domain/task.py", "from orchestrator import store"),
    "a rule does I/O": ("decide/__init__.py", "import socket"),
    "a door imports its sibling": ("guest/__init__.py", "from orchestrator import opennebula"),
    "a door reaches up": ("artifacts/__init__.py", "from orchestrator import runner"),
    "the runner meets the scheduler": ("runner/__init__.py", "from orchestrator import scheduler"),
    "the client reaches into the local cloud": ("opennebula/__init__.py", "from orchestrator import localcloud"),
    "the local cloud reaches into ours": ("localcloud/__init__.py", "from orchestrator import domain"),
    "measurements read the database": ("telemetry/__init__.py", "from orchestrator import store"),
    "the metrics import an extra": ("telemetry/metrics.py", "import opentelemetry"),
    "reports meets a machine": ("reports/__init__.py", "from orchestrator import guest"),
    "receipts meets a machine": ("receipts/__init__.py", "from orchestrator import opennebula"),
}


def check_contracts(tree: Path) -> subprocess.CompletedProcess[str]:
    """What `make check` runs of its import contracts, in `tree`, with this interpreter's environment."""
    return subprocess.run(
        ["make", "-o", "packages", "-o", "venv", "contracts", f"BIN={Path(sys.executable).parent}"],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "orchestrator", tmp_path / "orchestrator", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_make_check_includes_the_contracts() -> None:
    plan = subprocess.run(
        ["make", "-n", "-o", "packages", "-o", "venv", "check"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "lint-imports" in plan.stdout


def test_the_tree_as_it_is_passes(tree: Path) -> None:
    result = check_contracts(tree)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_planted_violation_fails(tree: Path, violation: str) -> None:
    path, line = VIOLATIONS[violation]
    module = tree / "orchestrator" / path
    source = module.read_text()
    module.write_text(f"{source}\n{line}\n")
    result = check_contracts(tree)
    assert result.returncode != 0, f"{violation}: the contracts passed"
    assert "BROKEN" in result.stdout
