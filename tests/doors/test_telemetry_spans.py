"""Traces with the real SDK: in memory, and over OTLP to a receiver of our own; and when there are none."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from orchestrator.domain.outcome import Reason
from orchestrator.domain.task import Stage
from orchestrator.telemetry import Ended, Metrics, Telemetry, open_traces
from orchestrator.telemetry.spans import MESSAGE_CHARACTERS, Spans
from tests.otlp import collecting

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


WARM = Ended(
    task_id="01kb",
    attempt=2,
    pool="small",
    runner_id="r1",
    queued_at=NOON,
    started_at=after(1),
    finished_at=after(5.000001),
    stages={
        Stage.STAGING_IN: (after(1.25), after(2)),
        Stage.EXECUTING: (after(2), after(4)),
        Stage.DESTROYING: (after(4), after(5.000001)),
    },
    result="finished",
    outcome="Exited",
    host="node1",
)


def written(*attempts: Ended) -> list[ReadableSpan]:
    """The spans of these."""
    kept = InMemorySpanExporter()
    spans = Spans(kept)
    for each in attempts:
        spans.write(each)
    spans.close(30)
    return list(kept.get_finished_spans())


def test_an_attempt_is_a_trace_with_a_span_for_each_stage() -> None:
    spans = {span.name: span for span in written(WARM)}
    assert list(spans) == ["QUEUED", "CLAIMED", "STAGING_IN", "EXECUTING", "DESTROYING", "attempt small"]
    root = spans.pop("attempt small")
    assert root.parent is None
    assert {span.parent.span_id for span in spans.values() if span.parent} == {root.context.span_id}
    assert {span.context.trace_id for span in spans.values()} == {root.context.trace_id}
    assert (root.start_time, root.end_time) == (1767268800 * 10**9, 1767268805 * 10**9 + 1000)
    instants = [(span.start_time - root.start_time, span.end_time - root.start_time) for span in spans.values()]  # type: ignore[operator]
    seconds = [(0, 1), (1, 1.25), (1.25, 2), (2, 4), (4, 5.000001)]
    assert instants == [(round(begun * 1e9), round(over * 1e9)) for begun, over in seconds]
    assert root.attributes is not None
    assert dict(root.attributes) == {
        "mayfly.task.id": "01kb",
        "mayfly.attempt": 2,
        "mayfly.pool": "small",
        "mayfly.runner.id": "r1",
        "mayfly.warm": True,
        "mayfly.result": "finished",
        "mayfly.outcome": "Exited",
        "mayfly.host": "node1",
    }
    assert root.status.status_code is StatusCode.UNSET
    assert root.resource.attributes["service.name"] == "mayfly"


def test_attempts_are_traces_of_their_own_and_a_failure_is_marked() -> None:
    long = "x" * 10_000
    failed = replace(WARM, attempt=1, result="requeued", reason=Reason.UNREACHABLE, message=long, stages={})
    spans = written(failed, WARM)
    first, second = [span for span in spans if span.parent is None]
    assert first.context.trace_id != second.context.trace_id
    assert first.status.status_code is StatusCode.ERROR
    assert first.status.description == "x" * MESSAGE_CHARACTERS
    assert first.attributes is not None and first.attributes["mayfly.reason"] == "unreachable"
    assert [span.name for span in spans if span.parent and span.context.trace_id == first.context.trace_id] == [
        "QUEUED",
        "CLAIMED",
    ]


async def test_a_collector_receives_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as collector:
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_SERVICE_NAME": "north",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        asked: list[tuple[str, int]] = []

        async def read(task_id: str, attempt: int) -> Ended | None:
            asked.append((task_id, attempt))
            if task_id == "broken":
                raise OSError("the database is away")
            return WARM if task_id == "01kb" else None

        telemetry = Telemetry(traces=open_traces(variables))
        telemetry.over("01kb", 1)  # nobody tells yet
        async with telemetry.going(read):
            for task_id in ("broken", "not over", "01kb"):
                telemetry.over(task_id, 2)
        telemetry.over("01kb", 3)  # nor any more
    assert asked == [("broken", 2), ("not over", 2), ("01kb", 2)]
    [request] = collector.received
    assert (request.path, request.headers["x-key"]) == ("/v1/traces", "secret")
    [of_resource] = request.traces.resource_spans
    about = {each.key: each.value.string_value for each in of_resource.resource.attributes}
    assert (about["service.name"], about["deployment.environment"]) == ("north", "test")
    assert sorted(span.name for span in collector.spans()) == sorted(
        ["QUEUED", "CLAIMED", *WARM.stages, "attempt small"]
    )


async def test_a_collector_that_is_not_there_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    async def read(task_id: str, attempt: int) -> Ended:
        return WARM

    telemetry = Telemetry(traces=open_traces(variables))
    with caplog.at_level(logging.CRITICAL):
        async with asyncio.timeout(60), telemetry.going(read):
            telemetry.over("01kb", 1)


async def test_what_nobody_reads_is_not_read_again() -> None:
    async def read(task_id: str, attempt: int) -> Ended | None:
        raise AssertionError("it was read")

    telemetry = Telemetry(Metrics())
    async with telemetry.going(read):
        telemetry.over("01kb", 1)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_no_traces_are_wanted(variables: dict[str, str]) -> None:
    assert open_traces(variables) is None


def test_a_protocol_that_is_not_spoken_is_named(caplog: pytest.LogCaptureFixture) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert open_traces(variables) is None
    assert "grpc" in caplog.text and "OTEL_EXPORTER_OTLP_PROTOCOL" in caplog.text


WITHOUT_THE_EXTRA = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
import orchestrator.bootstrap, orchestrator.telemetry
from orchestrator.telemetry import open_traces
assert open_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} if sys.argv[1] == "wanted" else {}) is None
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


@pytest.mark.parametrize("wanted", ["wanted", "not"])
def test_without_the_extra_nothing_of_it_is_imported(wanted: str) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", WITHOUT_THE_EXTRA, wanted]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert ("mayfly-orchestrator[otel]" in done.stderr) == (wanted == "wanted")


def test_with_the_extra_nothing_of_it_is_imported_either_unless_wanted() -> None:
    code = (
        "import sys, orchestrator.bootstrap; from orchestrator.telemetry import open_traces; open_traces({}); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
