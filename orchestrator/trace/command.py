"""The words in front of a command that is to be traced."""

from __future__ import annotations

from typing import assert_never

from orchestrator.domain.task import TraceProfile

AUDITED = (
    "%process", "%file", "socket", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg",
)  # fmt: skip
"""What AUDIT records: processes made and ended, files by name, and what is asked of the network; not what is read or
written, and not what only asks (a socket's options)."""


def traced(profile: TraceProfile, *, output: str, user: str = "task") -> tuple[str, ...]:
    """strace(1), as root, writing to the file `output`, around a command that runs as `user`.

    -D: the command, and not strace, is the process that was started: its end is systemd's to see, and children that it
    leaves behind do not keep it waiting. -I never: no signal ends strace before what it traces. --seccomp-bpf: a system
    call that is not recorded costs nothing. -u: strace keeps its rights, and the command has none of them. -A: what was
    set aside on disk for `output` stays so.

    >>> traced(TraceProfile.AUDIT, output="/t")[:4]
    ('strace', '-D', '-f', '-I')
    """
    if profile is TraceProfile.NONE:
        return ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--")
    words = ["strace", "-D", "-f", "-I", "never", "-u", user, "-A", "-o", output]
    words.append("--absolute-timestamps=format:unix,precision:us")
    match profile:
        case TraceProfile.AUDIT:
            words += ["--seccomp-bpf", "-s", "256", "-e", "trace=" + ",".join(AUDITED)]
        case TraceProfile.FULL:
            words += ["-y"]
        case _:
            assert_never(profile)
    return (*words, "-e", "signal=all", "--")
