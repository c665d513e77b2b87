"""A statement that was signed, and contradicts itself, proves nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.receipts.consistency import complaints
from orchestrator.receipts.statement import Statement

HASH = "0" * 64
NOW = "2026-03-01T12:00:00+00:00"


def _subject(name: str) -> dict[str, Any]:
    facts = {"size": 1, "mode": None, "media_type": None, "lines": None, "cut": None, "seen_bytes": None}
    return {"name": name, "digest": {"sha256": HASH}, "annotations": facts}


GOOD: dict[str, Any] = {
    "_type": "https://in-toto.io/Statement/v1",
    "predicateType": "urn:mayfly:receipt:1",
    "subject": [_subject(name) for name in ("logs/stdout", "logs/stderr", "logs/trace", "outputs.json", "outputs/a")],
    "predicate": {
        "mayfly_version": "0",
        "task": {"id": "t", "name": "", "pool": "p", "frontend": "f", "submitted_by": "a", "submitted_at": NOW},
        "attempt": {
            "number": 2,
            "runner": "r",
            "started_at": NOW,
            "finished_at": NOW,
            "stages": [{"stage": stage, "started_at": NOW, "ended_at": NOW} for stage in ("PROVISIONING", "EXECUTING")],
        },
        "earlier": [{"number": 1, "reason": "retry", "receipt_sha256": HASH}],
        "machine": {
            "id": "v",
            "cloud_id": 7,
            "host": "h",
            "host_key": "SHA256:x",
            "image_version": "debian-12-1",
            "state": "DESTROYED",
            "requested_at": NOW,
            "destroyed_at": NOW,
            "proof": {
                "says": "DONE",
                "vm": 7,
                "state": "DONE",
                "ended_at": NOW,
                "disks": {"folder": "/d", "before": ["disk.0"], "left": [], "why_not": "", "gone": True},
            },
        },
        "image": None,
        "process": {"entrypoint": "command", "command": ["true"], "environment": [], "inputs": [], "layer": None},
        "seal": {
            "profile": {"name": "sealed", "version": 1},
            "probed_at": NOW,
            "probes": [{"target": "gateway", "reached": False, "detail": ""}],
            "outside": {"holds": True},
        },
        "trace": {"profile": "audit", "sha256": HASH, "recorded": None, "findings_sha256": None},
        "limits": None,
        "outcome": {"kind": "exited", "code": 0},
        "usage": {"cpu_seconds": 1.0, "memory_peak_bytes": 1, "read_bytes": None, "written_bytes": None},
        "end": {"state": "FINISHED", "reason": None, "message": "exited with 0", "exit_code": 0},
        "outputs": {"complete": True, "listed": True, "files": 1, "size": 1, "manifest_sha256": HASH},
        "disclosure": "open",
    },
}


def told(change: Callable[[dict[str, Any]], Any]) -> str:
    data = copy.deepcopy(GOOD)
    change(data)
    return "\n".join(complaints(Statement.model_validate(data)))


def test_a_good_one_contradicts_nothing() -> None:
    assert told(lambda data: None) == ""


def _set(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    """Changes of the predicate, by the path with __ for dots."""

    def change(data: dict[str, Any]) -> None:
        for path, value in changes.items():
            *above, last = path.split("__")
            place = data["predicate"]
            for name in above:
                place = place[name]
            place[last] = value

    return change


ENDS = [
    ({"kind": "exited", "code": 3}, "exit_nonzero", 3),
    ({"kind": "signaled", "name": "SEGV"}, "signaled", 139),
    ({"kind": "out_of_memory", "limit_bytes": 2**20, "peak_bytes": None}, "out_of_memory", 137),
    ({"kind": "timed_out", "seconds": 5.0}, "timed_out", 124),
    ({"kind": "disk_full", "where": "/task/out", "limit_bytes": 2**20, "code": 1}, "disk_full", 1),
]


@pytest.mark.parametrize(("outcome", "reason", "code"), ENDS)
def test_how_a_process_ended_is_what_is_said_of_the_task(outcome: dict[str, Any], reason: str, code: int) -> None:
    end = {"state": "FAILED", "reason": reason, "message": "m", "exit_code": code}
    assert told(_set(outcome=outcome, end=end)) == ""
    assert "exit code" in told(_set(outcome=outcome, end={**end, "exit_code": code + 1}))
    assert "FINISHED" in told(_set(outcome=outcome))
    assert "the reason is" in told(_set(outcome={"kind": "exited", "code": 0}, end=end))
    assert "never ran" in told(_set(outcome=None, end=end))
    assert told(_set(outcome=outcome, end={**end, "state": "QUEUED", "exit_code": None})) == ""
    canceled = {"state": "CANCELED", "reason": "canceled", "message": "m", "exit_code": 130}
    assert told(_set(outcome=outcome, end=canceled)) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(end__exit_code=1), "FINISHED"),
        (_set(outcome={"kind": "lost", "why": "w"}), "FINISHED"),
        (_set(outputs__complete=False), "not to be complete"),
        (_set(machine=None), "no machine is named"),
        (_set(machine__state="DESTROYING"), "no proof that it is gone"),
        (_set(machine__destroyed_at=None), "no proof that it is gone"),
        (_set(machine__proof=None), "without a proof"),
        (_set(machine__proof__disks__left=["disk.0"]), "still there: disk.0"),
        (_set(seal__probes=[{"target": "DNS", "reached": True, "detail": "answered"}]), "could reach DNS"),
        (_set(seal__outside={"holds": False}), "not sealed"),
        (_set(earlier=[]), "attempts before it are said to be []"),
        (_set(earlier=[{"number": 2, "reason": None, "receipt_sha256": None}]), "said to be [2]"),
        (_set(trace__sha256="1" * 64), "trace's hash"),
        (_set(outputs__manifest_sha256="1" * 64), "manifest is said twice"),
        (_set(outputs__files=2), "2 outputs are said to be there, and 1"),
        (_set(outputs__listed=False), "1 outputs are said to be there, and 1 are subjects"),
        (_set(outputs=None), "no word of them"),
        (lambda data: data["subject"].pop(0), "logs/stdout is no subject"),
        (lambda data: data["subject"].append(data["subject"][0]), "named twice"),
        (lambda data: data["predicate"]["attempt"]["stages"].reverse(), "order that there is not"),
        (_set(attempt__stages=[{"stage": "SLEEPING", "started_at": NOW, "ended_at": None}]), "order that there is not"),
    ],
)
def test_a_contradiction_is_told(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    assert words in told(change)


def test_a_process_that_never_ran_may_have_met_a_broken_seal() -> None:
    end = {"state": "FAILED", "reason": "seal_broken", "message": "m", "exit_code": 125}
    probes = [{"target": "DNS", "reached": True, "detail": "answered"}]
    assert told(_set(outcome=None, end=end, seal__probes=probes, seal__outside={"holds": False})) == ""
