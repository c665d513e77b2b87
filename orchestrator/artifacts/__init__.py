"""The blob store: inputs, outputs, logs, traces."""

from orchestrator.artifacts.archive import Artifacts, AttemptLogs, LogName, StagedEntry
from orchestrator.artifacts.documents import DocumentName
from orchestrator.artifacts.logs import Log, LogState, LogWriter
from orchestrator.artifacts.outputs import OutputsWriter, OutputWriter
from orchestrator.artifacts.patience import WhenFull
from orchestrator.artifacts.trees import Entry, EntryKind, Tree
from orchestrator.artifacts.upkeep import Swept

__all__ = [
    "Artifacts",
    "AttemptLogs",
    "DocumentName",
    "Entry",
    "EntryKind",
    "Log",
    "LogName",
    "LogState",
    "LogWriter",
    "OutputWriter",
    "OutputsWriter",
    "StagedEntry",
    "Swept",
    "Tree",
    "WhenFull",
]
