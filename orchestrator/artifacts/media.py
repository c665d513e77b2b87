"""What kind of content a file has, told from how it begins. What the machine says of it counts for nothing.

Signatures are those of the library `filetype`; those of formats for data that it does not know are here.
"""

from __future__ import annotations

import codecs
import re

import filetype

HEAD_BYTES = 8192
"""So much of a file's beginning is looked at: what `filetype` asks for, for a tar archive among others."""

EMPTY = "application/x-empty"
UNKNOWN = "application/octet-stream"
TEXT = "text/plain"

_DATA = (
    (b"PAR1", "application/vnd.apache.parquet"),  # https://parquet.apache.org/docs/file-format/
    (b"\x89HDF\r\n\x1a\n", "application/x-hdf5"),  # HDF5 File Format Specification, II.A
    (b"\x93NUMPY", "application/x-npy"),  # numpy.lib.format
    (b"ARROW1\0\0", "application/vnd.apache.arrow.file"),  # Arrow Columnar Format, IPC File Format
)
_WRITTEN = ((b"%PDF-", "application/pdf"), (b"%!PS", "application/postscript"), (b"{\\rtf", "application/rtf"))
"""Formats that begin like text."""

_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
_CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f\x7f]")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def media_type(head: bytes) -> str:
    """The media type of a file that begins with `head` (HEAD_BYTES of it, or all).

    Text is what any terminal can show: no control characters but tab, line end and form feed. So a log with colours is
    no text, and HTML, SVG and scripts are nothing but text. "charset" is there unless it is UTF-8.

    >>> media_type(b"a,b\\n1,2\\n"), media_type(b"%PDF-1.7\\n"), media_type(b"PAR1\\x15\\x04")
    ('text/plain', 'application/pdf', 'application/vnd.apache.parquet')
    """
    head = head[:HEAD_BYTES]
    if not head:
        return EMPTY
    for begins, kind in (*_WRITTEN, *_DATA):
        if head.startswith(begins):
            return kind
    return _text(head) or _known(head) or _eight_bits(head) or UNKNOWN


def _text(head: bytes) -> str:
    encoding = "utf-16" if head.startswith(_UTF_16) else "utf-8"
    text = _decoded(head, encoding)
    if text is None or _CONTROLS.search(text):
        return ""
    return TEXT if encoding == "utf-8" else f"{TEXT};charset={encoding}"


def _known(head: bytes) -> str:
    try:
        found = filetype.guess(head)
    except (ValueError, LookupError, TypeError):  # no signature of its may trip over what a machine made
        return ""
    return str(found.mime) if found else ""


def _eight_bits(head: bytes) -> str:
    """Text in one of the encodings of a byte a letter, of which nothing says which."""
    if _decoded(head, "utf-8") is not None or _CONTROL_BYTES.search(head):
        return ""
    return f"{TEXT};charset=unknown-8bit"


def _decoded(head: bytes, encoding: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)  # the last letter may be cut in the middle
    except UnicodeDecodeError:
        return None
