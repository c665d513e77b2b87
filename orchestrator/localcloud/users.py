"""Users, groups, sessions: who may log in, with what."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from orchestrator.localcloud import names, user_bodies
from orchestrator.localcloud.calls import USERS_GROUP, Caller, Calls
from orchestrator.localcloud.cloud import Cloud
from orchestrator.localcloud.edits import updated
from orchestrator.localcloud.markup import element
from orchestrator.localcloud.model import User
from orchestrator.localcloud.pools import newest_first
from orchestrator.localcloud.quotas import set_quotas
from orchestrator.localcloud.refusals import Code, Refused, internal
from orchestrator.localcloud.store import Store

calls = Calls()


def hashed(password: str) -> str:
    """As OpenNebula keeps passwords of its `core` driver: SHA-256 in hex (long random passwords are expected)."""
    return hashlib.sha256(password.encode()).hexdigest()


def authenticate(store: Store, session: str, request_id: int) -> Caller:
    """`user:password` or `user:token`. Raises Refused 256, with one text for everything that may be wrong."""
    name, colon, secret = session.partition(":")
    user = next((user for user in store.users if user.name == name), None) if colon else None
    if user is None or not user.enabled or not secret or not _secret_fits(user, secret):
        raise Refused(Code.AUTHENTICATION, "User couldn't be authenticated, aborting call.")
    group = store.groups.find(user.gid)
    return Caller(user, group.name if group else "", request_id)


def _secret_fits(user: User, secret: str) -> bool:
    if hmac.compare_digest(hashed(secret), user.password):
        return True
    return any(hmac.compare_digest(token["TOKEN"].encode(), secret.encode()) for token in user.tokens if _alive(token))


def _alive(token: dict[str, str]) -> bool:
    expiry = int(token["EXPIRATION_TIME"])
    return expiry == -1 or expiry > time.time()


def _target(cloud: Cloud, caller: Caller, user_id: int) -> User:
    """-1 is the caller."""
    return caller.user if user_id == -1 else cloud.store.users.get(user_id)


@calls.add("one.user.allocate", "ss|sl")
def allocate(
    cloud: Cloud, caller: Caller, name: str, password: str, driver: str = "", groups: list[int] | None = None
) -> int:
    caller.require_create("USER")
    names.check(name)
    if not password:
        raise internal("Invalid password, it cannot be empty")
    names.check_free(name, cloud.store.users, owner=None, word="USER")
    memberships = [int(group) for group in groups or [USERS_GROUP]]
    for group in memberships:
        cloud.store.groups.get(group)
    user = User(cloud.store.users.next_id(), name, gid=memberships[0], groups=memberships, password=hashed(password))
    user.template = {"TOKEN_PASSWORD": [secrets.token_hex(32)]}
    cloud.store.users.save(user)
    return user.oid


@calls.add("one.user.info", "i|b")
def info(cloud: Cloud, caller: Caller, user_id: int, _decrypt: bool = False) -> str:
    user = _target(cloud, caller, user_id)
    caller.require(("USE", user))
    return user_bodies.user_body(cloud.store, user)


@calls.add("one.user.update", "isi")
def update(cloud: Cloud, caller: Caller, user_id: int, text: str, how: int) -> int:
    user = _target(cloud, caller, user_id)
    caller.require(("MANAGE", user))
    kept = user.template.get("TOKEN_PASSWORD", [])
    user.template = updated(user.template, text, how)
    user.template.setdefault("TOKEN_PASSWORD", kept)
    cloud.store.users.save(user)
    return user.oid


@calls.add("one.user.passwd", "is")
def passwd(cloud: Cloud, caller: Caller, user_id: int, password: str) -> int:
    user = _target(cloud, caller, user_id)
    caller.require(("MANAGE", user))
    if not password:
        raise internal("Invalid password, it cannot be empty")
    user.password = hashed(password)
    user.tokens.clear()
    cloud.store.users.save(user)
    return user.oid


@calls.add("one.user.login", "ssi|i")
def login(cloud: Cloud, caller: Caller, name: str, token: str, valid: int, group: int = -1) -> str:
    """A token for `valid` seconds (-1: for good); 0 takes `token` away, or all of them when it is empty."""
    user = next((user for user in cloud.store.users if user.name == name), None)
    if user is None:
        raise Refused(Code.NO_EXISTS, f"Error getting user [{name}].")
    caller.require(("MANAGE", user))
    if valid == 0:
        if token and not any(item["TOKEN"] == token for item in user.tokens):
            raise internal("Could not find token: " + token)
        user.tokens = [item for item in user.tokens if token and item["TOKEN"] != token]
        cloud.store.users.save(user)
        return token
    made = token or secrets.token_hex(32)
    expiry = -1 if valid < 0 else int(time.time()) + valid
    user.tokens = [item for item in user.tokens if _alive(item) and item["TOKEN"] != made]
    user.tokens.append({"TOKEN": made, "EXPIRATION_TIME": str(expiry), "EGID": str(group)})
    cloud.store.users.save(user)
    return made


@calls.add("one.user.delete", "i")
def delete(cloud: Cloud, caller: Caller, user_id: int) -> int:
    """Works although the user still owns things."""
    user = cloud.store.users.get(user_id)
    caller.require(("ADMIN", user))
    if not caller.is_admin:
        caller.demand(f"ADMIN USER [{user_id}]")
    if user_id == 0:
        raise Refused(Code.ACTION, "Cannot delete user. oneadmin cannot be deleted.")
    cloud.store.users.delete(user_id)
    return user_id


@calls.add("one.user.quota", "is")
def quota(cloud: Cloud, caller: Caller, user_id: int, text: str) -> int:
    user = cloud.store.users.get(user_id)
    if not caller.is_admin:
        caller.demand(f"ADMIN USER [{user_id}]")
    set_quotas(user, text)
    cloud.store.users.save(user)
    return user.oid


@calls.add("one.userpool.info", "")
def pool_info(cloud: Cloud, caller: Caller) -> str:
    """Each user, then that user's quotas beside it, as the original has it."""
    shown = [user for user in newest_first(cloud.store.users) if caller.may("USE", user)]
    parts = (user_bodies.short_body(cloud.store, user) + user_bodies.quotas_body(cloud.store, user) for user in shown)
    return element("USER_POOL", *parts, user_bodies.DEFAULT_USER_QUOTAS)
