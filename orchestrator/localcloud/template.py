"""OpenNebula's template syntax: `NAME = "value"`, `NIC = [ NETWORK_ID = "0" ]`, repeated keys, comments; or XML.

A template is a `dict` of lists, as keys repeat: `{"CPU": ["1"], "NIC": [{"NETWORK_ID": "0"}, {"NETWORK_ID": "1"}]}`.
A value
is a string or a vector (a `dict` of strings); names are upper case. Source of the rules: the lexer of OpenNebula
(src/parsers/template_parser.l) and the error texts that a 7.2.0 server returned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

Vector = dict[str, str]
Template = dict[str, list["str | Vector"]]


class TemplateError(Exception):
    """The text is not a template. The message is OpenNebula's own, which begins with `Parse error: `."""

    def __init__(self, text: str) -> None:
        super().__init__(f"Parse error: {text}")


def parse(text: str) -> Template:
    """Read a template, given in OpenNebula's own syntax or as XML. Raises TemplateError."""
    if text.lstrip().startswith("<"):
        return _parse_xml(text)
    return _Parser(text).template()


def render(template: Template) -> str:
    """Write a template in OpenNebula's own syntax; `parse` reads it back."""
    lines = []
    for key, values in template.items():
        for value in values:
            if isinstance(value, dict):
                inner = ",".join(f'{name}="{_escaped(part)}"' for name, part in value.items())
                lines.append(f"{key}=[{inner}]")
            else:
                lines.append(f'{key}="{_escaped(value)}"')
    return "\n".join(lines) + "\n" if lines else ""


def _escaped(value: str) -> str:
    return value.replace('"', '\\"')


def text_of(template: Template, key: str, default: str = "") -> str:
    """The last scalar value of a key, as OpenNebula takes it when there are several."""
    scalars = [value for value in template.get(key, []) if isinstance(value, str)]
    return scalars[-1] if scalars else default


def vectors(template: Template, key: str) -> list[Vector]:
    """The vectors of a key, in order."""
    return [value for value in template.get(key, []) if isinstance(value, dict)]


def vector_of(template: Template, key: str) -> Vector:
    """The only (or last) vector of a key, or an empty one."""
    found = vectors(template, key)
    return found[-1] if found else {}


def merge(base: Template, extra: Template) -> Template:
    """`extra` over `base`: a key of `extra` replaces all values that the key had, whole vectors included."""
    return {**base, **{key: list(values) for key, values in extra.items()}}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


_SKIP = re.compile(r"[ \t]*#[^\n]*\n|[ \t\n\r]+")
_VARIABLE = re.compile(r"[A-Za-z0-9_]+")
_EMPTY = re.compile(r"[ \t]*=[ \t]*\r?\n")
_EQUAL = re.compile(r"[ \t]*=[ \t]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_CLOSE = re.compile(r"[ \t\r\n]*\][ \t\r\n]*")
_OPEN = re.compile(r"[ \t]*\[[ \t\r\n]*")
_CDATA = re.compile(r"[^\n]*\]\]>[^\n]*")
_BARE = re.compile(r"[^=# \t\r\n,\[\]]+")
_VALUE_RULES = (("OBRACKET", _OPEN), ("CCDATA", _CDATA), ("STRING", _BARE))
_NAME_RULES = (
    ("", _SKIP),
    ("VARIABLE", _VARIABLE),
    ("EQUAL_EMPTY", _EMPTY),
    ("EQUAL", _EQUAL),
    ("COMMA", _COMMA),
    ("CBRACKET", _CLOSE),
)


def _quoted_end(text: str, start: int) -> int | None:
    """Where the string that opens at `start` ends (past its closing quote): at the first quote without a backslash
    before it, else at the last one with."""
    fallback = None
    position = start + 1
    while (position := text.find('"', position)) >= 0:
        if text[position - 1] != "\\" or position - 1 == start:
            return position + 1
        fallback = position + 1
        position += 1
    return fallback


def _tokens(text: str) -> Iterator[_Token]:
    """The longest match wins, and a character that nothing matches is skipped, as flex does both."""
    position, in_value = 0, False
    while position < len(text):
        candidates: list[_Token] = []
        if in_value:
            quoted = _quoted_end(text, position) if text[position] == '"' else None
            if quoted is not None:
                candidates.append(_Token("STRING", text[position + 1 : quoted - 1], position, quoted))
        for kind, pattern in _VALUE_RULES if in_value else _NAME_RULES:
            if found := pattern.match(text, position):
                candidates.append(_Token(kind, found.group(), position, found.end()))
        if not candidates:
            position += 1
            continue
        token = max(candidates, key=lambda candidate: candidate.end)
        position = token.end
        if token.kind:
            in_value = token.kind == "EQUAL"
            yield token


class _Parser:
    """One token of look-ahead, as the original's grammar has it; its errors name what it would have taken."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._stream = _tokens(text)
        self._token = self._next()

    def _next(self) -> _Token:
        return next(self._stream, _Token("$end", "", len(self._text), len(self._text) + 1))

    def _take(self, *kinds: str) -> _Token:
        token = self._token
        if token.kind not in kinds:
            # The original prints uninitialised memory as the line; ours is the true one. Its columns count from the
            # start.
            line = self._text.count("\n", 0, token.start) + 1
            expected = " or ".join(kinds)
            raise TemplateError(
                f"syntax error, unexpected {token.kind}, expecting {expected} at line {line}, "
                f"columns {token.start}:{token.end}"
            )
        self._token = self._next()
        return token

    def template(self) -> Template:
        result: Template = {}
        while self._token.kind != "$end":
            name = self._take("VARIABLE", "$end").text.upper()
            result.setdefault(name, []).append(self._value())
        return result

    def _value(self) -> str | Vector:
        if self._take("EQUAL", "EQUAL_EMPTY").kind == "EQUAL_EMPTY":
            return ""
        token = self._take("OBRACKET", "CCDATA", "STRING")
        match token.kind:
            case "OBRACKET":
                return self._vector()
            case "CCDATA":
                raise TemplateError("CDATA is not allowed in a template")
            case _:
                return token.text.replace('\\"', '"')

    def _vector(self) -> Vector:
        vector: Vector = {}
        token = self._take("CBRACKET", "VARIABLE")
        while token.kind == "VARIABLE":
            value = ""
            if self._take("EQUAL", "EQUAL_EMPTY").kind == "EQUAL":
                value = self._take("STRING").text.replace('\\"', '"')
            vector[token.text.upper()] = value
            if self._take("CBRACKET", "COMMA").kind == "CBRACKET":
                break
            token = self._take("VARIABLE")
        return vector


def _parse_xml(text: str) -> Template:
    """Any root; its children are the attributes, and a child with children is a vector."""
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - expat bounds the expansion of entities
    except (ElementTree.ParseError, ValueError):
        raise TemplateError("XML Template malformed.") from None
    result: Template = {}
    for child in root:
        value: str | Vector = {part.tag.upper(): part.text or "" for part in child} if len(child) else child.text or ""
        result.setdefault(child.tag.upper(), []).append(value)
    return result
