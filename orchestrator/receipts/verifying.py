"""Checking a receipt or a crate, offline, with nothing but a public key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from securesystemslib.signer import SSlibKey

from orchestrator.artifacts import Tree
from orchestrator.domain.errors import NotPossible
from orchestrator.receipts import names
from orchestrator.receipts.consistency import complaints
from orchestrator.receipts.envelope import Refused, opened
from orchestrator.receipts.places import Place, Unreadable, opened_place
from orchestrator.receipts.statement import CrateStatement, Receipt, Statement, as_json

LARGEST_ENVELOPE = 1 << 30
"""Bytes. A receipt has at most 64 MiB; the list of a crate's files may be longer."""
_ZIP = b"PK"
_MOST_PROBLEMS = 100

_Statement = TypeVar("_Statement", Statement, CrateStatement)


@dataclass(slots=True)
class Verified:
    """kind: "receipt" or "crate". problems: why it proves nothing, a line each; none: it is good. key_id: whose
    signature it has. receipts: what was signed, the last attempt's first. files: how many were compared with their
    hashes. withheld: what is not in the crate, for nobody has released it."""

    kind: str
    problems: list[str] = field(default_factory=list)
    key_id: str = ""
    receipts: list[Receipt] = field(default_factory=list)
    files: int = 0
    withheld: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.problems

    def wrong(self, problem: str) -> None:
        """One more, of those that are told."""
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)


def verify(path: Path, keys: Sequence[SSlibKey]) -> Verified:
    """Check the receipt, or the crate (a folder or a zip), at `path`. Blocking. Raises NotPossible when there is
    nothing of the kind to be read."""
    if path.is_dir():
        return _crate(path, keys)
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) == _ZIP:
                return _crate(path, keys)
            file.seek(0)
            data = file.read(LARGEST_ENVELOPE + 1)
    except OSError as error:
        raise NotPossible("file", f"{path} cannot be read: {error.strerror}", "name a receipt or a crate") from error
    result = Verified("receipt")
    _receipt(data, keys, result, "")
    return result


def read_statement(kind: type[_Statement], file: bytes, keys: Sequence[SSlibKey]) -> tuple[_Statement, str]:
    """A signed statement of that kind, and the id of the key that signed it. Raises Refused."""
    if len(file) > LARGEST_ENVELOPE:
        raise Refused("it is too large to be a receipt")
    envelope = opened(file, keys)
    try:
        statement = kind.model_validate(envelope.statement)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise Refused(f"it does not follow the schema: {where}: {first['msg']}") from error
    if as_json(statement) != envelope.statement:
        raise Refused("it does not follow the schema: something is left out")
    return statement, envelope.key_id


def _receipt(file: bytes, keys: Sequence[SSlibKey], result: Verified, name: str) -> Statement | None:
    """Check one receipt; None: it cannot be believed. `name`: where there are several."""
    of = f"{name}: " if name else ""
    try:
        statement, key_id = read_statement(Statement, file, keys)
    except Refused as refusal:
        result.wrong(f"{of}{refusal}")
        return None
    result.key_id = result.key_id or key_id
    result.receipts.append(statement.predicate)
    for complaint in complaints(statement):
        result.wrong(f"{of}the statement contradicts itself: {complaint}")
    return statement


def _crate(path: Path, keys: Sequence[SSlibKey]) -> Verified:
    result = Verified("crate")
    with opened_place(path) as place:
        try:
            file = _whole(place, names.CRATE, LARGEST_ENVELOPE)
            crate, result.key_id = read_statement(CrateStatement, file, keys)
        except (Refused, Unreadable) as refusal:
            result.wrong(f"{names.CRATE}: {refusal}")
            return result
        result.withheld = list(crate.predicate.withheld)
        hashes = _files(place, crate, result)
        if not result.problems:
            _receipts(place, crate, hashes, keys, result)
    return result


def _files(place: Place, crate: CrateStatement, result: Verified) -> Mapping[str, str]:
    """What is there is what was signed, all of it, and nothing else."""
    listed = {each.name: each for each in crate.subject}
    there = set(place.names)
    if len(there) != len(place.names):
        result.wrong("a name is twice in the archive")
    for name in sorted(there - set(listed) - {names.CRATE}):
        result.wrong(f"{name} was not in the crate when it was signed")
    for name, each in listed.items():
        if name not in there:
            result.wrong(f"{name} is missing")
            continue
        try:
            if _sha256(place, name, each.annotations.size) != each.digest.sha256:
                result.wrong(f"{name} was changed: its sha256 is not the one that was signed")
        except Unreadable as problem:
            result.wrong(f"{name} {problem}")
        result.files += 1
    return {name: each.digest.sha256 for name, each in listed.items()}


def _receipts(
    place: Place, crate: CrateStatement, hashes: Mapping[str, str], keys: Sequence[SSlibKey], result: Verified
) -> None:
    statement = _named(place, names.RECEIPT, hashes, keys, result)
    if statement is None:
        return
    _subjects(place, statement, crate, hashes, result)
    for earlier in statement.predicate.earlier:
        name = names.earlier_receipt(earlier.number)
        if earlier.receipt_sha256 != hashes.get(name):
            result.wrong(f"{name} is not the receipt of attempt {earlier.number} that {names.RECEIPT} names")
        elif earlier.receipt_sha256 is not None:
            _named(place, name, hashes, keys, result)
    tasks = {receipt.task.id for receipt in result.receipts} | {crate.predicate.task}
    if len(tasks) != 1:
        result.wrong(f"receipts of several tasks are in one crate: {', '.join(sorted(tasks))}")


def _named(
    place: Place, name: str, hashes: Mapping[str, str], keys: Sequence[SSlibKey], result: Verified
) -> Statement | None:
    if name not in hashes:
        result.wrong(f"{name} is missing")
        return None
    return _receipt(_whole(place, name, LARGEST_ENVELOPE), keys, result, name)


def _subjects(
    place: Place, statement: Statement, crate: CrateStatement, hashes: Mapping[str, str], result: Verified
) -> None:
    """Every artifact that the receipt names is in the crate as it was, or withheld."""
    withheld = set(crate.predicate.withheld)
    wanted = {subject.name: subject.digest.sha256 for subject in statement.subject}
    outputs = statement.predicate.outputs
    if outputs is not None and not outputs.listed and names.MANIFEST in hashes:
        tree = Tree.from_json(_whole(place, names.MANIFEST, LARGEST_ENVELOPE))
        wanted |= {names.uri_of(f"outputs/{file.path}"): file.sha256 for file in tree.files}
    for uri, sha256 in wanted.items():
        try:
            found = hashes.get(names.file_of(uri))
        except ValueError as problem:
            result.wrong(str(problem))
            continue
        if found is None and uri not in withheld:
            result.wrong(f"{uri}, which the receipt names, is missing")
        elif found not in (None, sha256):
            result.wrong(f"{uri} is not what the receipt says: its sha256 is another")


def _whole(place: Place, name: str, limit: int) -> bytes:
    """Raises Unreadable, also when there is no such file."""
    if name not in place.names:
        raise Unreadable("is missing")
    return b"".join(place.read(name, limit))


def _sha256(place: Place, name: str, size: int) -> str:
    digest = hashlib.sha256()
    for chunk in place.read(name, size):
        digest.update(chunk)
    return digest.hexdigest()


def in_json(result: Verified) -> dict[str, Any]:
    """For `--json`."""
    return {
        "kind": result.kind,
        "good": result.good,
        "problems": result.problems,
        "key": result.key_id,
        "files": result.files,
        "withheld": result.withheld,
        "receipts": [receipt.model_dump(mode="json") for receipt in result.receipts],
    }
