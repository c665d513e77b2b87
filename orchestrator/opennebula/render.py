"""OpenNebula's template text out of `templates/*.one.j2`. No value can break out of its place.

Every `{{ expression }}` in a template comes out as one quoted string, quotes included, whatever its value is; there is
no way to write a value unquoted, and the autoescaping cannot be forgotten. The one exception is `Key`, an attribute's
name, which is checked instead.

The rules are those of OpenNebula's lexer (`src/parsers/template_parser.l`, and `unescape` in `template_syntax.y`):
within quotes `\\"` is a quote and everything else stands for itself, backslashes too. Three things have no form at all
in this syntax and are refused: a backslash at the end of a value (it would take the closing quote with it), `]]>`
(the lexer gives up on the whole text), and characters that XML cannot carry.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import jinja2

from orchestrator.domain.errors import CloudError
from orchestrator.opennebula.objects import TAG_PREFIX
from orchestrator.settings import data_root

_KEY = re.compile(r"[A-Z][A-Z0-9_]*")
_OUTSIDE_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Unrenderable(CloudError):
    """A value has no form in OpenNebula's template syntax."""


class Key(str):
    """An attribute's name: capital letters, digits, underscores; a letter first."""

    __slots__ = ()

    def __new__(cls, name: str) -> Key:
        if not _KEY.fullmatch(name):
            raise Unrenderable(f"{name!r} is no name for an attribute: capital letters, digits and underscores only")
        return super().__new__(cls, name)


def quote(value: object) -> str:
    """`value`, a text or a number, as a string of the template syntax, with its quotes.

    >>> print(quote('say "hi"'))
    "say \\"hi\\""

    Raises Unrenderable.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unrenderable(f"{value!r} is neither a text nor a number")
    text = str(value)
    if bad := _OUTSIDE_XML.search(text):
        raise Unrenderable(f"{text!r} holds the character {bad.group()!r}, which OpenNebula cannot be sent")
    if text.endswith("\\"):
        raise Unrenderable(f"{text!r} ends in a backslash, which OpenNebula's template syntax cannot say")
    if "]]>" in text:
        raise Unrenderable(f"{text!r} holds ']]>', which OpenNebula's template syntax cannot say")
    return '"' + text.replace('"', '\\"') + '"'


def _finalize(value: object) -> str:
    return (
        str(value) if isinstance(value, Key | jinja2.Undefined) else quote(value)
    )  # an Undefined raises its own error


def _pairs(attributes: Mapping[str, str]) -> list[tuple[Key, str]]:
    """Template filter: name and value of each attribute, names checked, in the order of the names."""
    return [(Key(name), attributes[name]) for name in sorted(attributes)]


def _tags(attributes: Mapping[str, str]) -> list[tuple[Key, str]]:
    """Template filter: the same, of tags, so that none of them is an attribute that means something to OpenNebula."""
    for name in attributes:
        if not name.startswith(TAG_PREFIX):
            raise Unrenderable(f"{name!r} is no tag of ours: they begin with {TAG_PREFIX}")
    return _pairs(attributes)


def _plain(attributes: Mapping[str, str]) -> Mapping[str, str]:
    """Template filter: attributes in which oned finds no `$`, which it would replace (`$NAME`, `$USER[…]`)."""
    for name, value in attributes.items():
        if "$" in value:
            raise Unrenderable(f"{name} holds '$', which OpenNebula takes for a variable in a CONTEXT")
    return attributes


class Renderer:
    """The templates of one folder. `render` raises Unrenderable for a value without a form, jinja2's errors for a
    template that is wrong itself (a misspelt variable is one)."""

    def __init__(self, folder: Path | None = None) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder or data_root() / "templates"),
            autoescape=False,  # noqa: S701  nothing here is HTML; every value goes through _finalize
            finalize=_finalize,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.filters.update(pairs=_pairs, plain=_plain, tags=_tags)

    def render(self, template: str, /, **values: object) -> str:
        """The text of `templates/<template>.one.j2` with these values."""
        return self._environment.get_template(f"{template}.one.j2").render(values)
