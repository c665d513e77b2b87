"""`mayfly hash`: the hash that an input has, to approve it by and to pin it to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.artifacts.hashing import tree_id
from orchestrator.cli import output
from orchestrator.cli.entry import perform
from orchestrator.cli.submission import AsJson
from orchestrator.settings import Settings


def hash_(
    path: Annotated[Path, typer.Argument(help="A file or folder.")],
    as_json: AsJson = False,
) -> None:
    """What --pin wants of this file or folder: names, permission bits and contents. Nothing is kept."""

    async def work() -> str:
        return await asyncio.to_thread(tree_id, path, never=Settings.from_environment().artifacts)

    found = f"sha256:{perform(work())}"
    if as_json:
        output.as_json({"path": str(path), "hash": found})
    else:
        output.say(found)
