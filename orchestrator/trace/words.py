"""What things are called, for somebody who does not know what a system call is."""

from __future__ import annotations

from orchestrator.trace.files import Deed
from orchestrator.trace.known import FileClass

PLACES = {
    FileClass.INPUT: "of the data",
    FileClass.CODE: "of the program",
    FileClass.DEPENDENCY: "of the packages",
    FileClass.SYSTEM: "of the machine's own system",
    FileClass.SCRATCH: "of scratch, gone with the machine",
    FileClass.OUTPUT: "of the results",
    FileClass.UNKNOWN: "whose folder is not known",
}
DONE = {
    Deed.READ: "read",
    Deed.WRITTEN: "wrote",
    Deed.CHANGED: "changed the rights or times of",
    Deed.DELETED: "deleted",
}
KINDS = {
    "any": "any address of the machine itself",
    "internet": "the internet",
    "link-local": "machines on the same wire",
    "loopback": "the machine itself",
    "metadata": "the cloud's metadata",
    "multicast": "many machines at once",
    "other": "something that is no internet address",
    "private": "a local network",
    "unknown": "an address that was not recorded",
}
SENDERS = {"process": "another process", "kernel": "the system"}
HIDES = {
    "io_uring_setup": "io_uring, by which files and networks are reached without a record",
    "ptrace": "ptrace, by which one process steers another",
    "process_vm_readv": "reading another process's memory",
    "process_vm_writev": "writing another process's memory",
    "seccomp": "a filter of its own for system calls",
    "prctl": "a filter of its own for system calls",
}


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "file"), counted(2, "file")
    ('1 file', '2 files')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def often(number: int) -> str:
    """
    >>> often(1), often(3)
    ('once', '3 times')
    """
    return "once" if number == 1 else f"{number} times"
