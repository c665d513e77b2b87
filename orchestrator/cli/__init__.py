"""The command line: one file a group of commands, assembled here. `app()` is what `mayfly` runs."""

from __future__ import annotations

from orchestrator.cli.app import app

__all__ = ["app"]
