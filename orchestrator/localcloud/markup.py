"""The small pieces of OpenNebula's XML: elements, CDATA, templates."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

from orchestrator.localcloud.model import Owned
from orchestrator.localcloud.template import Template


def element(tag: str, *content: object) -> str:
    """`content` is XML already, or a number."""
    return f"<{tag}>{''.join(str(part) for part in content)}</{tag}>"


def plain(tag: str, value: str) -> str:
    """Text, escaped."""
    return f"<{tag}>{escape(value)}</{tag}>"


def cdata(tag: str, value: object) -> str:
    """Text in a CDATA section."""
    text = str(value).replace("]]>", "]]]]><![CDATA[>")
    return f"<{tag}><![CDATA[{text}]]></{tag}>"


def ids(tag: str, numbers: Iterable[int]) -> str:
    return element(tag, *(element("ID", number) for number in numbers))


def template_xml(tag: str, template: Template) -> str:
    """Keys sorted, as the original's maps are; values of a key in their order."""
    parts = []
    for key in sorted(template):
        for value in template[key]:
            if isinstance(value, dict):
                parts.append(element(key, *(cdata(name, value[name]) for name in sorted(value))))
            else:
                parts.append(cdata(key, value))
    return element(tag, *parts)


_BITS = tuple(f"{who}_{right}" for who in ("OWNER", "GROUP", "OTHER") for right in "UMA")


def permissions_xml(bits: str) -> str:
    return element("PERMISSIONS", *(element(name, bit) for name, bit in zip(_BITS, bits, strict=True)))


def owner_xml(thing: Owned) -> str:
    """ID to NAME, as all owned objects begin."""
    return (
        element("ID", thing.oid)
        + element("UID", thing.uid)
        + element("GID", thing.gid)
        + plain("UNAME", thing.uname)
        + plain("GNAME", thing.gname)
        + plain("NAME", thing.name)
    )


def lock_xml(thing: Owned) -> str:
    """Nothing while unlocked."""
    if not thing.lock:
        return ""
    return element(
        "LOCK",
        element("LOCKED", thing.lock["level"]),
        element("OWNER", thing.lock["owner"]),
        element("TIME", thing.lock["time"]),
        element("REQ_ID", thing.lock["request"]),
    )
