"""What a transfer's line says."""

from __future__ import annotations

import pytest

from orchestrator.cli.bars import Rate, StageLine, bar

MIB = 1 << 20


@pytest.mark.parametrize(
    ("done", "total", "drawn"),
    [(0, 1, "────"), (1, 4, "━───"), (3, 4, "━━━─"), (999, 1000, "━━━─"), (5, 5, "━━━━"), (9, 5, "━━━━")],
)
def test_a_bar_is_as_long_as_what_is_done(done: int, total: int, drawn: str) -> None:
    assert bar(done, total, 4) == drawn


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate("in", 100.0)
    rate.add(0, 100.0)
    assert rate.now is None
    assert rate.text(0, 100 * MIB) == "0 B of 100.0 MiB (0 %)"
    for second in range(1, 11):
        rate.add(second * MIB, 100.0 + second)
    assert rate.now == MIB
    for second in range(1, 6):
        rate.add(10 * MIB + second * 4 * MIB, 110.0 + second)
    assert rate.now == 4 * MIB
    assert rate.text(30 * MIB, 100 * MIB) == "30.0 MiB of 100.0 MiB (30 %), 4.0 MiB/s, 18 s left"
    assert rate.whole(30 * MIB) == "30.0 MiB, 2.0 MiB/s"


def test_nothing_is_said_of_what_stands_still_but_that_it_does() -> None:
    rate = Rate("out", 0.0)
    rate.add(MIB, 1.0)
    rate.add(MIB, 9.0)
    rate.add(MIB, 19.0)
    assert rate.text(MIB, 2 * MIB) == "1.0 MiB of 2.0 MiB (50 %)"


def test_a_piped_transfer_is_one_line_when_it_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    line = StageLine()
    for done in (1, 2, 3):
        line.transfer("in", done * MIB, 3 * MIB)
    line.transfer("out", 0, 0)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "copied in: 3.0 MiB" in told[0]
    StageLine(quiet=True).transfer("in", 1, 1)
    assert capsys.readouterr().err == ""
