"""What is known of an attempt, put together as its statement. Nothing of now is in it: gathered again, it is the
same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.artifacts import Artifacts, DocumentName, Entry, LogName, Tree
from orchestrator.domain.proof import CloseProof
from orchestrator.domain.task import TaskSpec
from orchestrator.receipts import statement as said
from orchestrator.receipts.names import MANIFEST, text_of, uri_of
from orchestrator.reports.ended import end_of
from orchestrator.store import AttemptRow, EventKind, EventRow, LayerRow, TaskRow, VmRow
from orchestrator.store.encoding import outcome_to_json

MOST_NAMES_BYTES = 8 * 2**20
"""Of all outputs' names together. Beyond, the receipt names the manifest alone: a receipt stays small enough to be
kept, whatever a process writes."""
LOGS = (LogName.STDOUT, LogName.STDERR, LogName.TRACE)
_CHUNK = 1 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Facts:
    """Rows about one attempt. before: the attempts before it. events: the task's. layer: that it ran with."""

    task: TaskRow
    attempt: AttemptRow
    before: Sequence[AttemptRow]
    vm: VmRow | None
    events: Sequence[EventRow]
    layer: LayerRow | None


def gather(facts: Facts, artifacts: Artifacts) -> said.Statement:
    """The statement. Reads every log once, as it is kept. Blocking."""
    task, attempt = facts.task, facts.attempt
    known = attempt.environment
    tree = artifacts.outputs(task.id, attempt.number)
    manifest = manifest_path(artifacts, task.id, attempt.number)
    outputs = None if tree is None else _outputs(tree, _sha256(manifest)[0])
    logs = {name: _log(artifacts, task.id, attempt.number, name) for name in LOGS}
    trace = logs[LogName.TRACE]
    subjects = [*logs.values()]
    if tree is not None and outputs is not None:
        digest = said.Digest(sha256=outputs.manifest_sha256)
        size = manifest.stat().st_size
        subjects.append(said.Subject(name=MANIFEST, digest=digest, annotations=said.Facts(size=size)))
        subjects += map(_output, tree.files) if outputs.listed else ()
    findings = artifacts.document(task.id, attempt.number, DocumentName.FINDINGS)
    return said.Statement(
        subject=[each for each in subjects if each is not None],
        predicate=said.Receipt(
            mayfly_version=__version__,
            task=_task(task),
            attempt=_attempt(attempt),
            earlier=[_earlier(each, facts.events) for each in facts.before],
            machine=None if facts.vm is None else _machine(facts.vm, attempt),
            image=plain(known.get("image")),
            process=_process(task.spec, facts.layer),
            seal=_seal(known),
            trace=said.Trace(
                profile=task.spec.trace.value,
                sha256=trace.digest.sha256 if trace.annotations.size else None,
                recorded=plain(known.get("trace")),
                findings_sha256=_sha256(findings)[0] if findings.exists() else None,
            ),
            limits=known.get("limits"),
            outcome=None if attempt.outcome is None else _outcome(outcome_to_json(attempt.outcome)),
            usage=said.Used(
                cpu_seconds=_amount(attempt.usage.cpu_seconds),
                memory_peak_bytes=attempt.usage.memory_peak_bytes,
                read_bytes=attempt.usage.read_bytes,
                written_bytes=attempt.usage.written_bytes,
            ),
            end=_end(task, attempt, facts.events),
            outputs=outputs,
            disclosure=known.get("disclosure"),
        ),
    )


def _task(task: TaskRow) -> said.Task:
    return said.Task(
        id=task.id,
        name=text_of(task.spec.name),
        pool=task.spec.pool,
        frontend=text_of(task.frontend),
        submitted_by=text_of(task.submitted_by),
        submitted_at=instant(task.submitted_at),
    )


def _attempt(attempt: AttemptRow) -> said.Attempt:
    if attempt.finished_at is None:
        raise AssertionError("a receipt of an attempt that is not over")
    return said.Attempt(
        number=attempt.number,
        runner=text_of(attempt.runner_id),
        started_at=instant(attempt.started_at),
        finished_at=instant(attempt.finished_at),
        stages=[
            said.Stage(stage=stage.value, started_at=instant(begun), ended_at=None if over is None else instant(over))
            for stage, (begun, over) in attempt.timings.items()
        ],
    )


def _earlier(attempt: AttemptRow, events: Iterable[EventRow]) -> said.Earlier:
    end = end_of(events, attempt.number)
    return said.Earlier(
        number=attempt.number,
        reason=None if end is None else end.data.get("reason"),
        receipt_sha256=attempt.receipt_sha256,
    )


def _machine(vm: VmRow, attempt: AttemptRow) -> said.Machine:
    host = attempt.host or vm.host
    return said.Machine(
        id=vm.id,
        cloud_id=vm.cloud_id,
        host=None if host is None else text_of(host),
        host_key=vm.host_key,
        image_version=text_of(vm.image_version),
        state=vm.state.value,
        requested_at=instant(vm.created_at),
        destroyed_at=None if vm.destroyed_at is None else instant(vm.destroyed_at),
        proof=_proof(vm.close_proof),
    )


def _proof(kept: str | None) -> said.Proof | None:
    return None if kept is None else said.Proof.model_validate(plain(CloseProof.decode(kept).document))


def _process(spec: TaskSpec, layer: LayerRow | None) -> said.Process:
    return said.Process(
        entrypoint=spec.entrypoint.value,
        command=[text_of(word) for word in spec.command],
        environment=sorted(text_of(name) for name in spec.environment),
        inputs=[
            said.Input(dest=text_of(each.dest), sha256=each.blob, code=each.code, pinned=bool(each.pinned))
            for each in spec.inputs
        ],
        layer=None
        if layer is None
        else said.Layer(key=layer.key, sha256=layer.blob, resolved=[text_of(each) for each in layer.resolved or ()]),
    )


def _seal(known: Mapping[str, Any]) -> said.Seal:
    probes, profile = known.get("seal"), known.get("seal_profile")
    return said.Seal(
        profile=None if profile is None else said.Profile(name=profile["name"], version=profile["version"]),
        probed_at=known.get("probed_at"),
        probes=None
        if probes is None
        else [
            said.Probe(target=text_of(each["target"]), reached=each["reached"], detail=text_of(each["detail"]))
            for each in probes
        ],
        outside=plain(known.get("outside")),
    )


def _outcome(data: dict[str, Any]) -> Any:
    seconds = {"seconds": _amount(data["seconds"])} if "seconds" in data else {}
    return plain({**data, **seconds})


def _end(task: TaskRow, attempt: AttemptRow, events: Iterable[EventRow]) -> said.End | None:
    end = end_of(events, attempt.number)
    if end is None:
        return None
    over = task.state.over and task.attempt == attempt.number and end.kind != EventKind.TASK_REQUEUED
    return said.End(
        state=task.state.value if over else "QUEUED",  # type: ignore[arg-type]  # a state that is over is one of them
        reason=end.data.get("reason"),
        message=text_of(end.data.get("message", "")),
        exit_code=task.exit_code if over else None,
    )


def _outputs(tree: Tree, sha256: str) -> said.Outputs:
    names = sum(len(uri_of(file.path)) for file in tree.files)
    return said.Outputs(
        complete=tree.complete,
        listed=names <= MOST_NAMES_BYTES,
        files=len(tree.files),
        size=tree.size,
        manifest_sha256=sha256,
    )


def _output(file: Entry) -> said.Subject:
    return said.Subject(
        name=uri_of(f"outputs/{file.path}"),
        digest=said.Digest(sha256=file.sha256),
        annotations=said.Facts(size=file.size, mode=f"{file.mode:04o}", media_type=file.media_type or None),
    )


def _log(artifacts: Artifacts, task_id: str, number: int, name: LogName) -> said.Subject:
    """Digest and size are of the file as it is kept: a trace is compressed. A log that nobody wrote to is empty."""
    log = artifacts.log(task_id, number, name)
    state = log.state()
    sha256, lines, packed = _sha256(log.path)
    return said.Subject(
        name=f"logs/{name}.gz" if packed and name is LogName.TRACE else f"logs/{name}",
        digest=said.Digest(sha256=sha256),
        annotations=said.Facts(
            size=state.kept_bytes,
            lines=None if name is LogName.TRACE else lines,
            cut=state.cut,
            seen_bytes=state.seen_bytes,
            media_type="application/gzip" if packed and name is LogName.TRACE else "text/plain",
        ),
    )


def _sha256(path: Path) -> tuple[str, int, bool]:
    """Of a file, how many newlines it has, and whether it looks compressed. One that is not there is empty."""
    digest, lines, start = hashlib.sha256(), 0, b""
    for chunk in chunks(path):
        start = start or chunk[: len(_GZIP)]
        digest.update(chunk)
        lines += chunk.count(b"\n")
    return digest.hexdigest(), lines, start == _GZIP


def manifest_path(artifacts: Artifacts, task_id: str, number: int) -> Path:
    """Where the manifest of an attempt's outputs is, or would be."""
    return artifacts.document(task_id, number, DocumentName.RECEIPT).with_name(MANIFEST)


def chunks(path: Path) -> Iterator[bytes]:
    """A file, a piece at a time. One that is not there is empty."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except FileNotFoundError:
        return


def instant(moment: datetime) -> str:
    """In UTC."""
    return moment.astimezone(UTC).isoformat()


def plain(value: Any) -> Any:
    """JSON whose texts are Unicode, whatever a machine put into them."""
    match value:
        case str():
            return text_of(value)
        case Mapping():
            return {text_of(str(name)): plain(each) for name, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case _:
            return value


def _amount(value: float | None) -> float | None:
    return None if value is None else float(value)
