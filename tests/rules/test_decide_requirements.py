"""What is taken of a requirements.txt, and what is refused: the line, what is wrong with it, and what to do."""

from __future__ import annotations

import pytest

from orchestrator.decide.requirements import LONGEST, MOST, WrongLine, normalised, read

SIX = "six==1.16.0"
A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    "text, lines",
    [
        ("", ()),
        ("\n  \n# nothing\n", ()),
        ("numpy\npandas", ("numpy", "pandas")),
        ("pandas\r\nnumpy\r\n", ("numpy", "pandas")),
        ("Foo.Bar_baz", ("foo-bar-baz",)),
        ("pandas >= 2 , < 3   # the tables", ("pandas<3,>=2",)),
        ("pandas<3,>=2", ("pandas<3,>=2",)),
        ("requests[socks,security]~=2.0", ("requests[security,socks]~=2.0",)),
        ("tomli; python_version < '3.11'", ('tomli; python_version < "3.11"',)),
        ("numpy \\\n  >=1 \\\n  ,<2", ("numpy<2,>=1",)),
        ("six#no comment", None),
        ("numpy\nnumpy", ("numpy",)),
        ("numpy \\\n# a comment ends it\npandas", ("numpy", "pandas")),
    ],
)
def test_equal_requirements_read_alike(text: str, lines: tuple[str, ...] | None) -> None:
    if lines is None:
        with pytest.raises(WrongLine):
            normalised(text)
    else:
        assert normalised(text) == (lines, False)


def test_hashes_are_kept_and_make_all_need_them() -> None:
    text = f"{SIX} \\\n    --hash=sha256:{B} \\\n    --hash=sha256:{A}\n"
    assert normalised(text) == ((f"six==1.16.0 --hash=sha256:{A} --hash=sha256:{B}",), True)
    for other, told in (
        ("numpy==2", "line 4: 'numpy==2' has no --hash, and others have hashes"),
        (f"numpy>=2 --hash=sha256:{A}", "line 4: 'numpy>=2' has no version after ==, and others have hashes"),
        (f"numpy==2.* --hash=sha256:{A}", "line 4: 'numpy==2.*' has no version after =="),
    ):
        with pytest.raises(WrongLine, match="pip takes hashes for all or for none") as caught:
            normalised(text + other)
        assert told in str(caught.value)


@pytest.mark.parametrize(
    "line, told",
    [
        ("-e .", "-e is an option of pip's (name the package as the index has it)"),
        ("-e.", "-e. is an option of pip's (name the package as the index has it)"),
        ("--editable=git+https://x.org/y", "--editable is an option of pip's"),
        ("-r other.txt", "put the lines of that file into this one"),
        ("-c limits.txt", "put the lines of that file into this one"),
        ("--index-url https://x.org/simple", "mayfly_layer_sources"),
        ("--index-url=https://x.org/simple", "mayfly_layer_sources"),
        ("-i https://x.org/simple", "mayfly_layer_sources"),
        ("--extra-index-url https://x.org/simple", "mayfly_layer_sources"),
        ("-f ./wheels", "mayfly_layer_sources"),
        ("--find-links /wheels", "mayfly_layer_sources"),
        ("--trusted-host x.org", "mayfly_layer_sources"),
        ("--no-index", "mayfly_layer_sources"),
        ("--require-hashes", "one requirement with a hash makes it so"),
        ("--pre", "--pre is an option of pip's (leave it out)"),
        ("six --global-option=x", "'--global-option=x' is not taken (of pip's options only --hash"),
        ("six --hash=md5:0123", "'--hash=md5:0123' is not taken"),
        (f"six --hash=sha256:{'A' * 64}", "all its digits in lower case"),
        (f"six --hash=sha256:{'a' * 63}", "is not taken"),
        (f"six --hash sha256:{A}", "is not taken"),
        ("./local", "'./local' is a path (packages come from the index alone; give your own code with --code)"),
        ("../local", "is a path"),
        ("/srv/wheels/six-1.16.0-py2.py3-none-any.whl", "is a path"),
        ("six-1.16.0.tar.gz", "is a path"),
        ("~/six", "is a path"),
        (".", "is a path"),
        ("https://x.org/six.whl", "is an address (name the package as the index has it"),
        ("file:///etc/passwd", "is an address"),
        ("git+https://x.org/six", "is an address"),
        ("git+ssh://git@x.org/six", "is an address"),
        ("six @ https://x.org/six.whl", "is an address"),
        ("six@file:///six.whl", "is an address"),
        ("six @ git+https://x.org/six", "is an address"),
        ("six=1.0", "is no requirement"),
        ("six seven", "is no requirement"),
        ("six; python_version <", "is no requirement"),
        ("-", "- is an option of pip's"),
        ("naïve", "is no requirement"),
        ("six\0", "a character that is no text"),
        ("six\x1b[31m", "a character that is no text"),
        ("six\udcff", "a character that is no text"),
    ],
)
def test_a_line_that_is_no_name_is_refused(line: str, told: str) -> None:
    with pytest.raises(WrongLine) as caught:
        list(read(f"numpy\n\n{line}\npandas"))
    assert caught.value.number == 3
    assert told in str(caught.value)


def test_a_refused_line_is_named_where_it_begins() -> None:
    with pytest.raises(WrongLine) as caught:
        list(read(f"numpy\n{SIX} \\\n --hash=sha256:{A} \\\n --pre\n"))
    assert (caught.value.number, caught.value.problem) == (2, "'--pre' is not taken")


def test_what_is_told_of_a_long_line_is_short() -> None:
    for line in ("x y" * 60_000, "-" * 100_000, "./" + "x" * 100_000, "six --" + "x" * 100_000):
        with pytest.raises(WrongLine) as caught:
            list(read(line))
        assert len(str(caught.value)) < 500


def test_more_requirements_than_anybody_needs_are_refused() -> None:
    assert len(list(read("six\n" * MOST))) == MOST
    with pytest.raises(WrongLine) as caught:
        list(read("six\n" * (MOST + 1)))
    assert caught.value.number == MOST + 1


def test_no_text_takes_long() -> None:
    """The time-out of the test ends it otherwise."""
    for text in ("\\\n" * (LONGEST // 2), "a" * LONGEST, " " * LONGEST + "#", "a " * (LONGEST // 2), "[" * LONGEST):
        try:
            list(read(text))
        except WrongLine as wrong:
            assert len(str(wrong)) < 500
