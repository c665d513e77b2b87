"""SCHED_REQUIREMENTS: a boolean expression over a host's attributes, such as `NAME = "alpha" & FREE_CPU > 100`."""

from __future__ import annotations

import fnmatch
import re

_TOKEN = re.compile(r"\s*(?:(\()|(\))|(&)|(\|)|(!=|>=|<=|=|<|>|@>)|(!)|\"((?:\\.|[^\"])*)\"|([^\s()&|!=<>\"]+))")


class RequirementsError(Exception):
    """Not an expression."""


def matches(expression: str, attributes: dict[str, str]) -> bool:
    """Whether a host with these attributes meets it; an empty expression is met by all. Raises RequirementsError."""
    tokens: list[tuple[str, str]] = []
    position = 0
    text = expression.strip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if not found:
            raise RequirementsError(f"syntax error at column {position}")
        position = found.end()
        kinds = ("(", ")", "&", "|", "compare", "!", "word", "word")
        kind, value = next(
            (kind, value) for kind, value in zip(kinds, found.groups(), strict=True) if value is not None
        )
        tokens.append((kind, value))
    if not tokens:
        return True
    reader = _Reader(tokens, attributes)
    result = reader.either()
    if reader.left():
        raise RequirementsError("syntax error: unexpected text after the expression")
    return result


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]], attributes: dict[str, str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._attributes = attributes

    def left(self) -> int:
        return len(self._tokens) - self._at

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self.left() else "end"

    def _take(self, kind: str) -> str:
        if self._peek() != kind:
            raise RequirementsError(f"syntax error, unexpected {self._peek()}, expecting {kind}")
        self._at += 1
        return self._tokens[self._at - 1][1]

    def either(self) -> bool:
        result = self._both()
        while self._peek() == "|":
            self._take("|")
            result = self._both() or result
        return result

    def _both(self) -> bool:
        result = self._one()
        while self._peek() == "&":
            self._take("&")
            result = self._one() and result
        return result

    def _one(self) -> bool:
        if self._peek() == "!":
            self._take("!")
            return not self._one()
        if self._peek() == "(":
            self._take("(")
            result = self.either()
            self._take(")")
            return result
        name = self._take("word").strip('"').upper()
        how, wanted = self._take("compare"), self._take("word")
        return _compare(self._attributes.get(name.removeprefix("HOST/"), ""), how, wanted)


def _compare(actual: str, how: str, wanted: str) -> bool:
    try:
        left, right = float(actual), float(wanted)
    except ValueError:
        match how:
            case "=":
                return fnmatch.fnmatchcase(actual, wanted)
            case "!=":
                return not fnmatch.fnmatchcase(actual, wanted)
            case "@>":
                return wanted in actual.split(",")
            case _:
                return False
    match how:
        case "=" | "@>":
            return left == right
        case "!=":
            return left != right
        case ">":
            return left > right
        case "<":
            return left < right
        case ">=":
            return left >= right
        case _:
            return left <= right
