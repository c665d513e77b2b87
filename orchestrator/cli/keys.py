"""`mayfly keys`: what this installation signs its receipts with."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

import typer

from orchestrator.bootstrap import make_home, receipt_keys
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.domain.errors import NotFound, NotPossible
from orchestrator.receipts import KeyRow, Keys, public_pem, read_public
from orchestrator.settings import Settings

LEAST_OF_AN_ID = 4

app = typer.Typer(no_args_is_help=True, help="The keys that receipts are signed with.")


@app.command()
def init(as_json: AsJson = False) -> None:
    """Make the signing key, unless there is one. Signing does so by itself."""

    async def work() -> KeyRow:
        keys = _keys(make=True)
        keys.signer()
        return _signing(keys)

    _tell(perform(work()), as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The key that signs, and those that did: receipts of all of them can be verified."""

    async def work() -> tuple[KeyRow, ...]:
        return _keys().list()

    rows = perform(work())
    if as_json:
        output.as_json([_in_json(row) for row in rows])
        return
    output.table(
        ("key", "signs", "since", "file"),
        ((row.id, "yes" if row.signs else "no", row.since, row.path) for row in rows),
        empty="no key yet: one is made when the first receipt is signed, or by mayfly keys init",
    )


@app.command()
def show(
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="Its id, or the beginning; the one that signs.")] = "",
) -> None:
    """A public key as a PEM file, for those who verify."""

    async def work() -> str:
        keys = _keys()
        row = _found(keys, key) if key else _signing(keys)
        return public_pem(read_public(row.path))

    sys.stdout.write(perform(work()))


@app.command()
def rotate(as_json: AsJson = False) -> None:
    """Sign with a new key from now on. What was signed before can still be verified."""

    async def work() -> KeyRow:
        keys = _keys(make=True)
        keys.rotate()
        return _signing(keys)

    _tell(perform(work()), as_json)


def _keys(*, make: bool = False) -> Keys:
    settings = Settings.from_environment()
    if make:
        make_home(settings)
    return receipt_keys(settings)


def _signing(keys: Keys) -> KeyRow:
    for row in keys.list():
        if row.signs:
            return row
    raise NotFound("key", "there is no key yet", "mayfly keys init makes one")


def _found(keys: Keys, key: str) -> KeyRow:
    found = [row for row in keys.list() if row.id.startswith(key)]
    if len(key) < LEAST_OF_AN_ID or len(found) != 1:
        problem = "is named by several" if len(found) > 1 else "is no key of this installation"
        raise (NotPossible if len(found) > 1 else NotFound)("key", f"{key!r} {problem}", "see mayfly keys list")
    return found[0]


def _in_json(row: KeyRow) -> dict[str, object]:
    return {**dataclasses.asdict(row), "path": str(row.path)}


def _tell(row: KeyRow, as_json: bool) -> None:
    if as_json:
        output.as_json(_in_json(row))
    else:
        output.say(f"{row.id} signs; its public key is {row.path}")
