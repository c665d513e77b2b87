"""HISTORY records of a VM: one per stay on a host; hot-plugging, too, ends one and begins the next."""

from __future__ import annotations

import dataclasses

from orchestrator.localcloud.calls import Caller
from orchestrator.localcloud.cloud import now
from orchestrator.localcloud.model import History, Host, Vm

# pyone's HISTORY_ACTION, those that this cloud writes.
ACTIONS = {
    "undeploy": 5,
    "undeploy-hard": 6,
    "stop": 9,
    "suspend": 10,
    "resume": 11,
    "delete": 13,
    "delete-recreate": 14,
    "poweroff": 19,
    "poweroff-hard": 20,
    "nic-attach": 23,
    "nic-detach": 24,
    "terminate": 27,
    "terminate-hard": 28,
    "resize": 35,
}


def opened(vm: Vm, host: Host, datastore_id: int, *, by_scheduler: bool) -> History:
    """A record that begins now."""
    return History(
        seq=len(vm.history),
        hostname=host.name,
        hid=host.oid,
        cid=host.cluster_id,
        ds_id=datastore_id,
        stime=now(),
        by_scheduler=by_scheduler,
        vm_mad=host.vm_mad,
    )


def mark(vm: Vm, action: str, caller: Caller | None) -> None:
    """Note on the newest record which action was asked for, and by whom."""
    if vm.history and action in ACTIONS:
        record = vm.history[-1]
        record.action = ACTIONS[action]
        if caller is not None:
            record.uid, record.gid = caller.user.oid, caller.user.gid
            record.request_id = caller.request_id


def close_and_copy(vm: Vm, action: str, caller: Caller) -> None:
    """End the newest record with this action, and begin another on the same host."""
    if not vm.history:
        return
    mark(vm, action, caller)
    ended = vm.history[-1]
    was_running = ended.retime == 0
    ended.etime = now()
    ended.retime = ended.retime or now()
    vm.history.append(
        dataclasses.replace(
            ended,
            seq=ended.seq + 1,
            stime=now(),
            etime=0,
            pstime=0,
            petime=0,
            rstime=now(),
            retime=0 if was_running else now(),
            estime=0,
            eetime=0,
            action=0,
            uid=-1,
            gid=-1,
            request_id=-1,
        )
    )


def reopened(vm: Vm, caller: Caller) -> None:
    """Resume from POWEROFF or SUSPENDED on the same host: the old record ends, the new one runs from now on."""
    if vm.history:
        ended = vm.history[-1]
        ended.etime = ended.etime or now()
        fresh = dataclasses.replace(ended, seq=ended.seq + 1, stime=now(), etime=0, pstime=0, petime=0, rstime=now())
        fresh.retime = fresh.estime = fresh.eetime = 0
        vm.history.append(fresh)
        mark(vm, "resume", caller)
