"""Changes of state as named values. The store applies each with one guarded write, or says that it came too late."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.decide import deadlines
from orchestrator.decide.retry import Retry
from orchestrator.domain.outcome import Reason, Verdict
from orchestrator.domain.pool import Pool
from orchestrator.domain.task import Stage, TaskState
from orchestrator.domain.vm import VmState
from orchestrator.store.views import Lease, TaskRow


@dataclass(frozen=True, slots=True)
class StageEntered:
    """The attempt is at `stage` now. Forward only."""

    lease: Lease
    stage: Stage


@dataclass(frozen=True, slots=True)
class Finished:
    """The task is over: `state` is FINISHED, FAILED or CANCELED. `exit_code`: what `mayfly run` exits with."""

    lease: Lease
    state: TaskState
    reason: Reason | None = None
    message: str = ""
    exit_code: int | None = None

    def __post_init__(self) -> None:
        if not self.state.over:
            raise ValueError(f"{self.state} is not an end")

    @classmethod
    def by(cls, lease: Lease, verdict: Verdict) -> Finished:
        """As `outcome.judge` judged."""
        return cls(lease, verdict.state, verdict.reason, verdict.message, verdict.exit_code)


@dataclass(frozen=True, slots=True)
class Requeued:
    """This attempt did not do it; another may, from `not_before` on (None: at once), until `deadline_at`, and not on
    the hosts in `avoid`. If a cancel was asked for meanwhile, the task is CANCELED instead."""

    lease: Lease
    reason: Reason
    message: str
    not_before: datetime | None
    deadline_at: datetime
    avoid: tuple[str, ...] = ()

    @classmethod
    def by(cls, lease: Lease, retry: Retry, task: TaskRow, pool: Pool, *, host: str | None, now: datetime) -> Requeued:
        """As `decide.retry` answered. host: where the attempt was, if that is known."""
        return cls(
            lease,
            retry.reason,
            retry.message,
            not_before=now + timedelta(seconds=retry.after_seconds) if retry.after_seconds else None,
            deadline_at=deadlines.of_requeued(retry, task.spec.terms, pool, submitted_at=task.submitted_at, now=now),
            avoid=tuple(dict.fromkeys((*task.avoid, host))) if host and retry.avoid_host else task.avoid,
        )


@dataclass(frozen=True, slots=True)
class VmRequest:
    """A VM that is about to be asked for. `lease`: the attempt that it is for, if it is for one.
    `deadline_at`: until when OpenNebula may take to make it known. `host_key`: fingerprint of the key that it will
    show, `host_public_key`: its whole public line."""

    pool: str
    image_version: str
    runner_id: str
    deadline_at: datetime
    lease: Lease | None = None
    host_key: str | None = None
    host_public_key: str | None = None


@dataclass(frozen=True, slots=True)
class VmMoved:
    """A VM goes to `state`, from any state from which that is legal.

    runner_id: the runner that writes, which must be the VM's own; None when upkeep writes on behalf of a lost one.
    deadline_at: until when the VM may stay so; needed in every state but DESTROYED.
    close_proof: how we know that it is gone; needed for DESTROYED.
    because: for the event log.
    if_spare: only while the VM is for no attempt. Who ends one that waits says so: a claim may take it this moment.
    """

    vm_id: str
    state: VmState
    runner_id: str | None
    deadline_at: datetime | None = None
    address: str | None = None
    close_proof: str | None = None
    because: str = ""
    if_spare: bool = False

    def __post_init__(self) -> None:
        if self.state is VmState.DESTROYED:
            if not self.close_proof:
                raise ValueError("a VM is closed only on proof")
        elif self.deadline_at is None:
            raise ValueError(f"{self.state} needs a deadline")
