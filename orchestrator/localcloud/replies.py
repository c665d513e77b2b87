"""What goes over the wire in answer to a call: the reply of an OpenNebula, or what comes instead on a bad day."""

from __future__ import annotations

import dataclasses
import http
import xmlrpc.client
from dataclasses import dataclass
from typing import Any

from orchestrator.localcloud.refusals import CallFault

GARBLED = ("garbage", "cut", "html")


@dataclass(frozen=True, slots=True)
class Reply:
    """`body` may be shorter than the `length` that is announced: the connection then closes in the middle."""

    status: int
    content_type: str
    body: bytes
    length: int


class Escaped(str):
    """A text that is escaped already, as what is put inside a reply must be. Of a pool of a thousand VMs that takes
    longer than all the rest, and can be kept for those that did not change."""

    __slots__ = ()


class _LongInt(int):
    """Written as `<i8>`."""


def _xml(text: str) -> Reply:
    body = text.encode()
    return Reply(200, "text/xml; charset=utf-8", body, len(body))


def success(value: object) -> Reply:
    return _xml(_marshalled([True, value, 0]))


def refusal(text: str, code: int, object_id: int) -> Reply:
    return _xml(_marshalled([False, text, code, object_id, _LongInt(-1)]))


def fault(error: CallFault) -> Reply:
    return _xml(xmlrpc.client.dumps(xmlrpc.client.Fault(error.code, error.text), methodresponse=True))


def _marshalled(values: list[object]) -> str:
    marshaller = xmlrpc.client.Marshaller(allow_none=False)
    dispatch: dict[Any, Any] = dict(marshaller.dispatch)
    dispatch[_LongInt] = lambda _, value, write: write(f"<value><i8>{int(value)}</i8></value>\n")
    dispatch[Escaped] = lambda _, value, write: write(f"<value><string>{value}</string></value>\n")
    marshaller.dispatch = dispatch
    body: str = marshaller.dumps((values,))
    return f"<?xml version='1.0'?>\n<methodResponse>\n{body}</methodResponse>\n"


def text(status: int, words: str) -> Reply:
    body = f"{words}\n".encode()
    return Reply(status, "text/plain", body, len(body))


def page(status: int) -> Reply:
    """What a web server in front of a cloud says: HTML, also with status 200."""
    title = f"{status} {http.HTTPStatus(status).phrase}"
    body = f"<html>\n<head><title>{title}</title></head>\n<body><h1>{title}</h1></body>\n</html>\n".encode()
    return Reply(status, "text/html", body, len(body))


def garbled(reply: Reply, how: str) -> Reply:
    """`how` is one of GARBLED: bytes that are no XML, the first half and no more, a page of HTML with status 200."""
    match how:
        case "garbage":
            body = bytes(range(256))
            return dataclasses.replace(reply, body=body, length=len(body))
        case "cut":
            return dataclasses.replace(reply, body=reply.body[: len(reply.body) // 2])
        case "html":
            return page(200)
        case _:
            raise ValueError(f"not a way to garble a reply: {how}")
