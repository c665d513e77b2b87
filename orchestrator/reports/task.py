"""A task's report: what was asked, what happened stage by stage, what came out, and the proof that its machine is gone.

Plain values, ready for JSON; `text` draws the same for people.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from orchestrator.artifacts import Artifacts, Log, LogName, Tree
from orchestrator.domain.display import shown_name
from orchestrator.domain.pool import Disclosure
from orchestrator.domain.proof import CloseProof
from orchestrator.domain.vm import VmState
from orchestrator.reports.ended import end_of, queued_at
from orchestrator.reports.findings import kept_findings
from orchestrator.reports.findings_text import summary
from orchestrator.reports.receipt import told_of
from orchestrator.reports.waiting import Standing, is_canceling, standing_json
from orchestrator.store import AttemptRow, EventKind, EventRow, ReviewRow, Store, TaskRow, VmRow
from orchestrator.trace.views import researcher

Report = dict[str, Any]

_ALL = 1_000_000


async def report_of(
    store: Store,
    artifacts: Artifacts,
    task: TaskRow,
    *,
    standing: Standing | None = None,
    disclosure: Disclosure | None = None,
) -> Report:
    """The whole report, as docs/reference/report.md explains it; `standing` is what `waiting.Line` said, `disclosure`
    what is in force; None: nobody has asked."""
    vms = {vm.id: vm for vm in await store.vms.of_task(task.id)}
    events = await store.events.list(task_id=task.id, limit=_ALL)
    rows = await store.attempts.of_task(task.id)
    attempts = [
        await asyncio.to_thread(
            _attempt, attempt, queued_at(task.submitted_at, before), vms.get(attempt.vm_id or ""), events, artifacts
        )
        for before, attempt in zip((None, *rows), rows, strict=False)
    ]
    notes = [
        {"at": event.at, "attempt": event.attempt, "message": event.data["message"]}
        for event in events
        if event.kind == EventKind.NOTE
    ]
    left = any(vm.state is not VmState.DESTROYED for vm in vms.values())
    spec = task.spec
    layer = await store.layers.of_task(task.id)
    review = await store.reviews.get(task.id)
    added = await store.tasks.depends_on(task.id)  # with those that it was given when it was released
    return {
        "id": task.id,
        "name": spec.name,
        "state": task.state,
        "stage": task.stage,
        "reason": task.reason,
        "message": task.message,
        "waits_for": standing_json(standing),
        "exit_code": task.exit_code,
        "cancel_requested_at": task.cancel_requested_at,
        "canceling": is_canceling(task, left),
        "pool": spec.pool,
        "frontend": task.frontend,
        "submitted_by": task.submitted_by,
        "disclosure": disclosure,
        "review": None if review is None else _review(review),
        "command": list(spec.command),
        "entrypoint": spec.entrypoint,
        "trace_profile": spec.trace,
        "inputs": [dataclasses.asdict(each) for each in spec.inputs],
        "outputs": list(spec.outputs),
        "packages": dataclasses.asdict(spec.packages),
        "layer": None if layer is None else dataclasses.asdict(layer),
        **dataclasses.asdict(spec.limits),
        **dataclasses.asdict(spec.terms),
        "depends_on": list(dict.fromkeys((*spec.terms.depends_on, *added))),
        "idempotency_key": task.idempotency_key,
        "submitted_at": task.submitted_at,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "deadline_at": task.deadline_at,
        "attempts": attempts,
        "notes": notes,
    }


def _review(review: ReviewRow) -> Report:
    return {"decision": review.decision, "by": review.by, "why": review.why, "at": review.at}


def _attempt(
    attempt: AttemptRow, queued_at: datetime, vm: VmRow | None, events: Sequence[EventRow], artifacts: Artifacts
) -> Report:
    outputs = artifacts.outputs(attempt.task_id, attempt.number)
    findings = kept_findings(artifacts, attempt.task_id, attempt.number)
    outcome = attempt.outcome
    end = end_of(events, attempt.number)
    receipt, lines = told_of(attempt, artifacts)
    return {
        "number": attempt.number,
        "runner": attempt.runner_id,
        "queued_at": queued_at,
        "started_at": attempt.started_at,
        "finished_at": attempt.finished_at,
        "reason": None if end is None else end.data.get("reason"),
        "message": "" if end is None else end.data.get("message", ""),
        "requeued": end is not None and end.kind == EventKind.TASK_REQUEUED,
        "host": attempt.host,
        "stages": [
            {
                "stage": stage,
                "started_at": start,
                "ended_at": end,
                "seconds": None if end is None else (end - start).total_seconds(),
            }
            for stage, (start, end) in attempt.timings.items()
        ],
        "outcome": None if outcome is None else {"kind": type(outcome).__name__, **dataclasses.asdict(outcome)},
        "cpu_seconds": attempt.usage.cpu_seconds,
        "memory_peak_bytes": attempt.usage.memory_peak_bytes,
        "machine": attempt.environment,
        "vm": None if vm is None else _vm(vm),
        "logs": [_log(name, artifacts.log(attempt.task_id, attempt.number, name), lines.get(name)) for name in LogName],
        "outputs": None if outputs is None else manifest_of(outputs),
        "findings": None if findings is None else list(summary(researcher(findings))),
        "receipt": receipt,
    }


def _vm(vm: VmRow) -> Report:
    proof = None if vm.close_proof is None else CloseProof.decode(vm.close_proof)
    return {
        "id": vm.id,
        "cloud_id": vm.cloud_id,
        "image_version": vm.image_version,
        "host_key": vm.host_key,
        "address": vm.address,
        "state": vm.state,
        "created_at": vm.created_at,
        "destroyed_at": vm.destroyed_at,
        "proof": None if proof is None else proof.text,
        "gone": None if proof is None else proof.document,
    }


def _log(name: LogName, log: Log, lines: int | None) -> Report:
    state = log.state()
    facts = {"bytes": state.kept_bytes, "lines": lines, "cut": state.cut, "seen_bytes": state.seen_bytes}
    return {"name": name, **facts}


def manifest_of(tree: Tree) -> Report:
    """The outputs of an attempt: `complete`, and of each file its path, the same as a person may see it, size in bytes,
    permission bits, sha256, and media type as its content has it."""
    return {
        "complete": tree.complete,
        "files": [
            {
                "path": file.path,
                "shown": shown_name(file.path),
                "size": file.size,
                "mode": f"{file.mode:04o}",
                "sha256": file.sha256,
                "media_type": file.media_type or None,
            }
            for file in tree.files
        ],
    }
