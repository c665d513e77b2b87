"""Does a statement agree with itself? What was signed can still be wrong, if who signed it was."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from orchestrator.domain import outcome as ends
from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.receipts import statement as said
from orchestrator.receipts.names import MANIFEST

_JUDGED = (
    Reason.EXIT_NONZERO, Reason.SIGNALED, Reason.OUT_OF_MEMORY, Reason.TIMED_OUT, Reason.DISK_FULL,
)  # fmt: skip
"""Reasons that say how the process ended."""


def complaints(statement: said.Statement) -> Iterator[str]:
    """What does not go together, a line each."""
    receipt = statement.predicate
    yield from _end(receipt)
    yield from _machine(receipt)
    yield from _seal(receipt)
    yield from _stages(receipt.attempt)
    yield from _subjects(statement)
    numbers = [each.number for each in receipt.earlier]
    if numbers != list(range(1, receipt.attempt.number)):
        yield f"it is attempt {receipt.attempt.number}, and the attempts before it are said to be {numbers}"


def outcome_of(data: said.Outcome) -> ends.Outcome:
    """In the words of the domain."""
    match data:
        case said.Exited():
            return ends.Exited(data.code)
        case said.Signaled():
            return ends.Signaled(data.name)
        case said.OutOfMemory():
            return ends.OutOfMemory(data.limit_bytes, data.peak_bytes)
        case said.DiskFull():
            return ends.DiskFull(data.where, data.limit_bytes, data.code)
        case said.TimedOut():
            return ends.TimedOut(data.seconds)
        case said.Lost():
            return ends.Lost(data.why)
        case _:
            assert_never(data)


def _end(receipt: said.Receipt) -> Iterator[str]:
    end = receipt.end
    if end is None:
        return
    found = None if receipt.outcome is None else outcome_of(receipt.outcome)
    if end.state == TaskState.FINISHED:
        if found != ends.Exited(0) or end.exit_code != 0:
            yield f"it is FINISHED, and its process is said to have ended so: {_told(found)}"
        if receipt.outputs is not None and not receipt.outputs.complete:
            yield "it is FINISHED, and its outputs are said not to be complete"
    if end.reason in _JUDGED:
        verdict = None if found is None else ends.judge(found)
        if verdict is None or verdict.reason != end.reason:
            yield f"the reason is {end.reason}, and its process is said to have ended so: {_told(found)}"
        elif end.exit_code not in (None, verdict.exit_code):
            yield f"the exit code is {end.exit_code}, and its process is said to have ended so: {_told(found)}"


def _told(outcome: ends.Outcome | None) -> str:
    return "it never ran" if outcome is None else ends.judge(outcome).message


def _machine(receipt: said.Receipt) -> Iterator[str]:
    machine = receipt.machine
    if machine is None:
        if receipt.outcome is not None:
            yield "a process ended, and no machine is named"
        return
    if machine.state != VmState.DESTROYED or machine.destroyed_at is None:
        yield f"its machine {machine.id} is {machine.state}: there is no proof that it is gone"
    elif machine.proof is None:
        yield f"its machine {machine.id} is said to be gone, without a proof"
    elif machine.proof.disks is not None and machine.proof.disks.left:
        yield f"a disk of its machine {machine.id} is still there: {', '.join(machine.proof.disks.left)}"


def _seal(receipt: said.Receipt) -> Iterator[str]:
    """No process runs in a machine whose seal does not hold; an open profile promises nothing."""
    if receipt.outcome is None:
        return
    for probe in receipt.seal.probes or ():
        if probe.reached:
            yield f"a process ran, and its machine could reach {probe.target}"
    outside = receipt.seal.outside
    if isinstance(outside, dict) and outside.get("holds") is False:
        yield "a process ran, and the cloud said that its machine was not sealed"


def _stages(attempt: said.Attempt) -> Iterator[str]:
    order = [stage.value for stage in Stage]
    named = [each.stage for each in attempt.stages]
    if not set(named) <= set(order) or named != sorted(named, key=order.index):
        yield f"stages are named in an order that there is not: {', '.join(named)}"


def _subjects(statement: said.Statement) -> Iterator[str]:
    receipt = statement.predicate
    names = [subject.name for subject in statement.subject]
    if len(set(names)) != len(names):
        yield "a subject is named twice"
    hashes = {subject.name: subject.digest.sha256 for subject in statement.subject}
    for name in ("logs/stdout", "logs/stderr"):
        if name not in hashes:
            yield f"{name} is no subject"
    if receipt.trace.sha256 not in (None, hashes.get("logs/trace"), hashes.get("logs/trace.gz")):
        yield "the trace's hash is said twice, and differently"
    outputs = [name for name in names if name.startswith("outputs/")]
    if receipt.outputs is None:
        if outputs or MANIFEST in hashes:
            yield "there are outputs, and no word of them"
    elif hashes.get(MANIFEST) != receipt.outputs.manifest_sha256:
        yield "the hash of the outputs' manifest is said twice, and differently"
    elif len(outputs) != (receipt.outputs.files if receipt.outputs.listed else 0):
        yield f"{receipt.outputs.files} outputs are said to be there, and {len(outputs)} are subjects"
