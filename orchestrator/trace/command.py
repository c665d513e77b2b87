"""The words in front of a command that is to be traced."""

from __future__ import annotations

from typing import assert_never

from orchestrator.domain.task import TraceProfile

STARTED = ("execve", "execveat", "clone", "clone3", "fork", "vfork", "kill", "tkill", "tgkill")
OPENED = ("open", "openat", "openat2", "creat", "open_by_handle_at", "memfd_create")
CHANGED = (
    "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "mkdir",
    "mkdirat", "rmdir", "mknod", "mknodat", "truncate", "chmod", "fchmodat", "chown", "lchown", "fchownat", "utime",
    "utimes", "utimensat", "futimesat", "setxattr", "lsetxattr", "removexattr", "lremovexattr",
)  # fmt: skip
MOVED = ("chdir", "fchdir", "chroot")
"""What a relative name is relative to."""

REACHED = ("socket", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg")
FORBIDDEN = (
    "mount", "umount2", "pivot_root", "unshare", "setns", "bpf", "init_module", "finit_module", "keyctl",
)  # fmt: skip
HIDING = ("ptrace", "process_vm_readv", "process_vm_writev", "seccomp", "prctl", "io_uring_setup")
"""With these a process can do what its tracer does not see, or see to it."""

AUDITED = (*STARTED, *OPENED, *CHANGED, *MOVED, *REACHED, *FORBIDDEN, *HIDING)
"""What AUDIT records: programs and processes, files opened and changed by name, and what is asked of the network; not
what is read or written, and not what only asks (whether a file is there, a socket's options): a Python that starts asks
that four times for each file that it opens. The end of a process is recorded without any call."""


def traced(profile: TraceProfile, *, output: str, user: str = "task") -> tuple[str, ...]:
    """strace(1), as root, writing to `output`, around a command that runs as `user`; for NONE, only what makes it run
    as that user.

    -D: the command, and not strace, is the process that was started: its end is systemd's to see, and children that it
    leaves behind do not keep it waiting. -I never: no signal ends strace before what it traces. --seccomp-bpf: a system
    call that is not recorded costs nothing. -u: strace keeps its rights, and the command has none of them. -y: the
    path behind each descriptor, so that relative names and links are told as what they are. -s: of each word of a
    command line. "?": a call that this kind of processor does not have is none to record.

    >>> traced(TraceProfile.AUDIT, output="/t")[:4]
    ('strace', '-D', '-f', '-I')
    """
    if profile is TraceProfile.NONE:
        return ("setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--")
    words = ["strace", "-D", "-f", "-I", "never", "-u", user, "-o", output, "-y", "-s", "256"]
    words += ["--absolute-timestamps=format:unix,precision:us", "-e", "signal=all"]
    match profile:
        case TraceProfile.AUDIT:
            words += ["--seccomp-bpf", "-e", "trace=" + ",".join(f"?{call}" for call in AUDITED)]
        case TraceProfile.FULL:
            pass
        case _:
            assert_never(profile)
    return (*words, "--")
