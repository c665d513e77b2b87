"""Measurements: Prometheus metrics, served over HTTP, and OpenTelemetry traces of attempts that are over."""

from orchestrator.telemetry.ended import Ended
from orchestrator.telemetry.exposition import Address, exposed, read_address
from orchestrator.telemetry.look import Look
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.opened import open_traces
from orchestrator.telemetry.telling import Telemetry

__all__ = ["Address", "Ended", "Look", "Metrics", "Telemetry", "exposed", "open_traces", "read_address"]
