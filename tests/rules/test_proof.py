"""The proof that a VM is gone: in words, as its row keeps it, and as rows kept it before it had a structure."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from orchestrator.domain.proof import CloseProof, Disks

ENDED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SAYS = "OpenNebula says DONE of VM 7"
SEEN = Disks("/ds/7", before=("disk.0",))
LEFT = Disks("/ds/7", before=("disk.0", "disk.1"), left=("disk.1",))
UNSEEN = Disks("/ds/7", why_not="this machine sees no such folder")
EMPTY = Disks("/ds/7")


@pytest.mark.parametrize(
    ("proof", "text", "gone"),
    [
        (CloseProof(SAYS, 7, "DONE", ENDED, SEEN), f"{SAYS} since 2026-01-02T03:04:05Z; gone from /ds/7: disk.0", True),
        (CloseProof(SAYS, 7, "DONE", None, LEFT), f"{SAYS}; STILL THERE in /ds/7: disk.1", False),
        (
            CloseProof(SAYS, 7, "DONE", ENDED, UNSEEN),
            f"{SAYS} since 2026-01-02T03:04:05Z; its disks could not be looked for: this machine sees no such folder",
            False,
        ),
        (
            CloseProof("OpenNebula knows no VM 7", 7, disks=EMPTY),
            "OpenNebula knows no VM 7; no disk of it is left in /ds/7",
            True,
        ),
        (CloseProof("never made"), "never made", None),
    ],
)
def test_in_words_and_as_a_row_keeps_it(proof: CloseProof, text: str, gone: bool | None) -> None:
    assert proof.text == text
    assert CloseProof.decode(proof.encode()) == proof
    assert json.loads(proof.encode()) == proof.document
    disks = proof.document["disks"]
    assert (None if disks is None else disks["gone"]) is gone


def test_nobody_looked_is_not_gone() -> None:
    assert not Disks().gone and not Disks(why_not="").gone


@pytest.mark.parametrize(
    "kept",
    [
        SAYS,
        "",
        "{",
        "{}",
        "[1]",
        "7",
        '{"says":"x"}',
        '{"says":"x","vm":"seven","state":"","ended_at":null,"disks":null}',
    ],
)
def test_an_older_row_holds_words(kept: str) -> None:
    assert CloseProof.decode(kept) == CloseProof(kept)
    assert CloseProof.decode(kept).text == kept
