"""The cloud: a few verbs over pyone, with real timeouts; VM templates rendered from `templates/`."""

from orchestrator.opennebula.auth import read_session
from orchestrator.opennebula.cloud import Cloud
from orchestrator.opennebula.events import events_address
from orchestrator.opennebula.images import Images
from orchestrator.opennebula.objects import CloudVm, Host, ImageVersion, Network, VmRequest
from orchestrator.opennebula.sights import Sight
from orchestrator.opennebula.states import LcmState, Phase, State
from orchestrator.opennebula.stuck import StuckVm

__all__ = [
    "Cloud",
    "CloudVm",
    "Host",
    "ImageVersion",
    "Images",
    "LcmState",
    "Network",
    "Phase",
    "Sight",
    "State",
    "StuckVm",
    "VmRequest",
    "events_address",
    "read_session",
]
