"""Virtual networks."""

from __future__ import annotations

from orchestrator.localcloud import bodies, edits, leases, names
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.markup import element
from orchestrator.localcloud.model import Network
from orchestrator.localcloud.pools import page, visible
from orchestrator.localcloud.refusals import internal, wrong_state
from orchestrator.localcloud.template import Template, TemplateError, parse, text_of, vectors

calls = Calls()


def parsed(text: str) -> Template:
    """The template of an allocate call. Raises Refused 8192 on bad syntax."""
    try:
        return parse(text)
    except TemplateError as error:
        raise internal(str(error)) from None


@calls.add("one.vn.allocate", "s|i")
def allocate(cloud: Cloud, caller: Caller, text: str, cluster: int = -1) -> int:
    caller.require_create("NET", f"ADMIN CLUSTER [{max(cluster, 0)}]")
    template = parsed(text)
    store = cloud.store
    clusters = [store.clusters.get(max(cluster, 0)).oid]
    name = text_of(template, "NAME")
    names.check(name)
    names.check_free(name, store.networks, owner=caller.user.oid, word="NET")
    vn_mad = text_of(template, "VN_MAD")
    if not vn_mad:
        raise internal("No VN_MAD in template for Virtual Network.")
    ranges = [leases.new_range(vector, number) for number, vector in enumerate(vectors(template, "AR"))]
    oid = store.networks.next_id()
    bridge = text_of(template, "BRIDGE") or f"onebr{oid}"
    kept = {key: values for key, values in template.items() if key not in ("NAME", "AR")}
    kept.setdefault("SECURITY_GROUPS", ["0"])
    kept.update({"BRIDGE": [bridge], "BRIDGE_TYPE": ["linux"]})
    for key in ("OUTER_VLAN_ID", "PHYDEV", "VLAN_ID"):
        kept.setdefault(key, [""])
    network = Network(
        oid,
        name,
        kept,
        uid=caller.user.oid,
        gid=caller.user.gid,
        uname=caller.user.name,
        gname=caller.gname,
        bridge=bridge,
        vn_mad=vn_mad,
        clusters=clusters,
        ranges=ranges,
    )
    store.networks.save(network)
    return network.oid


@calls.add("one.vn.info", "i|b")
def info(cloud: Cloud, caller: Caller, vnet_id: int, _decrypt: bool = False) -> str:
    network = cloud.store.networks.get(vnet_id)
    caller.require(("USE", network))
    return bodies.network_body(network)


@calls.add("one.vnpool.info", "iii")
def pool_info(cloud: Cloud, caller: Caller, flag: int, start: int, end: int) -> str:
    shown = page(visible(caller, cloud.store.networks, flag), start, end)
    return element("VNET_POOL", *(bodies.network_body(network, with_leases=False) for network in shown))


@calls.add("one.vn.update", "isi")
def update(cloud: Cloud, caller: Caller, vnet_id: int, text: str, how: int) -> int:
    network = cloud.store.networks.get(vnet_id)
    caller.require(("MANAGE", network))
    fixed: Template = {
        key: network.template[key] for key in network.template if key in ("BRIDGE", "BRIDGE_TYPE", "VN_MAD")
    }
    network.template = {**edits.updated(network.template, text, how), **fixed}
    cloud.store.networks.save(network)
    return vnet_id


@calls.add("one.vn.add_ar", "is")
def add_ar(cloud: Cloud, caller: Caller, vnet_id: int, text: str) -> int:
    network = cloud.store.networks.get(vnet_id)
    caller.require(("ADMIN", network))
    given = vectors(parsed(text), "AR")
    if not given:
        raise wrong_state("Wrong AR format or missing attributes")
    number = max((item.ar_id for item in network.ranges), default=-1) + 1
    network.ranges += [leases.new_range(vector, number + more) for more, vector in enumerate(given)]
    cloud.store.networks.save(network)
    return vnet_id


@calls.add("one.vn.rm_ar", "ii")
def rm_ar(cloud: Cloud, caller: Caller, vnet_id: int, ar_id: int) -> int:
    network = cloud.store.networks.get(vnet_id)
    caller.require(("MANAGE", network))
    item = next((item for item in network.ranges if item.ar_id == ar_id), None)
    if item is None:
        raise wrong_state(f"Address Range does not exist: {ar_id}")
    if item.leases:
        raise wrong_state("Address Range has leases in use")
    network.ranges.remove(item)
    cloud.store.networks.save(network)
    return vnet_id


def _addresses(text: str) -> list[str]:
    found = [vector["IP"] for vector in vectors(parsed(text), "LEASES") if "IP" in vector]
    if not found:
        raise wrong_state("Empty LEASES attribute.")
    return found


@calls.add("one.vn.hold", "is")
def hold(cloud: Cloud, caller: Caller, vnet_id: int, text: str) -> int:
    """Take addresses out of use. Raises Refused 2048 when one is leased or not in a range."""
    network = cloud.store.networks.get(vnet_id)
    caller.require(("MANAGE", network))
    for ip in _addresses(text):
        place = leases.find(network, ip)
        if place is None:
            raise wrong_state("Address is not part of the address ranges")
        if str(place[1]) in place[0].leases:
            raise wrong_state("Address is already being used")
        place[0].leases[str(place[1])] = leases.HELD
    cloud.store.networks.save(network)
    return vnet_id


@calls.add("one.vn.release", "is")
def release(cloud: Cloud, caller: Caller, vnet_id: int, text: str) -> int:
    network = cloud.store.networks.get(vnet_id)
    caller.require(("MANAGE", network))
    for ip in _addresses(text):
        place = leases.find(network, ip)
        if place is None or place[0].leases.get(str(place[1])) != leases.HELD:
            raise wrong_state("Address is not in hold")
        del place[0].leases[str(place[1])]
    cloud.store.networks.save(network)
    return vnet_id


@calls.add("one.vn.delete", "i")
def delete(cloud: Cloud, caller: Caller, vnet_id: int) -> int:
    network = cloud.store.networks.get(vnet_id)
    caller.require(("MANAGE", network))
    if any(item.leases for item in network.ranges):
        raise wrong_state("Cannot delete virtual network. Can not remove a virtual network with leases in use")
    cloud.store.networks.delete(vnet_id)
    return vnet_id
