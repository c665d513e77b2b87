"""`python -m orchestrator` and the `mayfly` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from orchestrator.cli import app

    app()


if __name__ == "__main__":
    main()
