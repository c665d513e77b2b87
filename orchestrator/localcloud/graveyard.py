"""What is kept of DONE VMs: the newest ones' console logs and rows."""

from __future__ import annotations

import shutil

from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.model import VmState


def bury(cloud: Cloud) -> None:
    """Delete the console logs, and later the rows, of VMs that are DONE longest."""
    settings = cloud.settings
    with cloud.lock:
        done = sorted(vm.oid for vm in cloud.store.vms if vm.state == VmState.DONE)
        for vm_id in done[: max(0, len(done) - settings.done_vms_kept)]:
            cloud.store.vms.delete(vm_id)
        without_log = done[: max(0, len(done) - settings.console_logs_kept)]
    for vm_id in without_log:
        directory = cloud.vm_directory(vm_id)
        if directory.is_dir():
            shutil.rmtree(directory, ignore_errors=True)
