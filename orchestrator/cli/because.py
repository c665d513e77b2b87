"""`--because`: why an operator stopped something, for those who ask what their task waits for."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.domain.errors import NotPossible

LONGEST = 500

Because = Annotated[str, typer.Option("--because", help="Why, for those who ask what their task waits for.")]


def require_plain(because: str) -> None:
    """Raises NotPossible for what is too long, or no plain text."""
    if len(because) > LONGEST or not because.isprintable():
        raise NotPossible("because", "is too long or not plain text", f"at most {LONGEST} characters")
