"""Keeps docs/explanation/example-report.md true: its blocks are what the code says of the traces `penguins` and
`penguins-curious` of tests/data/strace, which `record.py` there made of real runs of examples/penguins.

    python -m tests.example_report        writes the blocks anew
"""

from __future__ import annotations

import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from orchestrator.artifacts import Artifacts
from orchestrator.cli.output import printable
from orchestrator.domain.outcome import Exited, Usage
from orchestrator.domain.task import InputSpec, TaskSpec, TaskState
from orchestrator.reports.findings import keep_findings
from orchestrator.reports.findings_text import comparison, details, summary
from orchestrator.store import AttemptRow, TaskRow
from orchestrator.trace.compare import differences
from orchestrator.trace.findings import Findings
from orchestrator.trace.views import View, seen
from tests.data.strace.record import CASES, HERE

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "example-report.md"
_BLOCK = re.compile(r"(<!-- ([a-z-]+): ([a-z ]+) -->\n```text\n)(.*?)(```\n)", re.DOTALL)


def findings_of_run(name: str, home: Path) -> Findings:
    """As the runner makes them, from the trace of a run that was recorded."""
    inputs, profile, words = CASES[name]
    artifacts = Artifacts(home / name / "artifacts")
    for path, content in inputs.items():
        (home / name / path).parent.mkdir(parents=True, exist_ok=True)
        (home / name / path).write_text(content)
    given = tuple(
        InputSpec(dest, dest, artifacts.read_tree(home / name / dest), code=dest.startswith("code"))
        for dest in ("code/analyse.py", "data")
    )
    spec = TaskSpec("default", words, inputs=given, outputs=("*.csv", "*.svg"), trace=profile)
    artifacts.attempt(name.replace("-", ""), 1).trace.append((HERE / f"{name}.strace").read_bytes())
    findings = keep_findings(artifacts, task_of(name.replace("-", ""), spec), attempt_of(name.replace("-", "")))
    assert findings is not None
    return findings


def task_of(task_id: str, spec: TaskSpec) -> TaskRow:
    now = datetime.now(UTC)
    return TaskRow(
        id=task_id, spec=spec, state=TaskState.FINISHED, stage=None, reason=None, message="", exit_code=0, attempt=1,
        runner_id=None, lease_expires_at=None, cancel_requested_at=None, submitted_at=now, started_at=now,
        finished_at=now, frontend="local", priority=0, admitted_at=now, not_before=None, idempotency_key=None,
        deadline_at=None, avoid=(), submitted_by="", layer=None,
    )  # fmt: skip


def attempt_of(task_id: str) -> AttemptRow:
    now = datetime.now(UTC)
    return AttemptRow(
        task_id=task_id, number=1, runner_id="r", vm_id=None, stage=None, timings={}, outcome=Exited(0), usage=Usage(),
        artifacts={}, environment={}, started_at=now, finished_at=now, verdict=None, host=None, receipt_sha256=None,
        receipt_at=None,
    )  # fmt: skip


def page() -> str:
    """The page, its blocks made anew."""
    with tempfile.TemporaryDirectory() as home:
        runs = {name: findings_of_run(name, Path(home)) for name in ("penguins", "penguins-curious")}

    def block(found: re.Match[str]) -> str:
        findings, what = runs[found[2]], found[3]
        match what.split():
            case ["comparison"]:
                lines = comparison(differences(runs["penguins"], findings))
            case [view, "summary"]:
                lines = summary(seen(findings, View(view)))
            case [view, "details"]:
                lines = details(seen(findings, View(view)))
            case _:
                raise ValueError(f"no block {what!r}")
        return found[1] + "".join(f"{printable(line)}\n" for line in lines) + found[5]

    return _BLOCK.sub(block, PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
