"""Small JSON documents beside the logs of an attempt."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchestrator.artifacts import Artifacts, DocumentName

TASK = "01m7yqqza69eqn6t"


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return Artifacts(tmp_path / "store")


def test_what_is_kept_is_read_again_and_a_later_one_replaces_it(artifacts: Artifacts) -> None:
    assert artifacts.read_json(TASK, 1, DocumentName.FINDINGS) is None
    artifacts.keep_json(TASK, 1, "findings.json", {"files": ["a"]})
    artifacts.keep_json(TASK, 1, DocumentName.FINDINGS, {"files": ["a", "\udcff\x1b"]})
    assert artifacts.read_json(TASK, 1, "findings.json") == {"files": ["a", "\udcff\x1b"]}
    assert artifacts.read_json(TASK, 2, "findings.json") is None
    assert artifacts.read_json(TASK, 1, DocumentName.RECEIPT) is None
    assert list(artifacts.blobs.scratch.iterdir()) == []


def test_equal_data_has_equal_bytes_whose_hash_is_told(artifacts: Artifacts) -> None:
    one = artifacts.keep_json(TASK, 1, DocumentName.RECEIPT, {"a": 1, "b": 2})
    two = artifacts.keep_json(TASK, 2, DocumentName.RECEIPT, {"b": 2, "a": 1})
    assert one == two
    assert hashlib.sha256(artifacts.document(TASK, 2, DocumentName.RECEIPT).read_bytes()).hexdigest() == two


def test_it_goes_with_its_task(artifacts: Artifacts) -> None:
    artifacts.keep_json(TASK, 1, DocumentName.RECEIPT, {})
    artifacts.remove(TASK)
    assert artifacts.read_json(TASK, 1, DocumentName.RECEIPT) is None


@pytest.mark.parametrize("name", ["outputs.json", "../../lock", "receipt.json/..", ""])
def test_no_other_name_is_one(artifacts: Artifacts, name: str) -> None:
    with pytest.raises(ValueError):
        artifacts.keep_json(TASK, 1, name, {})
    with pytest.raises(ValueError):
        artifacts.read_json(TASK, 1, name)
    assert not artifacts.root.exists()


def test_what_is_no_json_or_too_long_is_refused_and_what_was_there_stays(artifacts: Artifacts) -> None:
    artifacts.keep_json(TASK, 1, DocumentName.FINDINGS, {"sound": True})
    for wrong in (float("nan"), "x" * (64 * 2**20 - 1)):
        with pytest.raises(ValueError):
            artifacts.keep_json(TASK, 1, DocumentName.FINDINGS, wrong)
    assert artifacts.read_json(TASK, 1, DocumentName.FINDINGS) == {"sound": True}


def test_one_that_was_damaged_is_no_document(artifacts: Artifacts) -> None:
    artifacts.keep_json(TASK, 1, DocumentName.FINDINGS, {"sound": True})
    artifacts.document(TASK, 1, DocumentName.FINDINGS).write_text('{"sou')
    with pytest.raises(ValueError):
        artifacts.read_json(TASK, 1, DocumentName.FINDINGS)
