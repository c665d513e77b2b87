"""The steps of a VM's life as tables: which follows which, and where a step that fails leads."""

from __future__ import annotations

from orchestrator.localcloud.model import Lcm, VmState

PROLOGS = {"": Lcm.PROLOG, "STOPPED": Lcm.PROLOG_RESUME, "UNDEPLOYED": Lcm.PROLOG_UNDEPLOY}
BOOT_AFTER = {Lcm.PROLOG: Lcm.BOOT, Lcm.PROLOG_RESUME: Lcm.BOOT_STOPPED, Lcm.PROLOG_UNDEPLOY: Lcm.BOOT_UNDEPLOY}
FAILURE_OF = {
    Lcm.PROLOG: (VmState.ACTIVE, Lcm.PROLOG_FAILURE),
    Lcm.PROLOG_RESUME: (VmState.ACTIVE, Lcm.PROLOG_RESUME_FAILURE),
    Lcm.PROLOG_UNDEPLOY: (VmState.ACTIVE, Lcm.PROLOG_UNDEPLOY_FAILURE),
    Lcm.BOOT: (VmState.ACTIVE, Lcm.BOOT_FAILURE),
    Lcm.BOOT_STOPPED: (VmState.ACTIVE, Lcm.BOOT_STOPPED_FAILURE),
    Lcm.BOOT_UNDEPLOY: (VmState.ACTIVE, Lcm.BOOT_UNDEPLOY_FAILURE),
    Lcm.BOOT_POWEROFF: (VmState.POWEROFF, Lcm.LCM_INIT),
    Lcm.BOOT_SUSPENDED: (VmState.SUSPENDED, Lcm.LCM_INIT),
    Lcm.SHUTDOWN: (VmState.ACTIVE, Lcm.RUNNING),
    Lcm.SHUTDOWN_POWEROFF: (VmState.ACTIVE, Lcm.RUNNING),
    Lcm.SHUTDOWN_UNDEPLOY: (VmState.ACTIVE, Lcm.RUNNING),
    Lcm.SAVE_SUSPEND: (VmState.ACTIVE, Lcm.RUNNING),
    Lcm.SAVE_STOP: (VmState.ACTIVE, Lcm.RUNNING),
    Lcm.EPILOG: (VmState.ACTIVE, Lcm.EPILOG_FAILURE),
    Lcm.EPILOG_STOP: (VmState.ACTIVE, Lcm.EPILOG_STOP_FAILURE),
    Lcm.EPILOG_UNDEPLOY: (VmState.ACTIVE, Lcm.EPILOG_UNDEPLOY_FAILURE),
}
"""Where a VM goes when the step of its LCM state fails: what cannot be undone is a *_FAILURE, the rest falls back
silently."""
RETRY_OF = {failure[1]: lcm for lcm, failure in FAILURE_OF.items() if failure[1].name.endswith("_FAILURE")}
"""What `recover(…, 2)` does again."""
