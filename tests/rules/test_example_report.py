"""The example report says what the code says."""

from __future__ import annotations

from tests.example_report import PAGE, page


def test_the_example_is_what_is_printed() -> None:
    assert PAGE.read_text() == page(), "python -m tests.example_report writes it anew"
