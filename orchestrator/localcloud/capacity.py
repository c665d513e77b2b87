"""Who uses how much of a host."""

from __future__ import annotations

from orchestrator.localcloud.bodies import vm_cpu_percent, vm_memory_kb
from orchestrator.localcloud.model import Host, Vm, VmState
from orchestrator.localcloud.store import Store
from orchestrator.localcloud.template import text_of

_ON_A_HOST = (VmState.ACTIVE, VmState.SUSPENDED, VmState.POWEROFF)
ENABLED = 2


def vms_on(store: Store, host: Host) -> list[Vm]:
    """VMs that hold capacity there: active ones, and those that are powered off or suspended."""
    return [vm for vm in store.vms if vm.state in _ON_A_HOST and vm.history and vm.history[-1].hid == host.oid]


def free(store: Store, host: Host) -> tuple[int, int]:
    """CPU in percent of a core and memory in kB that are left."""
    vms = vms_on(store, host)
    cpu = host.cpu - int(text_of(host.template, "RESERVED_CPU") or 0) - sum(vm_cpu_percent(vm) for vm in vms)
    memory = host.memory - int(text_of(host.template, "RESERVED_MEM") or 0) - sum(vm_memory_kb(vm) for vm in vms)
    return cpu, memory


def attributes(store: Store, host: Host, left: tuple[int, int]) -> dict[str, str]:
    """What SCHED_REQUIREMENTS can ask of a host, of which `left` is free."""
    cpu, memory = left
    cluster = store.clusters.find(host.cluster_id)
    own = {key: text_of(host.template, key) for key in host.template}
    return own | {
        "ID": str(host.oid),
        "NAME": host.name,
        "CLUSTER": cluster.name if cluster else "",
        "CLUSTER_ID": str(host.cluster_id),
        "FREE_CPU": str(cpu),
        "FREE_MEMORY": str(memory),
    }
