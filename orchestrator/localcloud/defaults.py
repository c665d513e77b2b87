"""What a cloud has at its first start."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from orchestrator.localcloud.address_block import BLOCK, block_of
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.datastores import new_datastore
from orchestrator.localcloud.hosts import machine_facts
from orchestrator.localcloud.leases import new_range
from orchestrator.localcloud.model import Cluster, Group, Host, Network, SecurityGroup, User
from orchestrator.localcloud.monitor import host_sample
from orchestrator.localcloud.template import Template
from orchestrator.localcloud.users import hashed

_DEFAULT_GROUP = "In every network that names no other security group: all in, all out."

# Behind every lease is the same guest-side network: QEMU user networking, a 1:1 NAT (its documented defaults).
GUEST_SIDE = {
    "GUEST_IP": "10.0.2.15",
    "NETWORK_ADDRESS": "10.0.2.0",
    "NETWORK_MASK": "255.255.255.0",
    "GATEWAY": "10.0.2.2",
    "DNS": "10.0.2.3",
}


def make_directories(home: Path) -> None:
    """Only for the user who starts the cloud: disks and passwords are inside."""
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)
    for inner in ("vms", "datastores/0", "datastores/1", "datastores/2"):
        (home / inner).mkdir(parents=True, exist_ok=True)


def session_of(home: Path) -> str:
    """`oneadmin:<password>` out of `one_auth`, which is made at first start."""
    path = home / "one_auth"
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(f"oneadmin:{secrets.token_hex(16)}\n")
    except FileExistsError:
        pass
    return path.read_text().strip()


def fill(cloud: Cloud, session: str) -> None:
    """Users, groups, cluster 0, host 0, datastores 0 to 2, security groups 0 and 100, networks 0 and 1. Only what is
    missing altogether; the password is always that of `one_auth`, and the capacity always this machine's."""
    store = cloud.store
    password = hashed(session.partition(":")[2])
    if (oneadmin := store.users.find(0)) is None:
        store.groups.save(Group(0, "oneadmin"))
        store.groups.save(Group(1, "users"))
        oneadmin = User(0, "oneadmin", {"TOKEN_PASSWORD": [secrets.token_hex(32)]}, gid=0, groups=[0])
        store.clusters.save(Cluster(0, "default", {"RESERVED_CPU": [""], "RESERVED_MEM": [""]}))
        for oid, name, kind in ((0, "system", "SYSTEM_DS"), (1, "default", "IMAGE_DS"), (2, "files", "FILE_DS")):
            # On a developer's own machine images may come from anywhere; a datastore made later restricts that.
            store.datastores.save(new_datastore(oid, name, kind, {"SAFE_DIRS": ["/"]}, 0))
        _add_networks(cloud)
    oneadmin.password = password
    store.users.save(oneadmin)
    _add_hosts(cloud)


def _add_networks(cloud: Cloud) -> None:
    groups, networks = cloud.store.security_groups, cloud.store.networks
    everything: list[str | dict[str, str]] = [
        {"PROTOCOL": "ALL", "RULE_TYPE": direction} for direction in ("OUTBOUND", "INBOUND")
    ]
    groups.save(
        SecurityGroup(0, "default", {"RULE": everything, "DESCRIPTION": [_DEFAULT_GROUP]}, permissions="111100100")
    )
    ssh_only: list[str | dict[str, str]] = [{"PROTOCOL": "TCP", "RULE_TYPE": "inbound", "RANGE": "22"}]
    sealed = groups.next_id()
    groups.save(SecurityGroup(sealed, "sealed", {"RULE": ssh_only}, permissions="110100100"))
    half = BLOCK // 2
    for name, group, offset in (("open", 0, 0), ("sealed", sealed, half)):
        first = block_of(cloud.home) + offset + 1  # .0 looks like a network's own address
        template: Template = {key: [value] for key, value in GUEST_SIDE.items()}
        template |= {
            "BRIDGE": ["user"],
            "BRIDGE_TYPE": ["linux"],
            "VN_MAD": ["bridge"],
            "SECURITY_GROUPS": [str(group)],
        }
        template |= {"OUTER_VLAN_ID": [""], "PHYDEV": [""], "VLAN_ID": [""]}
        leases = new_range({"TYPE": "IP4", "IP": str(first), "SIZE": str(half - 2)}, 0)
        networks.save(
            Network(
                networks.next_id(),
                name,
                template,
                permissions="110100100",
                bridge="user",
                vn_mad="bridge",
                clusters=[0],
                ranges=[leases],
            )
        )


def _add_hosts(cloud: Cloud) -> None:
    """All of them are this machine."""
    hosts, settings = cloud.store.hosts, cloud.settings
    simulated = cloud.hypervisor.name == "simulated"
    cores = settings.host_cpus or (1000.0 if simulated else float(os.cpu_count() or 1))
    memory_mb = settings.host_memory_mb or (4 << 20 if simulated else _machine_memory_mb())
    while len(hosts) < settings.hosts:
        name, oid = cloud.hypervisor.name, hosts.next_id()
        host = Host(oid, f"localhost-{oid}" if oid else "localhost", im_mad=name, vm_mad=name, state=2)
        host.template = {"IM_MAD": [name], "RESERVED_CPU": [""], "RESERVED_MEM": [""], "VM_MAD": [name]}
        hosts.save(host)
    for host in hosts:
        if host.oid == 0 or host.name.startswith("localhost-"):
            host.cpu, host.memory = int(cores * 100), memory_mb * 1024
            host.template |= machine_facts(host.vm_mad, host.cpu, host.memory)
            host.samples = [host_sample(cloud, host)]
            hosts.save(host)


def _machine_memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
