"""Names of files in a crate: relative URIs, so that a name of any bytes can be written, and no two alike."""

from __future__ import annotations

import os
from urllib.parse import quote_from_bytes, unquote_to_bytes

RECEIPT = "receipt.json"
CRATE = "crate.json"
METADATA = "ro-crate-metadata.json"
MANIFEST = "outputs.json"
FINDINGS = "findings.json"


def uri_of(path: str) -> str:
    """A path, '/' between names, as a relative URI. What is not UTF-8 is in it as the surrogates of PEP 383.

    >>> uri_of("outputs/50 % done")
    'outputs/50%20%25%20done'
    """
    return quote_from_bytes(os.fsencode(path), safe="/~")


def path_of(uri: str) -> str:
    """The path again. Raises ValueError for what no path of a crate is written as, or what leaves the crate.

    >>> path_of("outputs/50%20%25%20done")
    'outputs/50 % done'
    """
    path = os.fsdecode(unquote_to_bytes(uri))
    names = path.split("/")
    if uri_of(path) != uri or "\0" in path or not path or set(names) & {"", ".", ".."}:
        raise ValueError(f"{uri!r} is no name in a crate")
    return path


def file_of(uri: str) -> str:
    """The name of that file in a crate: the path itself where everybody can write it, else the URI as it stands.

    >>> file_of("outputs/my%20table.csv"), file_of("outputs/50%25"), file_of("outputs/%FF")
    ('outputs/my table.csv', 'outputs/50%25', 'outputs/%FF')
    """
    path = path_of(uri)
    return path if path.isprintable() and not set(path) & {"%", "\\"} else uri


def earlier_receipt(number: int) -> str:
    """Where the receipt of an earlier attempt is."""
    return f"attempts/{number}/{RECEIPT}"


def text_of(text: str) -> str:
    """`text` as Unicode: bytes that are not UTF-8 are escaped.

    >>> text_of("caf\\udce9")
    'caf\\\\udce9'
    """
    return text.encode("utf-8", "backslashreplace").decode()
