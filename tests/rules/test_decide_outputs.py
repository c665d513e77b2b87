"""Which files are wanted, and what is said of a pattern that wants none."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decide.outputs import match, parts

FILES = [".hidden", "a.csv", "b.CSV", "plots/1.png", "plots/x/2.png", "plots/x/y/3.png", "sub dir/ü\n.txt", "[odd].txt"]


@pytest.mark.parametrize(
    "pattern, wanted",
    [
        ("a.csv", ["a.csv"]),
        ("./a.csv", ["a.csv"]),
        ("*.csv", ["a.csv"]),
        ("*", [".hidden", "[odd].txt", "a.csv", "b.CSV"]),
        ("?.csv", ["a.csv"]),
        ("[ab].[cC][sS][vV]", ["a.csv", "b.CSV"]),
        ("[!b].*", ["a.csv"]),
        ("[[]odd[]].txt", ["[odd].txt"]),
        ("**", sorted(FILES)),
        ("**/*", sorted(FILES)),
        ("**/*.png", ["plots/1.png", "plots/x/2.png", "plots/x/y/3.png"]),
        ("plots/*.png", ["plots/1.png"]),
        ("plots/**/*.png", ["plots/1.png", "plots/x/2.png", "plots/x/y/3.png"]),
        ("plots/**", ["plots/1.png", "plots/x/2.png", "plots/x/y/3.png"]),
        ("plots/**/y/**", ["plots/x/y/3.png"]),
        ("plots", ["plots/1.png", "plots/x/2.png", "plots/x/y/3.png"]),
        ("plots/x/", ["plots/x/2.png", "plots/x/y/3.png"]),
        ("**/x", ["plots/x/2.png", "plots/x/y/3.png"]),
        ("plot*", []),
        ("plots/1.png/**", []),
        ("sub dir/*", ["sub dir/ü\n.txt"]),
        ("A.csv", []),
        ("", []),
    ],
)
def test_a_pattern_wants_what_it_says(pattern: str, wanted: list[str]) -> None:
    matched = match([pattern], FILES)
    assert list(matched.paths) == wanted
    assert len(matched.complaints) == (0 if wanted else 1)


def test_each_file_comes_once_and_each_pattern_complains_for_itself() -> None:
    matched = match(["*.csv", "a.*", "none", "**/none"], FILES)
    assert matched.paths == ("a.csv",)
    assert [line.split(" matched")[0] for line in matched.complaints] == ["output 'none'", "output '**/none'"]
    assert match([], FILES).paths == match([], FILES).complaints == ()


@pytest.mark.parametrize(
    "pattern, files, hint",
    [
        ("result.csv", ["results.csv", "log"], "did you mean 'results.csv'?"),
        ("*.CSV", ["a.csv"], "did you mean 'a.csv'?"),
        ("*.csv", ["out/deep/a.csv"], "did you mean 'out/deep/a.csv'?"),
        ("out/a.csv", ["a.csv"], "did you mean 'a.csv'?"),
        ("*.csv", [], "the process left no file in /task/out"),
        ("*.csv", ["x", "y"], "there is 'x', 'y'"),
        ("*.csv", ["p", "q", "x", "y", "z"], "there is 'p', 'q', 'x' and 2 more"),
        ("naïve\n.csv", ["naive\n.csv"], "did you mean 'naive\\n.csv'?"),
    ],
)
def test_a_pattern_without_a_match_names_its_near_misses(pattern: str, files: list[str], hint: str) -> None:
    [line] = match([pattern], files).complaints
    assert line == f"output {pattern!r} matched nothing: {hint}"


names = st.text(st.sampled_from("ab.é \n\udcff"), min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@given(st.lists(paths, max_size=8), st.lists(st.text(st.sampled_from("ab.*?[]!-/"), max_size=8), max_size=4))
def test_what_is_matched_is_there_and_every_pattern_matches_or_complains(files: list[str], patterns: list[str]) -> None:
    matched = match(patterns, files)
    assert set(matched.paths) <= set(files)
    assert len(set(matched.paths)) == len(matched.paths)
    assert len(matched.complaints) == sum(not match([pattern], files).paths for pattern in patterns)


@given(st.lists(paths, max_size=8))
def test_two_stars_want_everything_and_a_plain_name_wants_itself(files: list[str]) -> None:
    assert set(match(["**"], files).paths) == set(files)
    for file in files:
        assert file in match([file], files).paths


@given(paths, st.lists(st.sampled_from(["a", "*", "?", "b*", "*.a", "[ab]"]), min_size=1, max_size=4).map("/".join))
def test_without_two_stars_it_agrees_with_pathlib(path: str, pattern: str) -> None:
    names = path.split("/")[: len(pattern.split("/"))]
    begins = len(names) == len(pattern.split("/")) and PurePosixPath("/".join(names)).match(pattern)
    whole = len(path.split("/")) == len(names)
    # a folder is wanted with all that is in it, if its name is spelt out
    assert (path in match([pattern], [path]).paths) == (begins and (whole or pattern.split("/")[-1] == "a"))


@pytest.mark.timeout(20)
def test_no_pattern_makes_the_matching_explode() -> None:
    deep = "/".join(["a" * 200] * 20)
    for pattern in ("/".join(["**", "a*"] * 30) + "/b", "*a" * 60 + "b", "/".join(["*a*a*a*b"] * 20)):
        assert match([pattern], [deep] * 10).paths == ()


@pytest.mark.parametrize("pattern, names", [("a//./b/", ("a", "b")), ("**/**/x", ("**", "x")), ("./", ())])
def test_the_plainest_form(pattern: str, names: tuple[str, ...]) -> None:
    assert parts(pattern) == names
