"""A whole run as one crate: a folder or a zip, there whole or not at all, every file of it signed."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from orchestrator.artifacts import Artifacts, DocumentName, Tree
from orchestrator.artifacts.disk import full_told
from orchestrator.domain.errors import NotFound, NotPossible, PlatformError
from orchestrator.receipts import names
from orchestrator.receipts import statement as said
from orchestrator.receipts.envelope import Refused, canonical, sealed
from orchestrator.receipts.gathering import LOGS, manifest_path
from orchestrator.receipts.issuing import receipt_bytes
from orchestrator.receipts.keys import Keys
from orchestrator.receipts.run_crate import metadata
from orchestrator.receipts.verifying import read_statement

FIELD = "crate"
_CHUNK = 1 << 20
_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a zip, so that the same crate is the same zip."""

Put = Callable[[str, BinaryIO, int], None]
"""Takes a file: its name in the crate, its content, its permission bits."""


@dataclass(frozen=True, slots=True)
class Exported:
    """files: what is in the crate. withheld: the artifacts that are not, and why."""

    files: tuple[str, ...]
    withheld: tuple[str, ...]
    why: str


@dataclass(slots=True)
class _Filled:
    """files: name → sha256 and size."""

    put: Put
    files: dict[str, tuple[str, int]] = field(default_factory=dict)

    def add(self, name: str, source: BinaryIO, *, wanted: str = "", mode: int = 0o644) -> None:
        """Raises PlatformError when the content is not what it was when it was signed."""
        read = _Hashing(source)
        self.put(name, read, mode)  # type: ignore[arg-type]  # it reads, and nothing else is asked of it
        sha256 = read.digest.hexdigest()
        if wanted and sha256 != wanted:
            raise PlatformError(f"{name!r} is not what it was when the receipt was signed: its sha256 is {sha256}")
        self.files[name] = (sha256, read.size)


class _Hashing:
    """A file that is read once, from its beginning to its end."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.digest = hashlib.sha256()
        self.size = 0

    def read(self, size: int = _CHUNK) -> bytes:
        chunk = self._source.read(size)
        self.digest.update(chunk)
        self.size += len(chunk)
        return chunk


def export_crate(artifacts: Artifacts, keys: Keys, task_id: str, target: Path, *, withheld: str = "") -> Exported:
    """Write the crate of a task whose last attempt has a receipt to `target`: a new or empty folder, or a new file
    whose name ends in .zip. `withheld`: why logs and outputs stay out; "" puts them in.

    Blocking.
    Raises NotFound when there is no receipt, NotPossible for a target that cannot be written, PlatformError when an
    artifact was changed since it was signed, HostDiskFull; in each case there is nothing new at `target`.
    """
    statements = _statements(artifacts, keys, task_id)
    with _target(target) as put:
        filled = _Filled(put)
        left_out = _fill(filled, artifacts, statements, withheld)
        text = metadata([statement for statement, _ in statements], filled.files, len(left_out))
        filled.add(names.METADATA, _memory(text))
        crate = said.CrateStatement(
            subject=[
                said.CrateFile(name=name, digest=said.Digest(sha256=sha256), annotations=said.Size(size=size))
                for name, (sha256, size) in sorted(filled.files.items())
            ],
            predicate=said.Crate(task=task_id, withheld=left_out, withheld_because=withheld if left_out else ""),
        )
        filled.add(names.CRATE, _memory(canonical(sealed(said.as_json(crate), keys.signer()))))
    return Exported(tuple(sorted(filled.files)), tuple(left_out), withheld)


def _statements(artifacts: Artifacts, keys: Keys, task_id: str) -> list[tuple[said.Statement, bytes]]:
    """Of the attempts that have a receipt, the last one first. Raises NotFound, PlatformError."""
    found: list[tuple[said.Statement, bytes]] = []
    number = 1
    while (file := receipt_bytes(artifacts, task_id, number)) is not None:
        try:
            found.insert(0, (read_statement(said.Statement, file, keys.trusted())[0], file))
        except Refused as refusal:
            raise PlatformError(f"the receipt of attempt {number} of task {task_id} is not right: {refusal}") from None
        number += 1
    if not found:
        remedy = "it is written when the task is over and its machine is gone; mayfly chore receipts writes it now"
        raise NotFound("receipt", f"task {task_id} has none yet", remedy)
    return found


def _fill(
    filled: _Filled, artifacts: Artifacts, statements: list[tuple[said.Statement, bytes]], withheld: str
) -> list[str]:
    """All but what describes the crate; the names (URIs) of what was left out."""
    last = statements[0][0]
    task_id, number = last.predicate.task.id, last.predicate.attempt.number
    for statement, file in statements:
        of = statement.predicate.attempt.number
        filled.add(names.RECEIPT if of == number else names.earlier_receipt(of), _memory(file))
    hashes = {subject.name: subject.digest.sha256 for subject in last.subject}
    tree = artifacts.outputs(task_id, number) or Tree(())
    outputs = {names.uri_of(f"outputs/{file.path}"): file for file in tree.files}
    if names.MANIFEST in hashes:
        with manifest_path(artifacts, task_id, number).open("rb") as source:
            filled.add(names.MANIFEST, source, wanted=hashes[names.MANIFEST])
    if withheld:
        return sorted([*(name for name in hashes if name.startswith("logs/")), *outputs])
    for log in LOGS:
        uri = next(name for name in hashes if name.removesuffix(".gz") == f"logs/{log}")
        with _or_empty(artifacts.log(task_id, number, log).path) as source:
            filled.add(names.file_of(uri), source, wanted=hashes[uri])
    for uri, entry in outputs.items():
        with artifacts.blobs.open(entry.sha256) as source:
            filled.add(names.file_of(uri), source, wanted=entry.sha256, mode=entry.mode | 0o600)
    findings = last.predicate.trace.findings_sha256
    if findings is not None:
        with artifacts.document(task_id, number, DocumentName.FINDINGS).open("rb") as source:
            filled.add(names.FINDINGS, source, wanted=findings)
    return []


def _or_empty(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return _memory(b"")


def _memory(data: bytes) -> BinaryIO:
    from io import BytesIO

    return BytesIO(data)


@contextmanager
def _target(target: Path) -> Iterator[Put]:
    """What is put inside the block is at `target` after it, unless it failed. Raises NotPossible."""
    staging = target.with_name(f".mayfly-{secrets.token_hex(8)}")
    if os.path.lexists(target) and not (target.is_dir() and target.suffix != ".zip" and not any(target.iterdir())):
        raise NotPossible(FIELD, f"{str(target)!r} is there already", "name a new or empty folder, or a new .zip")
    try:
        with full_told():
            if target.suffix == ".zip":
                with zipfile.ZipFile(staging, "x", zipfile.ZIP_DEFLATED) as archive:
                    yield _into_zip(archive)
                os.link(staging, target)  # never over what somebody put there meanwhile
            else:
                staging.mkdir(mode=0o777)
                yield _into_folder(staging)
                staging.rename(target)
    except OSError as error:
        problem = f"{str(target)!r} cannot be written: {error.strerror or error}"
        raise NotPossible(FIELD, problem, "name a folder or .zip where you may write") from error
    finally:
        if staging.is_dir():
            shutil.rmtree(staging)
        else:
            staging.unlink(missing_ok=True)


def _into_zip(archive: zipfile.ZipFile) -> Put:
    def put(name: str, source: BinaryIO, mode: int) -> None:
        info = zipfile.ZipInfo(name, _EARLIEST)
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = (0o100000 | mode) << 16
        with archive.open(info, "w", force_zip64=True) as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)

    return put


def _into_folder(root: Path) -> Put:
    def put(name: str, source: BinaryIO, mode: int) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)

    return put
