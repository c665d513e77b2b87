"""What is counted, read back as Prometheus reads it: names, units, and labels that nobody outside can make grow."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.domain.errors import NotFound, QuotaExceeded, SealBroken
from orchestrator.domain.outcome import Reason
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Stage
from orchestrator.domain.vm import VmState
from orchestrator.telemetry import Ended, Look, Metrics
from orchestrator.telemetry.metrics import METHODS_AT_MOST

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
Values = dict[tuple[str, ...], float]


def values(metrics: Metrics) -> Values:
    """(name, label values in the order of their names) → value, of everything that is ours."""
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
        if sample.name.startswith("mayfly_")
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics({"small": Pool(name="small", image="debian-12")})


def test_two_of_them_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.leaked(orphan=True)
    assert values(first)["mayfly_leaked_vms_total", "orphan"] == 1
    assert values(second)["mayfly_leaked_vms_total", "orphan"] == 0


def test_a_launch_is_counted_by_how_it_went(metrics: Metrics) -> None:
    metrics.launched("small", "debian-12", 0.3)
    metrics.launched("small", "debian-12", 700.0)
    for failure in (SealBroken("it reached a name server"), QuotaExceeded("no more"), NotFound("image", "none")):
        metrics.launched("small", "debian-12", 2.0, failure)
    metrics.launched("small", "debian-12", 2.0, asyncio.CancelledError())
    metrics.launched("small", "debian-12", 2.0, ZeroDivisionError())
    told = values(metrics)
    name, of = "mayfly_launch_seconds", ("debian-12", "small")
    assert told[f"{name}_count", *of, "ok"] == 2
    assert told[f"{name}_sum", *of, "ok"] == 700.3
    assert told[f"{name}_bucket", "debian-12", "0.25", "small", "ok"] == 0
    assert told[f"{name}_bucket", "debian-12", "0.5", "small", "ok"] == 1
    assert told[f"{name}_bucket", "debian-12", "600.0", "small", "ok"] == 1
    for result in ("seal_broken", "quota", "refused", "canceled", "internal"):
        assert told[f"{name}_count", *of, result] == 1


def test_what_the_inventory_does_not_have_makes_no_label(metrics: Metrics) -> None:
    for number in range(50):
        metrics.claimed(f"pool-{number}", warm=False, waited_seconds=1.0)
        metrics.launched("small", f"image-{number}", 1.0)
        metrics.ready(f"pool-{number}", 1)
    metrics.saw(Look(vms={(f"pool-{n}", VmState.BOOTING): 2 for n in range(50)}, waiting={"a": 3, "b": 4, "small": 1}))
    told = values(metrics)
    assert told["mayfly_claims_total", "other", "cold"] == 50
    assert told["mayfly_launch_seconds_count", "other", "small", "ok"] == 50
    assert told["mayfly_vms", "other", "BOOTING"] == 100
    assert (told["mayfly_tasks_waiting", "other"], told["mayfly_tasks_waiting", "small"]) == (7, 1)
    assert not [label for _, *labels in told for label in labels if label.startswith(("pool-", "image-"))]


def test_a_pool_that_is_new_in_the_inventory_is_known_at_once(metrics: Metrics) -> None:
    pools = dict(metrics.pools)
    metrics.pools = pools
    pools["large"] = Pool(name="large", image="debian-12")
    metrics.adopted("large")
    assert values(metrics)["mayfly_adoptions_total", "large"] == 1


def test_requests_have_a_bounded_number_of_methods_and_results(metrics: Metrics) -> None:
    metrics.request("vm.info", "ok", 0.02)
    metrics.request("vm.info", "of another mood", 0.02)
    for number in range(2 * METHODS_AT_MOST):
        metrics.request(f"made.up{number}", "ok", 0.02)
    told = values(metrics)
    count = "mayfly_opennebula_request_seconds_count"
    assert told[count, "vm.info", "ok"] == told[count, "vm.info", "failed"] == 1
    assert told[count, "other", "ok"] == METHODS_AT_MOST + 1
    assert len({labels[0] for name, *labels in told if name == count}) == METHODS_AT_MOST + 1


def test_an_attempt_that_is_over_gives_its_stages_and_how_soon_it_started(metrics: Metrics) -> None:
    def after(seconds: float) -> datetime:
        return NOON + timedelta(seconds=seconds)

    cold = {Stage.PROVISIONING: (after(1), after(11)), Stage.EXECUTING: (after(21), after(22))}
    warm = {Stage.EXECUTING: (after(1.2), after(2)), Stage.DESTROYING: (after(2), after(3))}
    metrics.ended(Ended("t", 1, "small", "r", NOON, after(1), after(30), cold, "requeued", Reason.CONNECTION_LOST))
    metrics.ended(Ended("t", 2, "small", "r", NOON, after(1), after(3), warm, "finished"))
    metrics.ended(Ended("u", 1, "small", "r", NOON, after(1), after(3), {}, "failed", Reason.PROVISION_FAILED))
    told = values(metrics)
    assert told["mayfly_attempts_ended_total", "small", "connection_lost", "requeued"] == 1
    assert told["mayfly_attempts_ended_total", "small", "none", "finished"] == 1
    assert told["mayfly_attempts_ended_total", "small", "provision_failed", "failed"] == 1
    assert told["mayfly_stage_seconds_sum", "small", "PROVISIONING"] == 10
    assert told["mayfly_stage_seconds_count", "small", "EXECUTING"] == 2
    assert told["mayfly_start_seconds_sum", "small", "cold"] == 20
    assert told["mayfly_start_seconds_sum", "small", "warm"] == pytest.approx(0.2)


def test_a_clock_that_was_put_back_makes_no_time_negative(metrics: Metrics) -> None:
    metrics.claimed("small", warm=True, waited_seconds=-3.0)
    metrics.launched("small", "debian-12", -1.0)
    told = values(metrics)
    assert told["mayfly_wait_seconds_sum", "small"] == 0
    assert told["mayfly_launch_seconds_sum", "debian-12", "small", "ok"] == 0


def test_only_the_leader_says_what_the_database_says(metrics: Metrics) -> None:
    gauges = {"mayfly_vms", "mayfly_ready_vms", "mayfly_tasks_waiting", "mayfly_quarantined", "mayfly_overdue_vms"}

    def shown() -> set[str]:
        return {name for name, *_ in values(metrics)} & gauges

    assert shown() == set()
    metrics.leads(True)
    metrics.saw(Look(vms={("small", VmState.READY): 2}, ready={"small": 2}, quarantined={"host": 1}))
    metrics.overdue(3)
    told = values(metrics)
    assert told["mayfly_scheduler_leads",] == 1
    assert (told["mayfly_vms", "small", "READY"], told["mayfly_vms", "small", "IN_USE"]) == (2, 0)
    assert told["mayfly_ready_vms", "small"] == 2
    assert (told["mayfly_quarantined", "host"], told["mayfly_quarantined", "version"]) == (1, 0)
    assert told["mayfly_overdue_vms",] == 3
    assert shown() == gauges
    metrics.leads(False)
    assert shown() == set()
    assert values(metrics)["mayfly_scheduler_leads",] == 0


def test_the_longest_of_several_waits_is_the_longest(metrics: Metrics) -> None:
    metrics.saw(Look(oldest_wait_seconds={"gone": 5.0, "gone too": 7.0, "small": 2.0}))
    told = values(metrics)
    assert told["mayfly_oldest_wait_seconds", "other"] == 7
    assert told["mayfly_oldest_wait_seconds", "small"] == 2


def test_names_follow_prometheus_rules(metrics: Metrics) -> None:
    for family in metrics.registry.collect():
        if family.name.startswith("mayfly_"):
            assert family.documentation.endswith(".")
            if family.type == "histogram":
                assert family.name.endswith("_seconds")
            assert not any(sample.name.endswith("_created") for sample in family.samples)
