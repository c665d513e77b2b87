"""What the trace of an attempt means: made once when it is over and kept beside its logs, or made when asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from orchestrator.artifacts import Artifacts, DocumentName, LogName
from orchestrator.decide.entrypoint import argv_of
from orchestrator.domain.errors import PlatformError
from orchestrator.domain.task import Entrypoint, InputSpec, TaskSpec, TraceProfile
from orchestrator.store import AttemptRow, TaskRow
from orchestrator.trace.findings import FORMAT, Finder, Findings
from orchestrator.trace.known import Known

_CHUNK = 1 << 20


def findings_of(artifacts: Artifacts, task: TaskRow, attempt: AttemptRow) -> Findings | None:
    """Those that are kept, or made from the trace now; None: nothing was traced. Of an attempt that goes on: so far.

    Blocks, for some seconds where a trace is long. As docs/reference/findings.schema.json has them, the names for
    either view in them: who prints them goes through `orchestrator.trace.views`.
    """
    kept = kept_findings(artifacts, task.id, attempt.number)
    return kept if kept is not None else _make(artifacts, task, attempt)


def kept_findings(artifacts: Artifacts, task_id: str, number: int) -> Findings | None:
    """Those that are kept, and nothing is made; None: there are none, or they are not to be read any more."""
    try:
        kept = artifacts.read_json(task_id, number, DocumentName.FINDINGS)
    except ValueError:
        return None
    return kept if isinstance(kept, dict) and kept.get("format") == FORMAT else None


def keep_findings(artifacts: Artifacts, task: TaskRow, attempt: AttemptRow) -> Findings | None:
    """Make them and keep them, when the process is over and its outcome is written down. None: nothing was traced.
    Blocks. Raises HostDiskFull."""
    made = _make(artifacts, task, attempt)
    if made is not None:
        artifacts.keep_json(task.id, attempt.number, DocumentName.FINDINGS, made)
    return made


def _make(artifacts: Artifacts, task: TaskRow, attempt: AttemptRow) -> Findings | None:
    log = artifacts.log(task.id, attempt.number, LogName.TRACE)
    state = log.state()
    if task.spec.trace is TraceProfile.NONE or not state.kept_bytes:
        return None
    finder = Finder(known_of(artifacts, task.spec))
    offset = 0
    while chunk := log.read(offset, _CHUNK):
        finder.feed(chunk)
        offset += len(chunk)
    findings = finder.findings()
    tracer = attempt.environment.get("trace")
    findings["trace"]["cut"] = state.cut or bool(tracer and tracer.get("cut"))
    return {**findings, "task": _task(artifacts, task, attempt), "tracer": tracer}


def known_of(artifacts: Artifacts, spec: TaskSpec) -> Known:
    """What is known of a run before it begins."""
    return Known(
        command=argv_of(spec),
        inputs={each.dest: _files(artifacts, each) for each in spec.inputs},
        code=frozenset(each.dest for each in spec.inputs if _is_code(each, spec.entrypoint)),
        outputs=spec.outputs,
    )


def _task(artifacts: Artifacts, task: TaskRow, attempt: AttemptRow) -> dict[str, Any]:
    spec, outcome = task.spec, attempt.outcome
    return {
        "id": task.id,
        "attempt": attempt.number,
        "command": list(argv_of(spec)),
        "trace_profile": spec.trace.value,
        "inputs": [
            {
                "dest": each.dest,
                "blob": each.blob,
                "code": _is_code(each, spec.entrypoint),
                "files": len(_files(artifacts, each)),
            }
            for each in spec.inputs
        ],
        "outputs": list(spec.outputs),
        "layer": task.layer,
        "outcome": None if outcome is None else {"kind": type(outcome).__name__, **dataclasses.asdict(outcome)},
    }


def _files(artifacts: Artifacts, given: InputSpec) -> tuple[str, ...]:
    """The paths of an input's files, in order; none when it is not kept any more."""
    return tuple(_paths(artifacts, given.blob))


def _paths(artifacts: Artifacts, blob: str) -> Iterator[str]:
    if not blob:
        return
    try:
        tree = artifacts.tree(blob)
    except PlatformError:
        return
    for entry in tree.files:
        # a name that is not UTF-8 as the trace's names are made readable
        yield entry.path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _is_code(given: InputSpec, entrypoint: Entrypoint) -> bool:
    conventional = entrypoint in (Entrypoint.DATA_EXCHANGE, Entrypoint.BLIND_SANE)
    return given.code or entrypoint is Entrypoint.LAYER or (conventional and given.dest.split("/")[0] == "code")
