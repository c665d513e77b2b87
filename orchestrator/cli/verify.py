"""`mayfly verify`: is this receipt, or this crate, what was signed? Offline, and with a public key alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.bootstrap import receipt_keys
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.domain.errors import NotFound
from orchestrator.receipts import read_public
from orchestrator.receipts.statement import Receipt
from orchestrator.receipts.verifying import Verified, in_json
from orchestrator.receipts.verifying import verify as check
from orchestrator.settings import Settings

NOT_GOOD_EXIT = 1


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="A receipt, or a crate: a folder or a .zip.")],
    key: Annotated[
        list[Path] | None,
        typer.Option("--key", metavar="PUBLIC.pem", help="Whose signature counts; default: this home's. Repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the signature, every file's hash, and that the statement does not contradict itself. Exits with 0 or 1."""

    async def work() -> Verified:
        trusted = [read_public(path) for path in key] if key else receipt_keys(Settings.from_environment()).trusted()
        if not trusted:
            raise NotFound("key", "this home has none", "give the public key of who signed, with --key PUBLIC.pem")
        return await asyncio.to_thread(check, file, trusted)

    found = perform(work())
    if as_json:
        output.as_json(in_json(found))
    elif found.good:
        _tell(found)
    else:
        for problem in found.problems:
            output.note(f"not good: {output.printable(problem)}")
    raise SystemExit(0 if found.good else NOT_GOOD_EXIT)


def _tell(found: Verified) -> None:
    for receipt in found.receipts:
        output.say(output.printable(f"good      {_said(receipt)}"))
    output.say(f"key       {found.key_id}")
    if found.kind == "crate":
        withheld = f", {len(found.withheld)} are withheld" if found.withheld else ""
        output.say(f"files     {found.files} are as they were when they were signed{withheld}")
    else:
        output.say("files     none were looked at: give the crate to have them compared")


def _said(receipt: Receipt) -> str:
    end = "no end is recorded" if receipt.end is None else f"{receipt.end.state.lower()}, {receipt.end.message}"
    gone = "no machine was made"
    if receipt.machine is not None:
        gone = f"its machine {receipt.machine.id} is {receipt.machine.state.lower()}"
    return f"attempt {receipt.attempt.number} of task {receipt.task.id}: {end}; {gone}"
