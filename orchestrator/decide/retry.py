"""What a failed attempt is answered with: another one, and when, or the end.

The platform's failures are tried again by the pool's policy: so many tries, with a growing back-off of which a random
part is waited (full jitter, so that tasks that failed together do not come back together). The job's own end is tried
again only when its submitter asked for that, and no task that is delivered at most once ever gets a second process.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from orchestrator.domain.errors import CloudUnreachable, DatabaseUnavailable, PlatformError, UserError
from orchestrator.domain.outcome import Reason, Verdict, failed
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Delivery, TaskState, Terms

_LONGEST_DOUBLING = 30
_FREE = frozenset({Reason.QUOTA, Reason.NO_CAPACITY, Reason.MAX_VMS, Reason.RETRY})
"""No try was made: there was no room for a machine, or what makes machines was gone."""

_OF_THE_HOST = frozenset(
    {
        Reason.PROVISION_FAILED,
        Reason.UNREACHABLE,
        Reason.WRONG_HOST_KEY,
        Reason.CONNECTION_LOST,
        Reason.GUEST_FAILED,
        Reason.SEAL_BROKEN,
        Reason.STAGING_FAILED,
    }
)
"""What a hypervisor host may be to blame for: the next machine had better be elsewhere."""

_OF_THE_JOB = frozenset(
    {
        Reason.EXIT_NONZERO,
        Reason.SIGNALED,
        Reason.OUT_OF_MEMORY,
        Reason.TIMED_OUT,
        Reason.DISK_FULL,
        Reason.OUTPUT_MISSING,
    }
)


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that the platform failed.

    started: a process may have started, or nobody can say. final: another try would fail alike. outage: what is needed
    does not answer for now, which before the start costs no try.
    """

    reason: Reason
    message: str
    started: bool
    final: bool = False
    outage: bool = False

    @classmethod
    def of(cls, error: Exception, *, started: bool) -> Self:
        """From what was raised. What nobody foresaw is INTERNAL.

        >>> Failure.of(CloudUnreachable("no answer"), started=False).outage
        True
        """
        match error:
            case UserError():
                return cls(Reason.PROVISION_FAILED, str(error), started, final=True)
            case PlatformError():
                silent = isinstance(error, CloudUnreachable | DatabaseUnavailable)
                return cls(error.reason, str(error), started, final=error.final, outage=silent)
            case _:
                return cls(Reason.INTERNAL, f"{type(error).__name__}: {error}", started)


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again `after_seconds`. counted: this was one of the tries that a task has. avoid_host: better on another."""

    after_seconds: float
    reason: Reason
    message: str
    avoid_host: bool
    counted: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It ends here, with this verdict."""

    verdict: Verdict


def after(
    failure: Failure, *, terms: Terms, pool: Pool, attempt: int, rand: float, earlier: Collection[Reason] = ()
) -> Retry | GiveUp:
    """What follows a failure of the platform.

    attempt: the number of the one that failed, from 1. earlier: why the task's earlier attempts were requeued, in any
    order. rand: 0 to 1, the part of the back-off that is waited.

    Want of room, of quota or of OpenNebula itself costs no try before the process starts: such a task waits as long as
    its place in the queue is good for. A full disk likewise, unless a process ran for it. A seal that a second machine
    breaks, too, is the pool's, and no retry mends it.

    >>> pool = Pool(name="small", image="debian-12", retry_backoff_seconds=4)
    >>> lost = Failure(Reason.UNREACHABLE, "no SSH", started=False)
    >>> after(lost, terms=Terms(), pool=pool, attempt=2, rand=0.5, earlier=[Reason.UNREACHABLE]).after_seconds
    4.0
    """
    if failure.final:
        return GiveUp(failed(failure.reason, failure.message))
    if failure.started and terms.delivery is Delivery.AT_MOST_ONCE:
        why = f"{failure.message}; it may have run, and is delivered at most once"
        return GiveUp(failed(failure.reason, why))
    if failure.reason is Reason.SEAL_BROKEN and Reason.SEAL_BROKEN in earlier:
        return GiveUp(failed(failure.reason, f"{failure.message}; so it was on another machine before"))
    counted = failure.started or not (failure.outage or failure.reason in _FREE | {Reason.HOST_DISK_FULL})
    if counted:
        free = _FREE if failure.started else _FREE | {Reason.HOST_DISK_FULL}
        tries = max(1, attempt - sum(reason in free for reason in earlier))
        most = terms.max_attempts or pool.max_attempts
        if tries >= most:
            told = f"{failure.message} (try {tries} of {most})" if most > 1 else failure.message
            return GiveUp(failed(failure.reason, told))
    return Retry(
        after_seconds=_backoff(pool, attempt, rand),
        reason=Reason.RETRY if failure.outage and not counted else failure.reason,
        message=failure.message,
        avoid_host=failure.reason in _OF_THE_HOST and not failure.outage,
        counted=counted,
    )


def after_job(
    verdict: Verdict, *, terms: Terms, pool: Pool, attempt: int, rand: float, earlier: Collection[Reason] = ()
) -> Retry | GiveUp:
    """What follows the end of a process, as `outcome.judge` judged it. GiveUp holds the verdict to write, also a good
    one. A process of which nobody can say how it ended is the platform's failure, and answered as in `after`."""
    if verdict.state is not TaskState.FAILED:
        return GiveUp(verdict)
    if verdict.reason not in _OF_THE_JOB:
        reason = verdict.reason or Reason.INTERNAL
        lost = Failure(reason, verdict.message, started=True)
        return after(lost, terms=terms, pool=pool, attempt=attempt, rand=rand, earlier=earlier)
    if not terms.retry_job or terms.delivery is Delivery.AT_MOST_ONCE:
        return GiveUp(verdict)
    tries = max(1, attempt - sum(reason in _FREE for reason in earlier))
    if tries >= (terms.max_attempts or pool.max_attempts):
        return GiveUp(verdict)
    return Retry(_backoff(pool, attempt, rand), verdict.reason, verdict.message, avoid_host=False, counted=True)


def _backoff(pool: Pool, attempt: int, rand: float) -> float:
    """Seconds: a part of what doubles from attempt to attempt, up to the pool's longest."""
    whole = pool.retry_backoff_seconds * 2.0 ** min(attempt - 1, _LONGEST_DOUBLING)
    return float(min(max(rand, 0.0), 1.0) * min(whole, pool.retry_backoff_max_seconds))
