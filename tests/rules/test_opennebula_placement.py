"""Which host a VM goes to."""

from dataclasses import replace

from orchestrator.opennebula.objects import Host
from orchestrator.opennebula.placement import choose_host

HOST = Host(
    id=0, name="a", cluster_id=0, usable=True, failed=False, cpu_free=2.0, memory_free_bytes=2**32, running_vms=0
)


def chosen(*hosts, cpus=1, memory=2**30, clusters=(0,)):
    host = choose_host(hosts, clusters, cpus=cpus, memory_bytes=memory)
    return host and host.id


def test_the_one_with_the_most_memory_left():
    assert chosen(HOST, replace(HOST, id=1, memory_free_bytes=8 * 2**30)) == 1


def test_the_first_of_equals():
    assert chosen(replace(HOST, id=1), HOST) == 0


def test_a_host_without_room_is_none():
    assert chosen(HOST, cpus=3) is None
    assert chosen(HOST, memory=5 * 2**30) is None
    assert chosen(HOST, cpus=2, memory=4 * 2**30) == 0


def test_a_host_that_is_off_is_none():
    assert chosen(replace(HOST, usable=False)) is None


def test_a_host_that_does_not_reach_the_network_is_none():
    assert chosen(HOST, clusters=(100,)) is None
    assert chosen(HOST, replace(HOST, id=1, cluster_id=100), clusters={100}) == 1


def test_no_hosts():
    assert chosen() is None
