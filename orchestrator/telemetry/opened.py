"""Whether traces are wanted, by OpenTelemetry's own variables, and where they go. Nothing of it is imported if not."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping

from orchestrator.telemetry.telling import Traces

HTTP = "http/protobuf"

_log = logging.getLogger(__name__)


def traces_wanted(env: Mapping[str, str]) -> bool:
    """An endpoint is named, and nothing says otherwise.

    >>> traces_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"})
    True
    >>> traces_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"})
    False
    """
    named = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    disabled = (env.get("OTEL_SDK_DISABLED") or "").strip().lower() == "true"
    return bool(named) and not disabled and (env.get("OTEL_TRACES_EXPORTER") or "otlp") == "otlp"


def open_traces(env: Mapping[str, str]) -> Traces | None:
    """None: they are not wanted, or cannot be sent, which is logged."""
    if not traces_wanted(env):
        return None
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or HTTP
    if protocol != HTTP:
        _log.warning("no traces are sent: only %s is spoken, not %s (OTEL_EXPORTER_OTLP_PROTOCOL)", HTTP, protocol)
        return None
    if not _installed():
        _log.warning("no traces are sent: install mayfly-orchestrator[otel], or unset OTEL_EXPORTER_OTLP_ENDPOINT")
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    from orchestrator.telemetry.spans import Spans

    named = env.get("OTEL_SERVICE_NAME") or "service.name=" in (env.get("OTEL_RESOURCE_ATTRIBUTES") or "")
    return Spans(OTLPSpanExporter(), service_name=None if named else "mayfly")


def _installed() -> bool:
    """Both the SDK and the exporter."""
    try:
        found = [importlib.util.find_spec(f"opentelemetry.{name}") for name in ("sdk", "exporter.otlp.proto.http")]
    except ModuleNotFoundError:
        return False
    return None not in found
