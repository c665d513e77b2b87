"""Hosts, clusters, datastores, groups, zones: what an administrator sets up once."""

from __future__ import annotations

import os

from orchestrator.localcloud import bodies, capacity, edits, names, user_bodies
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.markup import cdata, element
from orchestrator.localcloud.model import Cluster, Host
from orchestrator.localcloud.monitor import host_sample
from orchestrator.localcloud.pools import newest_first
from orchestrator.localcloud.quotas import set_quotas
from orchestrator.localcloud.refusals import Code, Refused, wrong_state
from orchestrator.localcloud.template import Template

calls = Calls()

_STATE_OF_STATUS = {0: 2, 1: 4, 2: 8}


def _host_body(cloud: Cloud, host: Host) -> str:
    return bodies.host_body(cloud.store, host, capacity.vms_on(cloud.store, host), cloud.home)


@calls.add("one.host.allocate", "sss|i")
def allocate(cloud: Cloud, caller: Caller, name: str, im_mad: str, vm_mad: str, cluster: int = -1) -> int:
    """A further host is this machine once more, with host 0's capacity; MONITORED a moment later."""
    caller.require_create("HOST", f"ADMIN CLUSTER [{max(cluster, 0)}]")
    names.check(name)
    names.check_free(name, cloud.store.hosts, owner=None, word="HOST")
    home = cloud.store.clusters.get(max(cluster, 0))
    host = Host(cloud.store.hosts.next_id(), name, im_mad=im_mad, vm_mad=vm_mad, cluster_id=home.oid)
    host.template = {"IM_MAD": [im_mad], "VM_MAD": [vm_mad], "RESERVED_CPU": [""], "RESERVED_MEM": [""]}
    cloud.store.hosts.save(host)
    first = cloud.store.hosts.find(0)
    cpu, memory = (first.cpu, first.memory) if first else (0, 0)
    cloud.soon(lambda: _monitored(cloud, host.oid, cpu, memory))
    return host.oid


def machine_facts(hypervisor: str, cpu: int, memory: int) -> Template:
    """What monitoring reports of this machine."""
    return {
        "ARCH": [os.uname().machine],
        "HOSTNAME": [os.uname().nodename],
        "HYPERVISOR": [hypervisor],
        "TOTALCPU": [str(cpu)],
        "TOTALMEMORY": [str(memory)],
    }


def _monitored(cloud: Cloud, host_id: int, cpu: int, memory: int) -> None:
    with cloud.lock:
        host = cloud.store.hosts.find(host_id)
        if host is not None and host.state == 0:
            host.state, host.cpu, host.memory = capacity.ENABLED, cpu, memory
            host.template = machine_facts(host.vm_mad, host.cpu, host.memory) | host.template
            host.samples = [host_sample(cloud, host)]
            cloud.store.hosts.save(host)


@calls.add("one.host.info", "i|b")
def info(cloud: Cloud, caller: Caller, host_id: int, _decrypt: bool = False) -> str:
    host = cloud.store.hosts.get(host_id)
    caller.require(("USE", host))
    return _host_body(cloud, host)


@calls.add("one.hostpool.info", "")
def pool_info(cloud: Cloud, caller: Caller) -> str:
    """An empty list for ordinary users, not an error."""
    shown = newest_first(cloud.store.hosts) if caller.is_admin else []
    return element("HOST_POOL", *(_host_body(cloud, host) for host in shown))


@calls.add("one.host.status", "ii")
def status(cloud: Cloud, caller: Caller, host_id: int, wanted: int) -> int:
    """0 enabled, 1 disabled, 2 offline."""
    host = cloud.store.hosts.get(host_id)
    caller.require(("ADMIN", host))
    if wanted not in _STATE_OF_STATUS:
        raise Refused(Code.INTERNAL, f"Wrong status {wanted}")
    host.state = _STATE_OF_STATUS[wanted]
    cloud.store.hosts.save(host)
    return host_id


@calls.add("one.host.update", "isi")
def update(cloud: Cloud, caller: Caller, host_id: int, text: str, how: int) -> int:
    host = cloud.store.hosts.get(host_id)
    caller.require(("MANAGE", host))
    host.template = edits.updated(host.template, text, how)
    cloud.store.hosts.save(host)
    return host_id


@calls.add("one.host.rename", "is")
def rename(cloud: Cloud, caller: Caller, host_id: int, name: str) -> int:
    host = cloud.store.hosts.get(host_id)
    caller.require(("ADMIN", host))
    names.check(name)
    names.check_free(name, cloud.store.hosts, owner=None, word="HOST")
    host.name = name
    cloud.store.hosts.save(host)
    return host_id


@calls.add("one.host.delete", "i")
def delete(cloud: Cloud, caller: Caller, host_id: int) -> int:
    host = cloud.store.hosts.get(host_id)
    caller.require(("ADMIN", host))
    if capacity.vms_on(cloud.store, host):
        raise wrong_state("Cannot delete host. Can not remove a host with running VMs")
    cloud.store.hosts.delete(host_id)
    return host_id


@calls.add("one.host.monitoring", "i")
def monitoring(cloud: Cloud, caller: Caller, host_id: int) -> str:
    host = cloud.store.hosts.get(host_id)
    caller.require(("USE", host))
    return element("MONITORING_DATA", *(bodies.sample_xml(host, sample) for sample in host.samples))


@calls.add("one.hostpool.monitoring", "|i")
def pool_monitoring(cloud: Cloud, caller: Caller, seconds: int = -1) -> str:
    """`seconds`: -1 all there is, 0 the newest of each, else what is not older."""
    shown = list(cloud.store.hosts) if caller.is_admin else []
    parts = [bodies.sample_xml(host, sample) for host in shown for sample in recent(host.samples, seconds)]
    return element("MONITORING_DATA", *parts)


def recent(samples: list[dict[str, int]], seconds: int) -> list[dict[str, int]]:
    if seconds == 0:
        return samples[-1:]
    if seconds < 0 or not samples:
        return samples
    newest = samples[-1]["TIMESTAMP"]
    return [sample for sample in samples if newest - sample["TIMESTAMP"] <= seconds]


@calls.add("one.cluster.allocate", "s")
def allocate_cluster(cloud: Cloud, caller: Caller, name: str) -> int:
    caller.require_create("CLUSTER")
    names.check(name)
    names.check_free(name, cloud.store.clusters, owner=None, word="CLUSTER")
    cluster = Cluster(cloud.store.clusters.next_id(), name, {"RESERVED_CPU": [""], "RESERVED_MEM": [""]})
    cloud.store.clusters.save(cluster)
    return cluster.oid


@calls.add("one.cluster.info", "i|b")
def info_cluster(cloud: Cloud, caller: Caller, cluster_id: int, _decrypt: bool = False) -> str:
    cluster = cloud.store.clusters.get(cluster_id)
    caller.require(("USE", cluster))
    return bodies.cluster_body(cloud.store, cluster)


@calls.add("one.clusterpool.info", "")
def cluster_pool(cloud: Cloud, caller: Caller) -> str:
    shown = newest_first(cloud.store.clusters) if caller.is_admin else []
    return element("CLUSTER_POOL", *(bodies.cluster_body(cloud.store, cluster) for cluster in shown))


@calls.add("one.cluster.update", "isi")
def update_cluster(cloud: Cloud, caller: Caller, cluster_id: int, text: str, how: int) -> int:
    cluster = cloud.store.clusters.get(cluster_id)
    caller.require(("MANAGE", cluster))
    cluster.template = edits.updated(cluster.template, text, how)
    cloud.store.clusters.save(cluster)
    return cluster_id


@calls.add("one.cluster.delete", "i")
def delete_cluster(cloud: Cloud, caller: Caller, cluster_id: int) -> int:
    cluster = cloud.store.clusters.get(cluster_id)
    caller.require(("ADMIN", cluster))
    if cluster_id == 0:
        raise wrong_state("Cannot delete cluster. Cluster 0 cannot be deleted.")
    store = cloud.store
    for count, word in (
        (sum(host.cluster_id == cluster_id for host in store.hosts), "hosts"),
        (sum(cluster_id in item.clusters for item in store.datastores), "datastores"),
        (sum(cluster_id in item.clusters for item in store.networks), "vnets"),
    ):
        if count:
            raise wrong_state(f"Cannot delete cluster. Cluster {cluster_id} is not empty, it contains {count} {word}.")
    store.clusters.delete(cluster_id)
    return cluster_id


@calls.add("one.group.info", "i|b")
def info_group(cloud: Cloud, caller: Caller, group_id: int, _decrypt: bool = False) -> str:
    """-1 is the caller's own."""
    group = cloud.store.groups.get(caller.user.gid if group_id == -1 else group_id)
    if not caller.is_admin and group.oid not in caller.user.groups:
        caller.demand(f"USE GROUP [{group.oid}]")
    inner = bodies.group_body(cloud.store, group).removesuffix("</GROUP>")
    return f"{inner}{user_bodies.quotas_of(cloud.store, group)}{user_bodies.DEFAULT_GROUP_QUOTAS}</GROUP>"


@calls.add("one.group.quota", "is")
def quota(cloud: Cloud, caller: Caller, group_id: int, text: str) -> int:
    group = cloud.store.groups.get(group_id)
    if not caller.is_admin:
        caller.demand(f"ADMIN GROUP [{group_id}]")
    set_quotas(group, text)
    cloud.store.groups.save(group)
    return group.oid


@calls.add("one.grouppool.info", "")
def group_pool(cloud: Cloud, caller: Caller) -> str:
    shown = [group for group in newest_first(cloud.store.groups) if caller.is_admin or group.oid in caller.user.groups]
    parts = [bodies.group_body(cloud.store, group) + user_bodies.quotas_body(cloud.store, group) for group in shown]
    return element("GROUP_POOL", *parts, user_bodies.DEFAULT_GROUP_QUOTAS)


@calls.add("one.zonepool.info", "")
def zone_pool(cloud: Cloud, caller: Caller) -> str:
    endpoint = (cloud.home / "endpoint").read_text().strip()
    template = element("TEMPLATE", cdata("ENDPOINT", endpoint))
    return element(
        "ZONE_POOL",
        element(
            "ZONE",
            element("ID", 0),
            element("NAME", "OpenNebula"),
            element("STATE", 0),
            template,
            "<SERVER_POOL></SERVER_POOL>",
        ),
    )
