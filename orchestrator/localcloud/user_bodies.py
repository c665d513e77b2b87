"""Users and their quotas to XML."""

from __future__ import annotations

from orchestrator.localcloud.markup import cdata, element, ids, plain, template_xml
from orchestrator.localcloud.model import Group, User
from orchestrator.localcloud.quotas import quota_vectors
from orchestrator.localcloud.store import Store

_NO_QUOTAS = (
    "<DATASTORE_QUOTA></DATASTORE_QUOTA><NETWORK_QUOTA></NETWORK_QUOTA><VM_QUOTA></VM_QUOTA><IMAGE_QUOTA></IMAGE_QUOTA>"
)
DEFAULT_USER_QUOTAS = element("DEFAULT_USER_QUOTAS", _NO_QUOTAS)
DEFAULT_GROUP_QUOTAS = element("DEFAULT_GROUP_QUOTAS", _NO_QUOTAS)


def _head(store: Store, user: User) -> str:
    group = store.groups.find(user.gid)
    tokens = "".join(
        element("LOGIN_TOKEN", *(element(key, token[key]) for key in ("TOKEN", "EXPIRATION_TIME", "EGID")))
        for token in user.tokens
    )
    return (
        element("ID", user.oid)
        + element("GID", user.gid)
        + ids("GROUPS", user.groups)
        + plain("GNAME", group.name if group else "")
        + plain("NAME", user.name)
        + cdata("PASSWORD", user.password)
        + cdata("AUTH_DRIVER", "core")
        + element("ENABLED", int(user.enabled))
        + tokens
        + template_xml("TEMPLATE", user.template)
    )


def short_body(store: Store, user: User) -> str:
    return element("USER", _head(store, user))


def user_body(store: Store, user: User) -> str:
    return element("USER", _head(store, user), quotas_of(store, user), DEFAULT_USER_QUOTAS)


def quotas_body(store: Store, holder: User | Group) -> str:
    return element("QUOTAS", element("ID", holder.oid), quotas_of(store, holder))


def quotas_of(store: Store, holder: User | Group) -> str:
    parts = []
    for section in ("DATASTORE", "NETWORK", "VM", "IMAGE"):
        rows = (
            element(section, *(cdata(key, row[key]) for key in sorted(row)))
            for row in quota_vectors(store, holder, section)
        )
        parts.append(element(f"{section}_QUOTA", *rows))
    return "".join(parts)
