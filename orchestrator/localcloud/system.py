"""The cloud itself: version, configuration, access rules; and the private door of fault injection."""

from __future__ import annotations

import json

from orchestrator.localcloud import troubles
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.markup import cdata, element
from orchestrator.localcloud.refusals import Code, Refused
from orchestrator.localcloud.restricted import restricted_names

calls = Calls()

VERSION = "7.2.0"
"""The OpenNebula that this cloud behaves like."""

_CONFIGURATION = {
    "API_LIST_ORDER": "DESC",
    "DEFAULT_DEVICE_PREFIX": "sd",
    "DEFAULT_IMAGE_TYPE": "OS",
    "DEFAULT_UMASK": "177",
    "ENABLE_OTHER_PERMISSIONS": "YES",
    "LISTEN_ADDRESS": "127.0.0.1",
    "MAC_PREFIX": "02:00",
    "NETWORK_SIZE": "254",
    "VM_SUBMIT_ON_HOLD": "NO",
}


@calls.add("one.system.version", "")
def version(_cloud: Cloud, _caller: Caller) -> str:
    return VERSION


@calls.add("one.system.config", "")
def config(cloud: Cloud, caller: Caller) -> str:
    """The part of the configuration that this cloud has. Raises Refused 512 for ordinary users."""
    if not caller.is_admin:
        raise Refused(Code.AUTHORIZATION, "The oned configuration can only be retrieved by users in the oneadmin group")
    parts = {key: cdata(key, value) for key, value in _CONFIGURATION.items()}
    parts["DB"] = element("DB", cdata("BACKEND", "sqlite"))
    parts["SCHED_MAX_WND_LENGTH"] = cdata("SCHED_MAX_WND_LENGTH", cloud.settings.scheduler_window_length)
    parts["SCHED_MAX_WND_TIME"] = cdata("SCHED_MAX_WND_TIME", int(cloud.settings.scheduler_window))
    parts["VM_MAD"] = element("VM_MAD", cdata("NAME", cloud.hypervisor.name), cdata("TYPE", cloud.hypervisor.name))
    parts["VM_RESTRICTED_ATTR"] = "".join(cdata("VM_RESTRICTED_ATTR", name) for name in restricted_names())
    return element("OPENNEBULA_CONFIGURATION", *(parts[key] for key in sorted(parts)))


_CREATE = "@1 VM+IMAGE+TEMPLATE+DOCUMENT+SECGROUP+VMGROUP+BACKUPJOB/* CREATE *"
_RULES = (
    (0, "200000001", "121429400000000", 8, "400000000", _CREATE),
    (3, "200000001", "2400000000", 2, "100000000", "@1 HOST/* MANAGE #0"),
    (4, "200000001", "4400000000", 1, "100000000", "@1 NET/* USE #0"),
    (5, "200000001", "100400000000", 1, "100000000", "@1 DATASTORE/* USE #0"),
    (1, "400000000", "800400000000", 1, "400000000", "* ZONE/* USE *"),
    (2, "400000000", "18000400000000", 1, "400000000", "* MARKETPLACE+MARKETPLACEAPP/* USE *"),
)


@calls.add("one.acl.info", "")
def acl_info(_cloud: Cloud, _caller: Caller) -> str:
    """The rules of a fresh OpenNebula; there is no call to change them here."""
    rules = (
        element(
            "ACL",
            element("ID", number),
            element("USER", user),
            element("RESOURCE", resource),
            element("RIGHTS", rights),
            element("ZONE", zone),
            element("STRING", text),
        )
        for number, user, resource, rights, zone, text in _RULES
    )
    return element("ACL_POOL", *rules)


@calls.add("mayfly.calls", "")
def count(cloud: Cloud, _caller: Caller) -> str:
    """No call of OpenNebula: how often each call came since this cloud's process started, as JSON."""
    return json.dumps(cloud.calls)


@calls.add("mayfly.fault", "s")
def fault(cloud: Cloud, caller: Caller, order: str) -> int:
    """No call of OpenNebula: one fault, as JSON (see `troubles`). oneadmin only."""
    if caller.user.oid != 0:
        caller.deny("Not authorized to inject faults.")
    try:
        troubles.inject(cloud, json.loads(order))
    except ValueError as error:
        raise Refused(Code.API, str(error)) from None
    return 0
