"""A runner and a scheduler in processes of their own, scraped as Prometheus does, and traced as a collector is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import subprocess
import termios
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.domain.task import Stage
from tests.driver import Mayfly
from tests.journeys.house import POOL, House, until
from tests.journeys.processes import command_line, killed
from tests.otlp import collecting

LEASE_SECONDS = 2.0
MACHINE = (Stage.PROVISIONING, Stage.CONNECTING, Stage.PREPARING, Stage.SEALING)
"""The stages that a ready machine spares its task."""
Values = dict[tuple[str, ...], float]


@asynccontextmanager
async def service(mayfly: Mayfly, *words: str) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """A service that serves metrics on a free port, and where; stopped at the end if it still runs."""
    process = mayfly.start(*words, "--metrics", "127.0.0.1:0")
    assert process.stderr is not None
    try:
        line = await asyncio.to_thread(process.stderr.readline)
        found = re.search(r"http://\S+/metrics", line)
        assert found, line
        yield process, found[0]
    finally:
        if process.poll() is None:
            process.terminate()
        await asyncio.to_thread(process.communicate, timeout=60)


async def scraped(url: str) -> Values:
    """(name without mayfly_, label values in the order of their names) → value."""

    def get() -> str:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())

    return {
        (sample.name.removeprefix("mayfly_"), *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(await asyncio.to_thread(get))
        for sample in family.samples
    }


async def test_a_runner_and_a_scheduler_are_scraped(house: House) -> None:
    mayfly = command_line(house, lease_seconds=LEASE_SECONDS)
    async with service(mayfly, "runner") as (_, of_runner), service(mayfly, "scheduler") as (_, of_scheduler):
        tasks = [await house.submit("exit 0"), await house.submit("exit 3")]
        for task in tasks:
            await house.over(task)

        async def ended() -> Values | None:
            found = await scraped(of_runner)
            count = sum(value for name, value in found.items() if name[0] == "attempts_ended_total")
            return found if count == 2 else None

        told = await until("both attempts are measured", ended)
        pool = POOL.name
        assert told["attempts_ended_total", pool, "none", "finished"] == 1
        assert told["attempts_ended_total", pool, "exit_nonzero", "failed"] == 1
        assert told["stage_seconds_count", pool, "EXECUTING"] == 2
        assert told["stage_seconds_count", pool, "DESTROYING"] == 2
        assert told["start_seconds_count", pool, "cold"] == 2
        assert 0 < told["start_seconds_sum", pool, "cold"] < 120
        assert told["claims_total", pool, "cold"] == 2
        assert told["wait_seconds_count", pool] == 2
        assert told["launch_seconds_count", POOL.image, pool, "ok"] == 2
        assert told["opennebula_request_seconds_count", "template.instantiate", "ok"] == 2
        assert ("vms", pool, "READY") not in told  # the scheduler's to say

        async def looked() -> Values | None:
            found = await scraped(of_scheduler)
            return found if ("tasks_waiting", pool) in found else None

        told = await until("the scheduler has looked", looked)
        assert told["scheduler_leads",] == 1
        assert told["tasks_waiting", pool] == 0
        assert told["runners", pool] == 2  # the house's own, and the process
        assert told["chore_seconds_count", "reap", "ok"] >= 1
        assert told["opennebula_request_seconds_count", "system.version", "ok"] == 1


async def test_a_task_that_takes_a_ready_machine(house: House) -> None:
    mayfly, pool = command_line(house), POOL.name
    with (house.settings.home / "pools.yml").open("a") as inventory:
        inventory.write("      mayfly_min_ready: 2\n")  # one of them this runner's, the other the house's own
    async with service(mayfly, "runner") as (_, of_runner):

        async def ready() -> bool:
            return (await scraped(of_runner)).get(("runner_ready_vms", pool)) == 1

        await until("a machine stands ready", ready)
        task = await house.submit("exit 0")
        await house.over(task)

        async def ended() -> Values | None:
            found = await scraped(of_runner)
            return found if ("attempts_ended_total", pool, "none", "finished") in found else None

        told = await until("the attempt is measured", ended)
        assert told["claims_total", pool, "warm"] == told["start_seconds_count", pool, "warm"] == 1
        assert ("claims_total", pool, "cold") not in told
        assert {key[-1] for key in told if key[0] == "stage_seconds_count"} & set(MACHINE) == set()
    drawn = await asyncio.to_thread(on_a_terminal, mayfly, "show", task.id)
    names = re.findall(r"^  ([A-Z_]+) +\d", drawn, re.MULTILINE)
    assert set(names) >= {"QUEUED", "EXECUTING", "DESTROYING"} and not set(names) & set(MACHINE), drawn


async def test_a_runner_that_is_killed_shows_in_the_schedulers_metrics(house: House) -> None:
    mayfly = command_line(house, lease_seconds=LEASE_SECONDS)
    async with service(mayfly, "scheduler") as (_, of_scheduler):
        async with service(mayfly, "runner") as (process, _):
            task = await house.submit("echo begun; sleep 3600")
            await house.printed(task, b"begun")
            await killed(process)
        await house.store.tasks.request_cancel(task.id, now=house.now())
        await house.over(task)

        async def measured() -> Values | None:
            found = await scraped(of_scheduler)
            return found if ("attempts_ended_total", POOL.name, "canceled", "canceled") in found else None

        told = await until("the end that upkeep wrote is measured", measured)
        assert (told["lease_expiries_total", "ended"], told["lease_expiries_total", "requeued"]) == (1, 0)

        async def gone() -> bool:
            return (await scraped(of_scheduler))["leaked_vms_total", "abandoned"] == 1

        await until("its machine is destroyed, and that was counted", gone)


async def test_an_attempt_that_two_runners_drove_is_one_trace(house: House) -> None:
    with collecting() as collector:
        mayfly = command_line(house, lease_seconds=LEASE_SECONDS)
        mayfly = mayfly.with_environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
        async with service(mayfly, "runner") as (process, _):
            task = await house.submit("echo one; sleep 4; exit 3")
            await house.printed(task, b"one\n")
            await killed(process)
        async with service(mayfly, "runner"):
            await house.over(task)
        spans = collector.spans()  # the second one has ended, and sent what was left
    [root] = [span for span in spans if not span.parent_span_id]
    told = {each.key: each.value.string_value or each.value.int_value for each in root.attributes}
    assert told.items() >= {"mayfly.task.id": task.id, "mayfly.attempt": 1, "mayfly.reason": "exit_nonzero"}.items()
    assert {span.trace_id for span in spans} == {root.trace_id}
    assert [name for name in sorted_by_time(spans) if name in set(Stage)] == list(Stage)
    [executing] = [span for span in spans if span.name == Stage.EXECUTING]
    assert executing.end_time_unix_nano - executing.start_time_unix_nano > 3e9


def sorted_by_time(spans: list[Span]) -> list[str]:
    return [span.name for span in sorted(spans, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))]


async def test_show_draws_bars_on_a_terminal_and_lines_elsewhere(house: House) -> None:
    task = await house.submit("exit 0")
    await house.run(task)
    mayfly = command_line(house)
    plain = (await asyncio.to_thread(mayfly, "show", task.id)).stdout
    drawn = await asyncio.to_thread(on_a_terminal, mayfly, "show", task.id)
    stages = ["QUEUED", *Stage]
    for text, bar in ((plain, ""), (drawn, " +[\u2580-\u259f]+ *")):
        told = re.findall(rf"^  ([A-Z_]+) +\d+\.\d\d s{bar}$", text, re.MULTILINE)
        assert [name for name in told if name != "CLAIMED"] == stages, text


def on_a_terminal(mayfly: Mayfly, *words: str) -> str:
    """What a command writes to a terminal of 100 columns, without its colours."""
    ours, its = pty.openpty()
    try:
        termios.tcsetwinsize(its, (50, 100))
        terminal = mayfly.with_environment(TERM="xterm-256color", COLUMNS="100")
        process = terminal.start(*words, stdout=its)
        os.close(its)
        written = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while chunk := os.read(ours, 65536):
                written += chunk
        process.communicate(timeout=60)
    finally:
        os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).replace("\r\n", "\n")


@pytest.mark.parametrize("words", [("runner",), ("scheduler",), ("up",)])
async def test_a_port_that_is_taken_or_none_is_told_at_once(house: House, words: tuple[str, ...]) -> None:
    mayfly = command_line(house)
    taken = house.far.url.removeprefix("http://").partition("/")[0]
    refused = await asyncio.to_thread(mayfly, *words, "--metrics", taken)
    assert refused.exit_code == 2
    assert taken in refused.stderr and "in use" in refused.stderr and "Traceback" not in refused.stderr


async def test_wrong_addresses(house: House) -> None:
    mayfly = command_line(house)
    refused = await asyncio.to_thread(mayfly, "runner", "--metrics", "nowhere")
    assert refused.exit_code == 2
    assert "metrics" in refused.stderr and "'nowhere'" in refused.stderr and "HOST:PORT" in refused.stderr
    refused = await asyncio.to_thread(mayfly.with_environment(MAYFLY_METRICS="1:2:3"), "scheduler")
    assert refused.exit_code == 2
    assert "MAYFLY_METRICS" in refused.stderr and "'1:2:3'" in refused.stderr
