"""The database: the only memory. Frozen views come out, named transitions go in."""

from orchestrator.store.bell import Wakeups
from orchestrator.store.clock import Clock
from orchestrator.store.encoding import Timings
from orchestrator.store.events import EventKind
from orchestrator.store.guards import BUILDERS
from orchestrator.store.layers import LayerRow
from orchestrator.store.leaders import LeaderRow
from orchestrator.store.opened import Store
from orchestrator.store.reviews import ReviewRow
from orchestrator.store.schedules import ScheduleRow
from orchestrator.store.submitting import MAX_SPEC_BYTES
from orchestrator.store.transitions import Finished, Requeued, StageEntered, VmMoved, VmRequest
from orchestrator.store.views import (
    AttemptRow,
    Beat,
    Claim,
    Decision,
    EventRow,
    Launch,
    Lease,
    QueuePlace,
    QueueRow,
    RunnerRow,
    TaskRow,
    Throughput,
    VmCount,
    VmRow,
)

__all__ = [
    "BUILDERS",
    "MAX_SPEC_BYTES",
    "AttemptRow",
    "Beat",
    "Claim",
    "Clock",
    "Decision",
    "EventKind",
    "EventRow",
    "Finished",
    "Launch",
    "LayerRow",
    "LeaderRow",
    "Lease",
    "QueuePlace",
    "QueueRow",
    "Requeued",
    "ReviewRow",
    "RunnerRow",
    "ScheduleRow",
    "StageEntered",
    "Store",
    "TaskRow",
    "Throughput",
    "Timings",
    "VmCount",
    "VmMoved",
    "VmRequest",
    "VmRow",
    "Wakeups",
]
