"""Which files of /task/out are wanted, by glob patterns, and what to say of a pattern that wants none.

`*` matches any part of a name, a leading dot included; `?` one character; `[abc]`, `[a-z]`, `[!a]` one of a set; `**`
any number of folders, none included. A pattern whose last name has no such sign may also name a folder, and then wants
all that is in it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

_SHOWN = 3
_COMPARED = 2000


@dataclass(frozen=True, slots=True)
class Matched:
    """paths: those that some pattern matched, in order, each once. complaints: a line for each pattern without one."""

    paths: tuple[str, ...]
    complaints: tuple[str, ...]


def match(patterns: Sequence[str], paths: Collection[str]) -> Matched:
    """Match patterns against paths of files, both relative to /task/out.

    >>> match(["*.csv", "plots/**"], ["a.csv", "plots/x/1.png", "log"]).paths
    ('a.csv', 'plots/x/1.png')
    >>> match(["resluts.csv"], ["results.csv"]).complaints
    ("output 'resluts.csv' matched nothing: did you mean 'results.csv'?",)
    """
    ordered = sorted(set(paths))
    split = {path: tuple(path.split("/")) for path in ordered}
    wanted: set[str] = set()
    complaints = []
    for pattern in patterns:
        names = parts(pattern)
        found = [path for path in ordered if _matches(names, split[path])]
        wanted.update(found)
        if not found:
            complaints.append(f"output {pattern!r} matched nothing: {_hint(pattern, ordered)}")
    return Matched(tuple(path for path in ordered if path in wanted), tuple(complaints))


def parts(pattern: str) -> tuple[str, ...]:
    """The names of a pattern, in its plainest form.

    >>> parts("./a//**/**/b")
    ('a', '**', 'b')
    """
    plain: list[str] = []
    for name in pattern.split("/"):
        if name not in ("", ".") and not (name == "**" and plain[-1:] == ["**"]):
            plain.append(name)
    return tuple(plain)


def _matches(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not pattern:
        return False
    if pattern[-1] == "**":  # at the end it wants what is below a folder: the folder's own name is not enough
        pattern = (*pattern, "*")
    # How many names of the path the pattern so far may have used up: a set, so that `**` costs no back-tracking.
    reached = {0}
    for name in pattern:
        if name == "**":
            reached = set(range(min(reached), len(path) + 1))
        else:
            reached = {n + 1 for n in reached if n < len(path) and _name_matches(name, path[n])}
        if not reached:
            return False
    return len(path) in reached or not _is_glob(pattern[-1])


def _is_glob(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def _name_matches(pattern: str, name: str) -> bool:
    return _compiled(pattern).match(name) is not None


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


def _hint(pattern: str, paths: Sequence[str]) -> str:
    if not paths:
        return "the process left no file in /task/out"
    near = _near(pattern, paths[:_COMPARED])
    if near:
        return f"did you mean {_listed(near)}?"
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"there is {_listed(paths[:_SHOWN])}{more}"


def _near(pattern: str, paths: Sequence[str]) -> list[str]:
    """Paths that somebody who wrote `pattern` may have meant: other case, another folder, a slip of the pen."""
    lower = tuple(name.lower() for name in parts(pattern))
    found = [path for path in paths if _matches(lower, tuple(path.lower().split("/")))]
    if lower:
        found += [path for path in paths if _name_matches(lower[-1], path.lower().split("/")[-1]) and lower[-1] != "**"]
    found += difflib.get_close_matches(pattern, paths, n=_SHOWN, cutoff=0.6)
    return list(dict.fromkeys(found))[:_SHOWN]


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(repr(path) for path in paths)
