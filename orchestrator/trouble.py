"""What may be raised at a door, for those who go on in spite of it."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

from orchestrator.domain.errors import MayflyError

TROUBLE = (MayflyError, SQLAlchemyError, OSError)
"""All of it, beside a mistake of ours."""
