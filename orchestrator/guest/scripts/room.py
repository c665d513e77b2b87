"""Bounds what the process may write: quotas of ext4, which the disk must have been made with.

A project's quota bounds each of OUT and SCRATCH: what is made in these folders belongs to their project, and statvfs
tells of a project as of a file system. The owner of a file may give it to another project, though, so that a quota of
the user bounds both together: a file's owner it cannot change.
"""
# ruff: noqa: S108, PTH116

from __future__ import annotations

import fcntl
import os
import struct

OUT, SCRATCH = ("/task/out",), ("/task/tmp", "/tmp", "/var/tmp")
OUT_PROJECT, SCRATCH_PROJECT = 1001, 1002

# linux/fs.h: struct fsxattr, FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR, FS_XFLAG_PROJINHERIT
ATTRIBUTES, GET_ATTRIBUTES, SET_ATTRIBUTES, INHERITED = "=5I8s", 0x801C581F, 0x401C5820, 0x200
# linux/quota.h: quotactl_fd, Q_SETQUOTA for users and projects, struct if_dqblk, QIF_BLIMITS; in blocks of 1 KiB
QUOTACTL_FD, SET_QUOTA, USERS, PROJECTS, LIMITS, BLOCKS, BLOCK = 443, 0x800008, 0, 2, "=8QII", 1, 1024


def bound(out: int, scratch: int) -> str:
    """Bytes of OUT and of SCRATCH, 0 for no limit of their own. Why not, when that cannot be had; else nothing."""
    try:
        for project, folders, limit in ((OUT_PROJECT, OUT, out), (SCRATCH_PROJECT, SCRATCH, scratch)):
            for folder in folders:
                belong(folder, project)
            set_quota(folders[0], PROJECTS, project, limit)
        set_quota(OUT[0], USERS, os.stat(OUT[0]).st_uid, out + scratch if out and scratch else 0)
    except (OSError, ImportError, AttributeError) as error:
        return str(error)
    return ""


def belong(folder: str, project: int) -> None:
    """What is made in it from now on belongs to the project, and so does itself."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        has = fcntl.ioctl(file, GET_ATTRIBUTES, bytes(struct.calcsize(ATTRIBUTES)))
        flags, extent, extents, _, cow, pad = struct.unpack(ATTRIBUTES, has)
        fcntl.ioctl(
            file, SET_ATTRIBUTES, struct.pack(ATTRIBUTES, flags | INHERITED, extent, extents, project, cow, pad)
        )
    finally:
        os.close(file)


def set_quota(folder: str, kind: int, number: int, limit: int) -> None:
    blocks = -(-limit // BLOCK)
    limits = struct.pack(LIMITS, blocks, blocks, 0, 0, 0, 0, 0, 0, BLOCKS, 0)
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        call(QUOTACTL_FD, file, SET_QUOTA << 8 | kind, number, limits)
    finally:
        os.close(file)


def call(number: int, *words: int | bytes) -> None:
    """A system call that Python has no name for."""
    import ctypes  # late: it takes long to load in an emulated machine

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *(ctypes.c_long(word) if isinstance(word, int) else word for word in words)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
