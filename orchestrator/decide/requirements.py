"""The text of a requirements.txt, read line by line: what pip would take of it, less what is not a name and a version.

A requirements file of pip's can hold options, paths, addresses and other files. A task may bring only what the index of
its pool's builders is asked for by name, so that where packages come from is the site's to say. The grammar is pip's:
https://pip.pypa.io/en/stable/reference/requirements-file-format/; of the options that a requirement can have, `--hash`
alone is let through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

LONGEST = 200_000
"""Bytes of the whole text."""
MOST = 2000
"""Requirements."""
_COMMENT = re.compile(r"(^|\s+)#.*$")
_OPTIONS = re.compile(r"\s+(?=-)")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})")
_ADDRESS = re.compile(r"://|@|^[a-z]+\+")
_FILE = re.compile(r"[/\\]|^[.~]|\.(whl|zip|tar|tgz|tbz|txz|tar\.[a-z0-9]+)\s*$")
_REMEDIES = (
    (("-e", "--editable"), "name the package as the index has it"),
    (("-r", "--requirement", "-c", "--constraint"), "put the lines of that file into this one"),
    (
        ("-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--no-index", "--trusted-host"),
        "leave it out: mayfly_layer_sources of the pool says where packages come from",
    ),
    (("--require-hashes",), "leave it out: one requirement with a hash makes it so"),
)


class WrongLine(ValueError):
    """A line that is not taken: `number` from 1, what is wrong, and what to do."""

    def __init__(self, number: int, problem: str, remedy: str) -> None:
        self.number, self.problem, self.remedy = number, problem, remedy
        super().__init__(f"line {number}: {problem} ({remedy})")


@dataclass(frozen=True, slots=True)
class Line:
    """One requirement: `plain` as it stands after its name was made canonical; `hashes` as "sha256:…", in order."""

    number: int
    plain: str
    pinned: bool
    hashes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """As pip reads it.

        >>> next(read("Foo_Bar >= 1,<2 # because")).text
        'foo-bar<2,>=1'
        """
        return " ".join((self.plain, *(f"--hash={each}" for each in self.hashes)))


def read(text: str) -> Iterator[Line]:
    """The requirements. Raises WrongLine at the first line that is not taken."""
    for count, (number, line) in enumerate(_logical(text), 1):
        if count > MOST:
            raise WrongLine(number, f"there are more than {MOST} requirements", "name what is needed, and not all")
        yield _requirement(number, line)


def normalised(text: str) -> tuple[tuple[str, ...], bool]:
    """Its lines in one order, each once, and whether every one has hashes. Raises WrongLine.

    >>> normalised("Pandas\\n\\nnumpy ==1.26  # old\\npandas")
    (('numpy==1.26', 'pandas'), False)
    """
    lines = list(read(text))
    hashed = any(line.hashes for line in lines)
    for line in lines:
        if hashed and not (line.hashes and line.pinned):
            lacks = "no --hash" if line.pinned else "no version after =="
            remedy = "pip takes hashes for all or for none: give every one ==VERSION and --hash=sha256:…"
            raise WrongLine(line.number, f"{line.plain!r} has {lacks}, and others have hashes", remedy)
    return tuple(sorted({line.text for line in lines})), hashed


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Lines as pip joins them: one that ends with a backslash goes on in the next, unless it is a comment."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.replace("\t", " ").isprintable():
            raise WrongLine(number, "it has a character that is no text", "give a requirements.txt in plain text")
        comment = _COMMENT.match(line) is not None
        parts.append(f" {line}" if comment else line.removesuffix("\\"))
        begun = begun or number
        if line.endswith("\\") and not comment:
            continue
        if whole := _COMMENT.sub("", "".join(parts)).strip():
            yield begun, whole
        begun, parts = 0, []
    if whole := _COMMENT.sub("", "".join(parts)).strip():
        yield begun, whole


def _requirement(number: int, line: str) -> Line:
    def refuse(problem: str, remedy: str) -> NoReturn:
        raise WrongLine(number, problem, remedy)

    if line.startswith("-"):
        option = re.split(r"[\s=]", line)[0]
        known = (remedy for names, remedy in _REMEDIES if option in names or line[:2] in names)
        refuse(f"{option[:60]} is an option of pip's", next(known, "leave it out"))
    said, *options = _OPTIONS.split(line)
    hashes = []
    for option in options:
        if not (found := _HASH.fullmatch(option)):
            refuse(
                f"{option[:100]!r} is not taken",
                "of pip's options only --hash=sha256:… (or sha384, sha512), all its digits in lower case",
            )
        hashes.append(found[1])
    head = said.partition(";")[0]
    if _ADDRESS.search(head):
        refuse(f"{said[:100]!r} is an address", "name the package as the index has it, as in pandas==2.2")
    if _FILE.search(head):
        refuse(f"{said[:100]!r} is a path", "packages come from the index alone; give your own code with --code")
    try:
        requirement = Requirement(said)
    except InvalidRequirement as error:
        complaint = str(error).partition("\n")[0]
        refuse(f"{said[:100]!r} is no requirement: {complaint}", "write it as in pandas>=2.2")
    requirement.name = canonicalize_name(requirement.name)
    return Line(number, str(requirement), _pinned(requirement), tuple(sorted(set(hashes))))


def _pinned(requirement: Requirement) -> bool:
    """To one version, as pip wants it of a requirement with hashes."""
    each = list(requirement.specifier)
    return len(each) == 1 and each[0].operator in ("==", "===") and not each[0].version.endswith(".*")
