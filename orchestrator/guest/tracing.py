"""What became of a process's trace, as its machine says: see `scripts/tracing.py`, `Trace.close`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.guest.errors import printable

MAX_BYTES = 1 << 17
MAX_SAID = 2000
MAX_NAMES = 1000

_NUMBER = re.compile(r"[0-9]{1,18}")
_COUNT = re.compile(r"([a-z_][a-z0-9_]{0,39}):([0-9]{1,18})")
_FAST = {"fast": True, "slow": False}
_LOST = {
    "process": "the tracer ended before the process did",
    "others": "the tracer ended before all that the process had started did",
}
_USED = frozenset({"io_uring", "ptrace", "seccomp", "untraced_child"})


@dataclass(frozen=True, slots=True)
class Tracing:
    """fast_path: strace was stopped only at the system calls that it records (--seccomp-bpf); None: it was not said, or
    not asked for. detail_bytes: of the trace, plain; None: it was not said. cut: there was more; from there on, calls
    by name are counted. lost: why the end of it is missing, "" when it is not. used: what the process did that can hide
    something from a tracer. warnings: what strace itself had to say."""

    fast_path: bool | None = None
    detail_bytes: int | None = None
    cut: bool = False
    counts_after_cut: Mapping[str, int] = field(default_factory=dict)
    lost: str = ""
    used: tuple[str, ...] = ()
    warnings: str = ""

    def told(self) -> dict[str, Any]:
        """As it stands in an attempt's environment."""
        return {
            "fast_path": self.fast_path,
            "detail_bytes": self.detail_bytes,
            "cut": self.cut,
            "counts_after_cut": dict(self.counts_after_cut),
            "lost": self.lost,
            "used": list(self.used),
            "warnings": self.warnings,
        }


def read_tracing(record: bytes, *, fast_asked: bool = True) -> Tracing:
    """From the exit record. What is no number, name or known word is left out."""
    lines = record[:MAX_BYTES].decode(errors="replace").splitlines()
    said = {key: value for key, separator, value in (line.partition("=") for line in lines) if separator}
    size = said.get("trace_bytes", "")
    counts = [_COUNT.fullmatch(word) for word in said.get("trace_counts", "").split()[:MAX_NAMES]]
    lost = said.get("trace_lost", "")
    return Tracing(
        fast_path=_FAST.get(said.get("trace", "")) if fast_asked else None,
        detail_bytes=int(size) if _NUMBER.fullmatch(size) else None,
        cut="trace_cut" in said,
        counts_after_cut={found[1]: int(found[2]) for found in counts if found},
        lost=_LOST.get(lost, lost and "the machine says that some of it is missing"),
        used=tuple(sorted(_USED.intersection(said.get("trace_used", "").split()))),
        warnings=printable(said.get("trace_said", ""), MAX_SAID),
    )
