"""What a failed attempt is answered with."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.decide.retry import Failure, GiveUp, Retry, after, after_job
from orchestrator.domain.errors import (
    CloudUnreachable,
    DatabaseUnavailable,
    HostDiskFull,
    InvalidPool,
    ProvisionFailed,
    SealBroken,
    StagingFailed,
    Unreachable,
)
from orchestrator.domain.outcome import (
    Exited,
    Lost,
    Outcome,
    OutOfMemory,
    Reason,
    Signaled,
    TimedOut,
    Verdict,
    failed,
    judge,
    stopped,
)
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Delivery, TaskState, Terms

POOL = Pool(name="small", image="debian-12", max_attempts=3, retry_backoff_seconds=4, retry_backoff_max_seconds=60)
TERMS, ONCE = Terms(), Terms(delivery=Delivery.AT_MOST_ONCE)
PLATFORM = [
    Reason.PROVISION_FAILED,
    Reason.UNREACHABLE,
    Reason.WRONG_HOST_KEY,
    Reason.CONNECTION_LOST,
    Reason.GUEST_FAILED,
    Reason.SEAL_BROKEN,
    Reason.STAGING_FAILED,
    Reason.RUNNER_LOST,
    Reason.INTERNAL,
]
FREE = [Reason.QUOTA, Reason.NO_CAPACITY, Reason.MAX_VMS, Reason.RETRY, Reason.HOST_DISK_FULL]


def failure(reason: Reason = Reason.UNREACHABLE, *, started: bool = False, **more: bool) -> Failure:
    return Failure(reason, "why", started, **more)


@pytest.mark.parametrize(
    "error, expected",
    [
        (Unreachable("no SSH"), Failure(Reason.UNREACHABLE, "no SSH", True)),
        (SealBroken("open"), Failure(Reason.SEAL_BROKEN, "open", True)),
        (ProvisionFailed("no"), Failure(Reason.PROVISION_FAILED, "no", True)),
        (HostDiskFull("full"), Failure(Reason.HOST_DISK_FULL, "full", True)),
        (StagingFailed("half"), Failure(Reason.STAGING_FAILED, "half", True)),
        (CloudUnreachable("silence"), Failure(Reason.PROVISION_FAILED, "silence", True, outage=True)),
        (DatabaseUnavailable("down"), Failure(Reason.INTERNAL, "down", True, outage=True)),
        (InvalidPool("image", "none"), Failure(Reason.PROVISION_FAILED, "image: none", True, final=True)),
        (KeyError("x"), Failure(Reason.INTERNAL, "KeyError: 'x'", True)),
    ],
)
def test_what_was_raised_says_how_it_failed(error: Exception, expected: Failure) -> None:
    assert Failure.of(error, started=True) == expected
    assert Failure.of(error, started=False) == replace(expected, started=False)


@pytest.mark.parametrize("reason", PLATFORM)
@pytest.mark.parametrize("started", [False, True])
def test_a_failure_of_the_platform_is_tried_again_so_many_times(reason: Reason, started: bool) -> None:
    again = after(failure(reason, started=started), terms=TERMS, pool=POOL, attempt=1, rand=1)
    of_the_host = reason not in (Reason.RUNNER_LOST, Reason.INTERNAL)
    assert again == Retry(4.0, reason, "why", avoid_host=of_the_host, counted=True)
    before = [Reason.CONNECTION_LOST]
    second = after(failure(reason, started=started), terms=TERMS, pool=POOL, attempt=2, rand=1, earlier=before)
    assert isinstance(second, Retry) and second.after_seconds == 8.0
    third = after(failure(reason, started=started), terms=TERMS, pool=POOL, attempt=3, rand=1, earlier=before * 2)
    assert third == GiveUp(failed(reason, "why (try 3 of 3)"))


def test_the_task_may_say_how_often() -> None:
    once = replace(TERMS, max_attempts=1)
    assert after(failure(), terms=once, pool=POOL, attempt=1, rand=0) == GiveUp(failed(Reason.UNREACHABLE, "why"))
    five = replace(TERMS, max_attempts=5)
    tries = [Reason.UNREACHABLE] * 3
    assert isinstance(after(failure(), terms=five, pool=POOL, attempt=4, rand=0, earlier=tries), Retry)


def test_what_would_fail_alike_is_not_tried_again() -> None:
    assert after(failure(final=True), terms=TERMS, pool=POOL, attempt=1, rand=0) == GiveUp(
        failed(Reason.UNREACHABLE, "why")
    )


@pytest.mark.parametrize("reason", FREE)
def test_want_of_room_costs_no_try(reason: Reason) -> None:
    again = after(failure(reason), terms=TERMS, pool=POOL, attempt=50, rand=1, earlier=[reason] * 49)
    assert again == Retry(60.0, reason, "why", avoid_host=False, counted=False)
    lost = after(failure(), terms=TERMS, pool=POOL, attempt=51, rand=1, earlier=[reason] * 50)
    assert isinstance(lost, Retry), "the first try that was one"


def test_an_outage_before_the_process_costs_no_try_and_after_it_one() -> None:
    gone = failure(Reason.PROVISION_FAILED, outage=True)
    before = after(gone, terms=TERMS, pool=POOL, attempt=9, rand=0.5, earlier=[Reason.RETRY] * 8)
    assert before == Retry(30.0, Reason.RETRY, "why", avoid_host=False, counted=False)
    started = after(
        replace(gone, started=True), terms=TERMS, pool=POOL, attempt=9, rand=0.5, earlier=[Reason.RETRY] * 8
    )
    assert started == Retry(30.0, Reason.PROVISION_FAILED, "why", avoid_host=False, counted=True)


def test_a_process_that_ran_for_a_full_disk_was_a_try() -> None:
    full = failure(Reason.HOST_DISK_FULL, started=True)
    third = after(full, terms=TERMS, pool=POOL, attempt=3, rand=0, earlier=[Reason.HOST_DISK_FULL] * 2)
    assert third == GiveUp(failed(Reason.HOST_DISK_FULL, "why (try 3 of 3)"))


def test_a_broken_seal_is_tried_once_more_elsewhere() -> None:
    broken = failure(Reason.SEAL_BROKEN)
    first = after(broken, terms=TERMS, pool=POOL, attempt=1, rand=0)
    assert isinstance(first, Retry) and first.avoid_host
    second = after(broken, terms=TERMS, pool=POOL, attempt=2, rand=0, earlier=[Reason.SEAL_BROKEN])
    assert second == GiveUp(failed(Reason.SEAL_BROKEN, "why; so it was on another machine before"))


@pytest.mark.parametrize("reason", [*PLATFORM, *FREE])
@pytest.mark.parametrize("outage", [False, True])
def test_what_is_delivered_at_most_once_gets_no_second_process(reason: Reason, outage: bool) -> None:
    may_have_run = failure(reason, started=True, outage=outage)
    end = after(may_have_run, terms=ONCE, pool=POOL, attempt=1, rand=0)
    assert end == GiveUp(failed(reason, "why; it may have run, and is delivered at most once"))
    assert isinstance(after(failure(reason), terms=ONCE, pool=POOL, attempt=1, rand=0), Retry)


OWN = [Exited(3), Signaled("SEGV"), OutOfMemory(2**20), TimedOut(5)]


@pytest.mark.parametrize("verdict", [judge(Exited(0)), stopped(None), stopped(Signaled("TERM"))])
def test_a_good_end_and_a_cancel_are_the_end(verdict: Verdict) -> None:
    eager = replace(TERMS, retry_job=True)
    assert after_job(verdict, terms=eager, pool=POOL, attempt=1, rand=0) == GiveUp(verdict)


@pytest.mark.parametrize("verdict", [*map(judge, OWN), judge(Exited(0), missing_outputs=("none",))])
def test_the_jobs_own_end_is_tried_again_only_when_that_is_asked_for(verdict: Verdict) -> None:
    assert after_job(verdict, terms=TERMS, pool=POOL, attempt=1, rand=1) == GiveUp(verdict)
    eager = replace(TERMS, retry_job=True)
    again = after_job(verdict, terms=eager, pool=POOL, attempt=2, rand=1, earlier=[Reason.EXIT_NONZERO])
    assert verdict.reason is not None
    assert again == Retry(8.0, verdict.reason, verdict.message, avoid_host=False, counted=True)
    last = after_job(verdict, terms=eager, pool=POOL, attempt=3, rand=1, earlier=[Reason.EXIT_NONZERO] * 2)
    assert last == GiveUp(verdict)
    waited = after_job(verdict, terms=eager, pool=POOL, attempt=3, rand=1, earlier=[Reason.QUOTA] * 2)
    assert isinstance(waited, Retry)


def test_a_process_of_which_nobody_knows_the_end_is_the_platforms_failure() -> None:
    lost = judge(Lost("the VM is gone"))
    again = after_job(lost, terms=TERMS, pool=POOL, attempt=1, rand=0)
    assert isinstance(again, Retry) and again.reason is Reason.CONNECTION_LOST and again.avoid_host
    assert isinstance(after_job(lost, terms=ONCE, pool=POOL, attempt=1, rand=0), GiveUp)


reasons = st.sampled_from(Reason)
all_terms = st.builds(
    Terms,
    delivery=st.sampled_from(Delivery),
    max_attempts=st.none() | st.integers(1, 9),
    retry_job=st.booleans(),
)
pools = st.builds(
    Pool,
    name=st.just("small"),
    image=st.just("debian-12"),
    max_attempts=st.integers(1, 9),
    retry_backoff_seconds=st.floats(0, 1e6),
    retry_backoff_max_seconds=st.floats(0, 1e6),
)
failures = st.builds(Failure, reasons, st.text(), st.booleans(), st.booleans(), st.booleans())
histories = st.lists(reasons, max_size=20)
calm = settings(deadline=None)
dice = st.floats(allow_nan=False)


@calm
@given(failures, all_terms, pools, st.integers(1, 10**9), dice, histories)
def test_whatever_fails_a_retry_comes_neither_before_now_nor_later_than_the_pool_allows(
    failure: Failure, terms: Terms, pool: Pool, attempt: int, rand: float, earlier: list[Reason]
) -> None:
    decided = after(failure, terms=terms, pool=pool, attempt=attempt, rand=rand, earlier=earlier)
    if isinstance(decided, Retry):
        assert 0 <= decided.after_seconds <= pool.retry_backoff_max_seconds
        assert not failure.final
    else:
        assert decided.verdict.state is TaskState.FAILED and decided.verdict.reason is failure.reason


@calm
@given(failures, all_terms, pools, st.integers(1, 10), dice, histories)
def test_whatever_fails_at_most_once_means_that_no_process_follows_one_that_may_have_started(
    failure: Failure, terms: Terms, pool: Pool, attempt: int, rand: float, earlier: list[Reason]
) -> None:
    once, started = replace(terms, delivery=Delivery.AT_MOST_ONCE), replace(failure, started=True)
    decided = after(started, terms=once, pool=pool, attempt=attempt, rand=rand, earlier=earlier)
    assert isinstance(decided, GiveUp)


outcomes = st.sampled_from([*OWN, Exited(0), Lost("gone")])


@calm
@given(outcomes, all_terms, pools, st.integers(1, 10), dice, histories)
def test_however_a_process_ends_at_most_once_means_that_there_is_no_other(
    outcome: Outcome, terms: Terms, pool: Pool, attempt: int, rand: float, earlier: list[Reason]
) -> None:
    once = replace(terms, delivery=Delivery.AT_MOST_ONCE)
    decided = after_job(judge(outcome), terms=once, pool=pool, attempt=attempt, rand=rand, earlier=earlier)
    assert isinstance(decided, GiveUp)


@calm
@given(all_terms, pools, st.lists(st.sampled_from(PLATFORM), min_size=20, max_size=20), st.booleans())
def test_a_platform_that_fails_for_ever_is_given_up_after_the_tries_that_there_are(
    terms: Terms, pool: Pool, fates: list[Reason], started: bool
) -> None:
    earlier: list[Reason] = []
    for attempt, reason in enumerate(fates, 1):
        decided = after(
            Failure(reason, "", started), terms=terms, pool=pool, attempt=attempt, rand=0.5, earlier=earlier
        )
        if isinstance(decided, GiveUp):
            assert attempt <= (terms.max_attempts or pool.max_attempts)
            return
        earlier.append(decided.reason)
    raise AssertionError("it was never given up")
