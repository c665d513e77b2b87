"""The metrics over HTTP, as Prometheus and whoever watches a process ask for them; and what cannot be listened on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.domain.errors import NotPossible
from orchestrator.telemetry import Address, Metrics, exposed, exposition, read_address

ANYWHERE = Address("127.0.0.1", 0)


def ask(where: Address, path: str, *, method: str = "GET", accept: str = "*/*") -> tuple[int, str]:
    """Status and body."""
    request = urllib.request.Request(f"http://{where}{path}", method=method, headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code, refusal.read().decode()


async def asked(where: Address, path: str, **how: str) -> tuple[int, str]:
    return await asyncio.to_thread(ask, where, path, **how)


async def test_metrics_are_served_in_both_formats() -> None:
    metrics = Metrics()
    assert not metrics.exposed
    async with exposed(metrics, ANYWHERE) as where:
        assert metrics.exposed
        metrics.leaked(orphan=True)
        status, text = await asked(where, "/metrics")
        assert status == 200
        found = {family.name: family for family in text_string_to_metric_families(text)}
        assert {s.labels["kind"]: s.value for s in found["mayfly_leaked_vms"].samples} == {"orphan": 1, "abandoned": 0}
        assert "process_cpu_seconds" in found
        _, text = await asked(where, "/metrics", accept="application/openmetrics-text; version=1.0.0")
        assert text.endswith("# EOF\n")
        assert "mayfly_build" in {family.name for family in openmetrics(text)}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/-/healthy", 200),
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/favicon.ico", 404),
        ("GET", "/-/ready", 404),
        ("POST", "/metrics", 405),
        ("PUT", "/-/healthy", 405),
        ("DELETE", "/elsewhere", 404),
    ],
)
async def test_what_else_is_asked_for(method: str, path: str, status: int) -> None:
    async with exposed(Metrics(), ANYWHERE) as where:
        assert (await asked(where, path, method=method))[0] == status


async def test_a_loop_that_does_not_turn_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "STUCK_SECONDS", 0.2)
    monkeypatch.setattr(exposition, "BEAT_SECONDS", 0.01)
    answers: list[tuple[int, str]] = []

    def until(status: int) -> None:
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up:
            answers.append(ask(where, "/-/healthy"))
            if answers[-1][0] == status:
                return

    async with exposed(Metrics(), ANYWHERE) as where:
        await asyncio.to_thread(until, 200)
        asking = threading.Thread(target=until, args=(503,))
        asking.start()
        asking.join()  # in the loop's own thread, which does not turn meanwhile
        assert answers[-1][0] == 503 and "not turned" in answers[-1][1]
        await asyncio.to_thread(until, 200)
        assert answers[-1] == (200, "healthy\n")


@contextlib.contextmanager
def taken() -> Iterator[Address]:
    """An address that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield Address("127.0.0.1", other.getsockname()[1])


async def test_a_port_that_is_taken_is_named() -> None:
    with taken() as where:
        with pytest.raises(NotPossible, match=str(where)) as refused:
            async with exposed(Metrics(), where):
                pass
        assert "in use" in str(refused.value) and refused.value.field == "metrics"


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "::ffff:0:0:1"])
async def test_an_address_that_is_not_ours(host: str) -> None:
    with pytest.raises(NotPossible, match="cannot listen on"):
        async with exposed(Metrics(), Address(host, 0)):
            pass


async def test_the_port_is_free_again_afterwards_though_somebody_hangs_on_it() -> None:
    async with exposed(Metrics(), ANYWHERE) as where:
        clinging = await asyncio.to_thread(socket.create_connection, (where.host, where.port))
        assert (await asked(where, "/-/healthy"))[0] == 200  # and keeps nobody from being served
    with clinging:
        async with exposed(Metrics(), where) as again:
            assert again == where
            assert (await asked(again, "/-/healthy"))[0] == 200


async def test_many_ask_at_once() -> None:
    metrics = Metrics()
    async with exposed(metrics, ANYWHERE) as where:
        answers = await asyncio.gather(*(asked(where, "/metrics") for _ in range(20)))
    assert {status for status, _ in answers} == {200}


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("9464", "127.0.0.1", 9464),
        (":9464", "127.0.0.1", 9464),
        (" 9464\n", "127.0.0.1", 9464),
        ("localhost:0", "localhost", 0),
        ("0.0.0.0:65535", "0.0.0.0", 65535),
        ("[::1]:9464", "::1", 9464),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert read_address(text) == Address(host, port)


@pytest.mark.parametrize(
    "text", ["", "here", "here:", "here:there", "1.2.3.4:65536", "-1", "::1:9464", "[::1]", "[]:9464", "١:١"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        read_address(text)
