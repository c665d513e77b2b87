"""Names that came out of a machine, as a person sees them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.display import shown_name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("results/mean age.csv", "results/mean age.csv"),
        ("größe/表.csv", "größe/表.csv"),
        ("a\nb\r\t\0", "a\\x0ab\\x0d\\x09\\x00"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m", "\\u009b31m"),
        ("\udc9b31m", "\\x9b31m"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2066a\u2069", "\\u2066a\\u2069"),
        ("a\u200bb", "a\\u200bb"),
        ("a\u3164", "a\\u3164"),
        ("a\ufe0f", "a\\ufe0f"),
        ("cafe\u0301", "cafe\\u0301"),
        ("caf\u00e9", "caf\u00e9"),
        ("\u212b", "\\u212b"),
        ("\u00c5", "\u00c5"),
        ("a\\x1b", "a\\\\x1b"),
        (" a ", "\\x20a\\x20"),
        ("  ", "\\x20\\x20"),
        ("", ""),
        ("\U000e0101", "\\U000e0101"),
        ("a\xa0b", "a\\u00a0b"),
    ],
)
def test_what_could_be_taken_for_another_name_is_shown_as_escapes(name: str, shown: str) -> None:
    assert shown_name(name) == shown


letters = st.text(
    alphabet="ae\\x0123u \x1b\n\u0301\u00e9\u0327\u212b\u00c5\u202e\u200b\udc80\udcff\u0080\uac00\u1100\u1161"
)


@given(letters, letters)
def test_names_that_differ_are_shown_differently(one: str, other: str) -> None:
    assert (shown_name(one) == shown_name(other)) == (one == other)


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_shown_is_one_line_without_controls(name: str) -> None:
    shown = shown_name(name)
    assert shown.isprintable()
    shown.encode()
