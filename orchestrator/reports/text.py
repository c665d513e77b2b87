"""A report drawn as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from orchestrator.domain.pool import Disclosure
from orchestrator.domain.task import Delivery
from orchestrator.reports.stages import Part, as_line, parts_of, waiting
from orchestrator.reports.task import Report


def lines(report: Report, now: datetime | None = None) -> Iterator[str]:
    """The report, a line at a time. Text in it may come from a guest: whoever prints it makes it printable. now: what
    goes on is told with how long it has taken until then."""
    for each in sections(report):
        if isinstance(each, str):
            yield each
        else:
            yield from (as_line(part, now) for part in each)


def sections(report: Report) -> Iterator[str | tuple[Part, ...]]:
    """As `lines`, but where the time went is left to be drawn."""
    name = f" ({report['name']})" if report["name"] else ""
    yield f"task      {report['id']}{name}"
    canceling = ", canceling" if report["canceling"] else ""
    yield (
        f"state     {report['state']}"
        + (f", {report['stage']}" if report["stage"] else "")
        + canceling
        + _because(report)
    )
    if report["waits_for"]:
        yield f"waits     {standing_line(report['waits_for'])}"
    yield f"command   {' '.join(_shown(word) for word in report['command'])}"
    yield f"pool      {report['pool']}, entry point {report['entrypoint']}, trace {report['trace_profile']}"
    if review := report["review"]:
        why = f": {review['why']}" if review["why"] else ""
        yield f"review    {review['decision']} by {review['by']} at {review['at']:%Y-%m-%d %H:%M}{why}"
    elif report["disclosure"] not in (None, Disclosure.OPEN):
        yield f"review    nobody has released its results, and its pool asks for that ({report['disclosure']})"
    if terms := ", ".join(_terms(report)):
        yield f"terms     {terms}"
    for each in report["inputs"]:
        yield f"input     {each['source']} → /task/in/{each['dest']}  {each['blob'][:12]}"
    if report["layer"]:
        yield f"packages  {_layer(report['layer'])}"
    for attempt in report["attempts"]:
        yield ""
        yield from _attempt_lines(attempt)
    if wait := waiting(report):
        yield ""
        yield (wait,)
    for note in report["notes"]:
        yield f"note      {note['message']}"


def standing_line(waits: dict[str, Any]) -> str:
    """What a task waits for, with how long that may take, if anything is known of that."""
    seconds = waits["estimate_seconds"]
    return str(waits["message"]) + ("" if seconds is None else f"; its turn comes in about {duration(seconds)}")


def duration(seconds: float) -> str:
    """Seconds as people say them, in the largest unit that fits.

    >>> duration(90), duration(7.4)
    ('2 min', '7 s')
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _layer(layer: Report) -> str:
    installed = layer["resolved"]
    which = "not installed yet" if installed is None else ", ".join(_shown(each) for each in installed)
    return f"{which}; layer {layer['key'][:12]}, built by task {layer['task_id']}"


def _terms(report: Report) -> Iterator[str]:
    """What is not as it is when nothing is said."""
    if report["priority"]:
        yield f"priority {report['priority']}"
    if report["not_before"]:
        yield f"not before {report['not_before'].isoformat(timespec='seconds')}"
    if report["depends_on"]:
        yield f"after {', '.join(report['depends_on'])}"
    if report["delivery"] != Delivery.AT_LEAST_ONCE:
        yield str(report["delivery"]).replace("_", " ")
    if report["max_attempts"]:
        yield f"at most {report['max_attempts']} attempts"
    if report["retry_job"]:
        yield "tried again also when the process ends badly"


def _attempt_lines(attempt: dict[str, Any]) -> Iterator[str | tuple[Part, ...]]:
    why = f": {attempt['message']}" if attempt["message"] else ""
    yield f"attempt {attempt['number']}" + (" (tried again)" if attempt["requeued"] else "") + why
    yield tuple(parts_of(attempt))
    if attempt["cpu_seconds"] is not None:
        peak = attempt["memory_peak_bytes"]
        yield f"  used          {attempt['cpu_seconds']:.2f} s of CPU" + (
            f", {peak / 2**20:.0f} MiB at the peak" if peak else ""
        )
    probes = attempt["machine"].get("seal")
    if probes is not None:
        reached = [probe["target"] for probe in probes if probe["reached"]]
        yield "  seal          " + (
            f"BROKEN: reached {', '.join(reached)}"
            if reached
            else f"holds: {len(probes)} probes, none reached anything"
        )
    logs = [
        f"{log['name']} {log['bytes']} B{_lines_of(log)}{' (cut)' if log['cut'] else ''}"
        for log in attempt["logs"]
        if log["bytes"]
    ]
    if logs:
        yield f"  logs          {', '.join(logs)}"
    for number, sentence in enumerate(attempt["findings"] or ()):
        yield f"  {'' if number else 'it did':<13} {sentence}"
    if attempt["machine"].get("cut"):
        yield f"  cut           more was written than was taken of: {', '.join(attempt['machine']['cut'])}"
    for entry in (attempt["outputs"] or {"files": []})["files"]:
        yield f"  output        {entry['path']}  {entry['size']} B  sha256 {entry['sha256'][:16]}…"
    vm = attempt["vm"]
    if vm is not None:
        gone = f"{vm['state']} at {vm['destroyed_at']:%H:%M:%S}" if vm["destroyed_at"] else vm["state"]
        yield f"  machine       {vm['id']} (OpenNebula {vm['cloud_id']}, {vm['image_version']}): {gone}"
        if vm["proof"]:
            yield f"  proof         {vm['proof']}"
    if attempt["receipt"]:
        receipt = attempt["receipt"]
        yield f"  receipt       sha256 {receipt['sha256'][:16]}…, signed at {receipt['signed_at']:%H:%M:%S}"


def _lines_of(log: dict[str, Any]) -> str:
    return "" if log["lines"] is None else f" in {log['lines']} line{'' if log['lines'] == 1 else 's'}"


def _because(report: Report) -> str:
    return f": {report['message']}" if report["message"] else ""


def _shown(word: str) -> str:
    return word if word and all(c.isalnum() or c in "-_./=:,+@%*" for c in word) else repr(word)
