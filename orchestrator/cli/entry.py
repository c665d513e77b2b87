"""From a command's function to an exit status: the one place where errors become messages."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from orchestrator.cli import output
from orchestrator.domain.errors import MayflyError, PlatformError, UserError

USER_ERROR_EXIT = 2
PLATFORM_ERROR_EXIT = 1

_T = TypeVar("_T")


def perform(work: Coroutine[Any, Any, _T], *, failure_exit: int | None = None) -> _T:
    """Run `work`. An error of ours ends it: with `failure_exit`, else 2 if the user can put it right, else 1."""
    try:
        return asyncio.run(work)
    except UserError as error:
        raise output.fail(str(error), code=failure_exit or USER_ERROR_EXIT) from None
    except PlatformError as error:
        if error.evidence:
            output.note(output.printable_lines(error.evidence))
        raise output.fail(str(error), code=failure_exit or PLATFORM_ERROR_EXIT) from None
    except MayflyError as error:
        raise output.fail(str(error), code=failure_exit or PLATFORM_ERROR_EXIT) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(130) from None
