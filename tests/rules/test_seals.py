"""Seal profiles as the files say them, and the default of the domain."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.domain.errors import UserError
from orchestrator.domain.pool import SEALED
from orchestrator.domain.seal import Network
from orchestrator.provisioning.seals import seal_from, seals


def test_a_pool_that_says_nothing_has_the_profile_of_the_file() -> None:
    assert seal_from("sealed") == SEALED


def test_the_profiles_differ_in_what_their_names_say() -> None:
    strict, opened = seal_from("sealed-strict"), seal_from("open")
    assert strict.closed and strict.network is Network.NONE and not strict.tmp_executable
    assert not opened.closed
    assert set(SEALED.denied_calls) <= set(strict.denied_calls)


@pytest.mark.parametrize("name", ["seald", "", None, 3, "../seals/open"])
def test_a_profile_that_is_not_there_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="no such seal profile"):
        seal_from(name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("version: 0", "version"),
        ("colour: red", "version"),
        ("version: 1\nnetwork: some\nothers_hidden: true\ntmp_executable: true\ndenied_calls: []", "network"),
        ("version: 1\nnetwork: none\nothers_hidden: true\ntmp_executable: true\ndenied_calls: ['a b']", "denied_calls"),
        ("version: [", "not YAML"),
        ("", "valid"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_its_key(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(UserError, match=complaint) as refused:
        seals(tmp_path)
    assert "mine.yml" in str(refused.value)
