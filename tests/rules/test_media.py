"""What a file is, told from how it begins."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.artifacts.media import HEAD_BYTES, media_type


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", "b")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return file.getvalue()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "application/x-empty"),
        (b"a,b\n1,2\n", "text/plain"),
        (b'{"a": 1}', "text/plain"),
        (b"<!DOCTYPE html><script>", "text/plain"),
        (b"#!/bin/sh\n", "text/plain"),
        (b"BM is how this text begins, and MZ", "text/plain"),
        ("größe".encode(), "text/plain"),
        (b"x" * (HEAD_BYTES - 1) + "é".encode(), "text/plain"),
        ("größe\n".encode("utf-16"), "text/plain;charset=utf-16"),
        ("größe\n".encode("latin-1"), "text/plain;charset=unknown-8bit"),
        (b"hello\x1b[2J\n", "application/octet-stream"),
        ("hello\x9b2J\n".encode(), "application/octet-stream"),
        (b"a\0b", "application/octet-stream"),
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", "application/octet-stream"),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01", "image/jpeg"),
        (b"GIF89a" + bytes(9), "image/gif"),
        (b"\x7fELF\x02\x01\x01" + bytes(50), "application/x-executable"),
        (gzip.compress(b"x"), "application/gzip"),
        (bz2.compress(b"x"), "application/x-bzip2"),
        (lzma.compress(b"x"), "application/x-xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(9), "application/zstd"),
        (zipped(), "application/zip"),
        (tarred(), "application/x-tar"),
        (b"PAR1\x15\x04", "application/vnd.apache.parquet"),
        (b"\x89HDF\r\n\x1a\n\0", "application/x-hdf5"),
        (b"\x93NUMPY\x01\0v\0", "application/x-npy"),
        (b"ARROW1\0\0", "application/vnd.apache.arrow.file"),
    ],
)
def test_it_is_told_by_its_content(head: bytes, kind: str) -> None:
    assert media_type(head) == kind


def test_a_database_is_one(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "d") as database:
        database.execute("CREATE TABLE t (a)")
    database.close()
    assert media_type((tmp_path / "d").read_bytes()) == "application/x-sqlite3"


BEGINNINGS = (
    b"",
    b"\0\0\0\x20ftyp",
    b"PK\x03\x04",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    b"\x1aE\xdf\xa3",
    b"RIFF",
    b"\xff\xfe",
)


@given(st.sampled_from(BEGINNINGS), st.binary(max_size=600))
def test_whatever_begins_it_is_of_some_kind(begins: bytes, rest: bytes) -> None:
    assert "/" in media_type(begins + rest)
