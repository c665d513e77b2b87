"""What of a task's results may be seen, and who may release them."""

from __future__ import annotations

from typing import assert_never

from orchestrator.domain.pool import Disclosure

_STRICTNESS = (Disclosure.OPEN, Disclosure.REVIEW, Disclosure.FOUR_EYES)


def in_force(recorded: Disclosure | None, pool: Disclosure | None) -> Disclosure:
    """The stricter of what held when the task ran (None: not recorded) and what its pool says now (None: there is no
    such pool any more). REVIEW when neither is known: what nobody has opened is closed.

    >>> in_force(Disclosure.OPEN, Disclosure.FOUR_EYES).value
    'four-eyes'
    """
    known = [each for each in (recorded, pool) if each is not None]
    return max(known, key=_STRICTNESS.index) if known else Disclosure.REVIEW


def withheld(disclosure: Disclosure, decision: str | None) -> str:
    """Why results are not to be seen; "" when they are. decision: "released", "rejected", or None: nobody has decided.
    What was rejected stays withheld in every pool."""
    match decision:
        case "released":
            return ""
        case "rejected":
            return "they were rejected"
        case None:
            return "" if disclosure is Disclosure.OPEN else "nobody has released them"
        case _:
            raise ValueError(f"not a decision: {decision!r}")


def why_not_by(disclosure: Disclosure, *, submitted_by: str, by: str) -> str:
    """Why `by` may neither decide of the results of a task of `submitted_by`, nor look at them before; "" when he may.
    Where four eyes are asked for, the submitter's are two of them; so are those of nobody knows whom."""
    match disclosure:
        case Disclosure.OPEN | Disclosure.REVIEW:
            return ""
        case Disclosure.FOUR_EYES if not submitted_by:
            return "nobody knows who submitted it, and somebody else must decide of its results"
        case Disclosure.FOUR_EYES if by == submitted_by:
            return f"{by} submitted it, and somebody else must decide of its results"
        case Disclosure.FOUR_EYES:
            return ""
        case _:
            assert_never(disclosure)
