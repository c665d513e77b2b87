"""A receiver of OpenTelemetry's traces: OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/), on loopback."""

from __future__ import annotations

import gzip
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class Received:
    """One request: its path and headers, and what it holds."""

    path: str
    headers: Any
    traces: ExportTraceServiceRequest


@dataclass
class Collector:
    """`endpoint` is what OTEL_EXPORTER_OTLP_ENDPOINT has to be."""

    endpoint: str = ""
    received: list[Received] = field(default_factory=list)

    def spans(self) -> list[Span]:
        """Of all requests, in the order in which they came."""
        return [
            span
            for each in self.received
            for resource in each.traces.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collecting() -> Iterator[Collector]:
    """Listen for as long as the block runs."""
    collector = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.received.append(Received(self.path, self.headers, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.endpoint = f"http://127.0.0.1:{server.server_port}"
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        try:
            yield collector
        finally:
            server.shutdown()
            serving.join()
