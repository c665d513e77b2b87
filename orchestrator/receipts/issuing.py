"""The receipt of an attempt, written once, beside what the attempt left."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from pathlib import Path

from orchestrator.artifacts import Artifacts, DocumentName
from orchestrator.artifacts.disk import locked, make_folder
from orchestrator.domain.errors import HostDiskFull
from orchestrator.domain.vm import VmState
from orchestrator.receipts.envelope import sealed
from orchestrator.receipts.gathering import Facts, gather
from orchestrator.receipts.keys import Keys
from orchestrator.receipts.statement import as_json
from orchestrator.reports.findings import keep_findings, kept_findings
from orchestrator.store import Store

_ALL = 1_000_000

_log = logging.getLogger(__name__)


async def issue(store: Store, artifacts: Artifacts, keys: Keys, task_id: str, number: int) -> Path | None:
    """Sign the statement of an attempt and keep it; where it is. None: it is not due: the attempt is not over, its VM
    is not gone, or one before it has no receipt yet, whose hash this one will name.

    Again is fine: what is there stays. Raises NotFound, NotPossible (the key
    cannot be used), ValueError (an artifact cannot be read), HostDiskFull.
    """
    path = artifacts.document(task_id, number, DocumentName.RECEIPT)
    facts = await facts_of(store, task_id, number)
    if facts is None:
        return None
    if facts.attempt.receipt_sha256 is not None:
        return path
    sha256 = await asyncio.to_thread(_keep, facts, artifacts, keys)
    await store.attempts.record_receipt(task_id, number, sha256, now=store.clock.now())
    return path


def _keep(facts: Facts, artifacts: Artifacts, keys: Keys) -> str:
    """Its sha256. One that is there already stays: whoever wrote it may not have lived to record it."""
    folder = make_folder(artifacts.document(facts.task.id, facts.attempt.number, DocumentName.RECEIPT).parent)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with locked(fd):
            there = receipt_bytes(artifacts, facts.task.id, facts.attempt.number)
            return _write(facts, artifacts, keys) if there is None else hashlib.sha256(there).hexdigest()
    finally:
        os.close(fd)


def _write(facts: Facts, artifacts: Artifacts, keys: Keys) -> str:
    signer = keys.signer()  # which is refused before anything is read
    if kept_findings(artifacts, facts.task.id, facts.attempt.number) is None:
        _find(facts, artifacts)
    envelope = sealed(as_json(gather(facts, artifacts)), signer)
    return artifacts.keep_json(facts.task.id, facts.attempt.number, DocumentName.RECEIPT, envelope)


def _find(facts: Facts, artifacts: Artifacts) -> None:
    """What the trace means. A process writes its own trace, in a way: whatever it makes of it, there is a receipt."""
    try:
        keep_findings(artifacts, facts.task, facts.attempt)
    except HostDiskFull:
        raise
    except Exception:
        _log.exception("the trace of attempt %s of task %s was not understood", facts.attempt.number, facts.task.id)


async def facts_of(store: Store, task_id: str, number: int) -> Facts | None:
    """What the rows say of an attempt that is due. None: it is not. Raises NotFound."""
    task = await store.tasks.get(task_id)
    rows = await store.attempts.of_task(task.id)
    attempt = next((each for each in rows if each.number == number), None)
    if attempt is None or attempt.finished_at is None:
        return None
    before = [each for each in rows if each.number < number]
    if any(each.receipt_sha256 is None for each in before):
        return None
    vms = await store.vms.of_task(task.id)
    if any(vm.attempt == number and vm.state is not VmState.DESTROYED for vm in vms):
        return None
    return Facts(
        task=task,
        attempt=attempt,
        before=before,
        vm=next((vm for vm in vms if vm.id == attempt.vm_id), None),
        events=await store.events.list(task_id=task.id, limit=_ALL),
        layer=await store.layers.of_task(task.id),
    )


def receipt_bytes(artifacts: Artifacts, task_id: str, number: int) -> bytes | None:
    """The file of a receipt; None: there is none."""
    try:
        return artifacts.document(task_id, number, DocumentName.RECEIPT).read_bytes()
    except FileNotFoundError:
        return None
