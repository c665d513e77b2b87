"""OpenTelemetry: of each attempt a trace, with a span for each stage. Imported only where traces are wanted.

Spans are made when the attempt is over, of the instants in the database: an attempt that two runners drove is one trace
too. Names of attributes are ours, under `mayfly.`; where traces go, and how many, OpenTelemetry's own variables say
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
"""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

from orchestrator import __version__
from orchestrator.telemetry.ended import REQUEUED, Ended

MESSAGE_CHARACTERS = 500
QUEUED, CLAIMED = "QUEUED", "CLAIMED"
"""Spans beside those of the stages: in the queue; between the claim and the first stage."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_log = logging.getLogger(__name__)


class Spans:
    """Traces, sent by `exporter`, in batches and by a thread of its own. service_name: unless the variables say one."""

    def __init__(self, exporter: SpanExporter, *, service_name: str | None = "mayfly") -> None:
        about = {SERVICE_VERSION: __version__} | ({SERVICE_NAME: service_name} if service_name else {})
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("mayfly", __version__)

    def write(self, attempt: Ended) -> None:
        """Make the trace of an attempt that is over."""
        root = self._tracer.start_span(
            f"attempt {attempt.pool}",
            context=Context(),
            kind=SpanKind.CONSUMER,
            attributes=_attributes(attempt),
            start_time=_nanoseconds(attempt.queued_at),
        )
        inside = trace.set_span_in_context(root, Context())
        for name, (begun, over) in _parts(attempt).items():
            part = self._tracer.start_span(name, context=inside, start_time=_nanoseconds(begun))
            part.end(_nanoseconds(over))
        if attempt.result in ("failed", REQUEUED):
            words = attempt.message[:MESSAGE_CHARACTERS]
            root.set_status(Status(StatusCode.ERROR, words))
        root.end(_nanoseconds(attempt.finished_at))

    def close(self, seconds: float) -> None:
        """Send what is left, within so long. Blocks."""
        # The SDK takes no time limit here: what goes on after ours is a daemon thread's, and ends with the process.
        ending = threading.Thread(target=self._provider.shutdown, name="traces: the last ones", daemon=True)
        ending.start()
        ending.join(seconds)
        if ending.is_alive():
            _log.warning("the last traces could not be sent within %g s", seconds)


def _parts(attempt: Ended) -> dict[str, tuple[datetime, datetime]]:
    """In the order of time, by name."""
    first = min((begun for begun, _ in attempt.stages.values()), default=attempt.finished_at)
    parts = {QUEUED: (attempt.queued_at, attempt.started_at), CLAIMED: (attempt.started_at, first)}
    return parts | {stage.value: when for stage, when in attempt.stages.items()}


def _attributes(attempt: Ended) -> dict[str, AttributeValue]:
    """What is known of it."""
    told: dict[str, AttributeValue] = {
        "mayfly.task.id": attempt.task_id,
        "mayfly.attempt": attempt.attempt,
        "mayfly.pool": attempt.pool,
        "mayfly.runner.id": attempt.runner_id,
        "mayfly.warm": attempt.warm,
        "mayfly.result": attempt.result,
        "mayfly.reason": "" if attempt.reason is None else attempt.reason.value,
        "mayfly.outcome": attempt.outcome,
        "mayfly.host": attempt.host,
        "mayfly.image.version": attempt.image_version,
    }
    return {name: value for name, value in told.items() if value != ""}


def _nanoseconds(moment: datetime) -> int:
    """Since 1970, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
