"""Two homes on one host have blocks of their own, whatever their paths come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.localcloud.address_block import block_of, hold_block


def test_a_home_keeps_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        held = hold_block(tmp_path)
        assert held is not None
        held.close()
    assert len((tmp_path / "addresses").read_text().split()) == 1


def test_a_block_that_another_cloud_holds_is_passed_over(tmp_path: Path) -> None:
    before = block_of(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "addresses").write_text(f"{before}\n")
    with hold_block(other) or pytest.fail("it is free"), hold_block(tmp_path) or pytest.fail("another is free"):
        assert block_of(tmp_path) != before == block_of(other)


def test_a_home_whose_block_another_took_meanwhile_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with hold_block(tmp_path) or pytest.fail("it is free"):
        assert hold_block(tmp_path) is None
    assert "another cloud has the addresses" in caplog.text
