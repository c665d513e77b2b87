"""Datastores."""

from __future__ import annotations

from orchestrator.localcloud import bodies, edits, names
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.markup import element
from orchestrator.localcloud.model import PUBLIC_USE, Datastore
from orchestrator.localcloud.networks import parsed
from orchestrator.localcloud.pools import newest_first
from orchestrator.localcloud.refusals import internal, wrong_state
from orchestrator.localcloud.template import Template, text_of

calls = Calls()

_TYPES = {"IMAGE_DS": 0, "SYSTEM_DS": 1, "FILE_DS": 2}


def new_datastore(oid: int, name: str, kind: str, given: Template, cluster: int) -> Datastore:
    """`kind` is IMAGE_DS, SYSTEM_DS or FILE_DS."""
    template: Template = {
        "ALLOW_ORPHANS": ["FORMAT"],
        "PERSISTENT_SNAPSHOTS": ["YES"],
        "TM_MAD": ["qcow2"],
        **{key: values for key, values in given.items() if key != "NAME"},
        "TYPE": [kind],
    }
    if kind == "SYSTEM_DS":
        template |= {key: ["YES"] for key in ("DS_LIVE_MIGRATE", "DS_MIGRATE", "DS_MIGRATE_SNAP", "SHARED")}
    else:
        template.setdefault("DS_MAD", ["fs"])
        template |= {"CLONE_TARGET": ["SYSTEM"], "LN_TARGET": ["NONE"]}
    if kind != "FILE_DS":
        template.setdefault("DISK_TYPE", ["FILE"])
    if "SAFE_DIRS" not in template and "RESTRICTED_DIRS" not in template:
        template |= {"RESTRICTED_DIRS": ["/"], "SAFE_DIRS": ["/var/tmp"]}  # noqa: S108 - as a fresh OpenNebula has it
    return Datastore(
        oid,
        name,
        template,
        permissions=PUBLIC_USE,
        type=_TYPES[kind],
        ds_mad="-" if kind == "SYSTEM_DS" else text_of(template, "DS_MAD"),
        tm_mad=text_of(template, "TM_MAD"),
        clusters=[cluster],
    )


@calls.add("one.datastore.allocate", "s|i")
def allocate(cloud: Cloud, caller: Caller, text: str, cluster: int = -1) -> int:
    caller.require_create("DATASTORE", f"ADMIN CLUSTER [{max(cluster, 0)}]")
    template = parsed(text)
    home = cloud.store.clusters.get(max(cluster, 0))
    name = text_of(template, "NAME")
    names.check(name)
    names.check_free(name, cloud.store.datastores, owner=caller.user.oid, word="DATASTORE")
    kind = text_of(template, "TYPE", "IMAGE_DS").upper()
    if kind not in _TYPES:
        raise internal(f"Unknown datastore type: {kind}")
    if not text_of(template, "TM_MAD"):
        raise internal("No TM_MAD in template.")
    if kind != "SYSTEM_DS" and not text_of(template, "DS_MAD"):
        raise internal("No DS_MAD in template.")
    datastore = new_datastore(cloud.store.datastores.next_id(), name, kind, template, home.oid)
    cloud.datastore_directory(datastore.oid).mkdir(parents=True, exist_ok=True)
    cloud.store.datastores.save(datastore)
    return datastore.oid


def _body(cloud: Cloud, datastore: Datastore) -> str:
    """Of a system datastore BASE_PATH/ID is, as everywhere, where the VM with that id has its disks."""
    directory = (
        cloud.vms_directory if datastore.type == _TYPES["SYSTEM_DS"] else cloud.datastore_directory(datastore.oid)
    )
    return bodies.datastore_body(cloud.store, datastore, directory.absolute())


@calls.add("one.datastore.info", "i|b")
def info(cloud: Cloud, caller: Caller, datastore_id: int, _decrypt: bool = False) -> str:
    datastore = cloud.store.datastores.get(datastore_id)
    caller.require(("USE", datastore))
    return _body(cloud, datastore)


@calls.add("one.datastorepool.info", "")
def pool_info(cloud: Cloud, caller: Caller) -> str:
    shown = [item for item in newest_first(cloud.store.datastores) if caller.may("USE", item)]
    return element("DATASTORE_POOL", *(_body(cloud, item) for item in shown))


@calls.add("one.datastore.update", "isi")
def update(cloud: Cloud, caller: Caller, datastore_id: int, text: str, how: int) -> int:
    datastore = cloud.store.datastores.get(datastore_id)
    caller.require(("MANAGE", datastore))
    fixed: Template = {
        key: datastore.template[key] for key in datastore.template if key in ("TYPE", "TM_MAD", "DS_MAD")
    }
    datastore.template = {**edits.updated(datastore.template, text, how), **fixed}
    cloud.store.datastores.save(datastore)
    return datastore_id


@calls.add("one.datastore.delete", "i")
def delete(cloud: Cloud, caller: Caller, datastore_id: int) -> int:
    datastore = cloud.store.datastores.get(datastore_id)
    caller.require(("MANAGE", datastore))
    if any(image.datastore_id == datastore_id for image in cloud.store.images):
        raise wrong_state(f"Cannot delete datastore. Datastore {datastore_id} is not empty.")
    if datastore_id < 100:
        raise wrong_state(f"Cannot delete datastore. Datastore {datastore_id} is one of the cloud's own.")
    cloud.store.datastores.delete(datastore_id)
    return datastore_id
