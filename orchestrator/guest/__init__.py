"""A machine over SSH: connect to the host key that we made, check, stage in, run one process, stage out."""

from orchestrator.guest.adoption import Started
from orchestrator.guest.errors import (
    AlreadyStarted,
    LaunchFailed,
    OutputRefused,
    Refused,
    StepFailed,
    VmLost,
    VmRestarted,
)
from orchestrator.guest.following import Sink
from orchestrator.guest.guest import Guest, connect
from orchestrator.guest.keys import KeyPair, make_key, read_key
from orchestrator.guest.launch import DEFAULT_ENVIRONMENT, TRACE_PATH, Arming, Launch
from orchestrator.guest.layer import LAYER_FILE
from orchestrator.guest.outputs import MAX_ENTRIES, OutputEntry, OutputKind, OutputSink, OutputWriter, WholeOutput
from orchestrator.guest.readiness import Facts, Requirement, require
from orchestrator.guest.seal import Probe, require_sealed
from orchestrator.guest.staging_in import InputEntry, check_tree, staged_mode

__all__ = [
    "DEFAULT_ENVIRONMENT",
    "LAYER_FILE",
    "MAX_ENTRIES",
    "TRACE_PATH",
    "AlreadyStarted",
    "Arming",
    "Facts",
    "Guest",
    "InputEntry",
    "KeyPair",
    "Launch",
    "LaunchFailed",
    "OutputEntry",
    "OutputKind",
    "OutputRefused",
    "OutputSink",
    "OutputWriter",
    "Probe",
    "Refused",
    "Requirement",
    "Sink",
    "Started",
    "StepFailed",
    "VmLost",
    "VmRestarted",
    "WholeOutput",
    "check_tree",
    "connect",
    "make_key",
    "read_key",
    "require",
    "require_sealed",
    "staged_mode",
]
