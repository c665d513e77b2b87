"""Nouns of the domain to JSON and back. Names of files may hold bytes that are not UTF-8 (PEP 383's surrogates);
JSON's ASCII escapes keep them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_never

from orchestrator.domain.outcome import (
    DiskFull,
    Exited,
    Lost,
    Outcome,
    OutOfMemory,
    Reason,
    Signaled,
    TimedOut,
    Verdict,
)
from orchestrator.domain.task import (
    Delivery,
    Entrypoint,
    InputSpec,
    Limits,
    Packages,
    Stage,
    TaskSpec,
    TaskState,
    Terms,
    TraceProfile,
)

Json = dict[str, Any]


def spec_to_json(spec: TaskSpec) -> Json:
    return {
        "pool": spec.pool,
        "command": list(spec.command),
        "entrypoint": spec.entrypoint.value,
        "inputs": [dataclasses.asdict(each) for each in spec.inputs],
        "outputs": list(spec.outputs),
        "environment": dict(spec.environment),
        "limits": dataclasses.asdict(spec.limits),
        "trace": spec.trace.value,
        "seal": spec.seal,
        "packages": {"requirements": spec.packages.requirements, "debian": list(spec.packages.debian)},
        "name": spec.name,
        "terms": terms_to_json(spec.terms),
    }


def terms_to_json(terms: Terms) -> Json:
    return {
        "priority": terms.priority,
        "not_before": None if terms.not_before is None else terms.not_before.isoformat(),
        "depends_on": list(terms.depends_on),
        "delivery": terms.delivery.value,
        "max_attempts": terms.max_attempts,
        "retry_job": terms.retry_job,
    }


def terms_from_json(data: Mapping[str, Any]) -> Terms:
    """What is not there is as it was before there were such terms."""
    not_before = data.get("not_before")
    return Terms(
        priority=data.get("priority", 0),
        not_before=None if not_before is None else datetime.fromisoformat(not_before),
        depends_on=tuple(data.get("depends_on", ())),
        delivery=Delivery(data.get("delivery", Delivery.AT_LEAST_ONCE)),
        max_attempts=data.get("max_attempts"),
        retry_job=data.get("retry_job", False),
    )


def spec_from_json(data: Mapping[str, Any]) -> TaskSpec:
    """What is not there is as it was before there was such a thing."""
    packages = data.get("packages", {})
    return TaskSpec(
        pool=data["pool"],
        command=tuple(data["command"]),
        entrypoint=Entrypoint(data["entrypoint"]),
        inputs=tuple(InputSpec(**each) for each in data["inputs"]),
        outputs=tuple(data["outputs"]),
        environment=dict(data["environment"]),
        limits=Limits(**data["limits"]),
        trace=TraceProfile(data["trace"]),
        seal=data.get("seal", ""),
        packages=Packages(packages.get("requirements", ""), tuple(packages.get("debian", ()))),
        name=data["name"],
        terms=terms_from_json(data.get("terms", {})),
    )


def outcome_to_json(outcome: Outcome) -> Json:
    match outcome:
        case Exited(code):
            return {"kind": "exited", "code": code}
        case Signaled(name):
            return {"kind": "signaled", "name": name}
        case OutOfMemory(limit_bytes, peak_bytes):
            return {"kind": "out_of_memory", "limit_bytes": limit_bytes, "peak_bytes": peak_bytes}
        case DiskFull(where, limit_bytes, code):
            return {"kind": "disk_full", "where": where, "limit_bytes": limit_bytes, "code": code}
        case TimedOut(seconds):
            return {"kind": "timed_out", "seconds": seconds}
        case Lost(why):
            return {"kind": "lost", "why": why}
        case _:
            assert_never(outcome)


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    match data:
        case {"kind": "exited", "code": int(code)}:
            return Exited(code)
        case {"kind": "signaled", "name": str(name)}:
            return Signaled(name)
        case {"kind": "out_of_memory", "limit_bytes": int(limit_bytes)}:
            return OutOfMemory(limit_bytes, data.get("peak_bytes"))
        case {"kind": "disk_full", "where": str(where), "limit_bytes": int(limit_bytes), "code": int(code)}:
            return DiskFull(where, limit_bytes, code)
        case {"kind": "timed_out", "seconds": seconds}:
            return TimedOut(float(seconds))
        case {"kind": "lost", "why": str(why)}:
            return Lost(why)
        case _:
            raise ValueError(f"not an outcome: {data!r}")


def verdict_to_json(verdict: Verdict) -> Json:
    reason = None if verdict.reason is None else verdict.reason.value
    return {
        "state": verdict.state.value,
        "reason": reason,
        "message": verdict.message,
        "exit_code": verdict.exit_code,
    }


def verdict_from_json(data: Mapping[str, Any]) -> Verdict:
    reason = None if data["reason"] is None else Reason(data["reason"])
    return Verdict(TaskState(data["state"]), reason, data["message"], data["exit_code"])


Timings = dict[Stage, tuple[datetime, datetime | None]]
"""When each stage began and, once it has, ended."""


def timings_to_json(timings: Timings) -> Json:
    return {
        stage.value: [start.isoformat(), None if end is None else end.isoformat()]
        for stage, (start, end) in timings.items()
    }


def timings_from_json(data: Mapping[str, Any]) -> Timings:
    """In the order of the stages, whatever order the database has kept."""
    return {
        stage: (datetime.fromisoformat(start), None if end is None else datetime.fromisoformat(end))
        for stage in Stage
        if stage in data
        for start, end in [data[stage]]
    }
