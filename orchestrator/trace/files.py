"""Calls that name files: which of their arguments are the names, and what was done to the file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.trace.arguments import split, text, unescape
from orchestrator.trace.parse import Call

DENIED = frozenset({"EACCES", "EPERM", "EROFS"})
"""How a refusal is told: by permissions, by the seal, because it is read-only."""


class Deed(StrEnum):
    """What was done to a file by its name. READ, WRITTEN: opened for that; made or cut counts as written. CHANGED:
    whose it is, who may do what with it, its times."""

    READ = "read"
    WRITTEN = "written"
    CHANGED = "changed"
    DELETED = "deleted"


_OPENS = {"open": 0, "creat": 0, "openat": 1, "openat2": 1}
_MAKES = {
    "mkdir": 0, "mkdirat": 1, "mknod": 0, "mknodat": 1, "truncate": 0, "truncate64": 0,
    "link": 1, "linkat": 3, "symlink": 1, "symlinkat": 2,
}  # fmt: skip
_CHANGES = {
    "chmod": 0, "fchmodat": 1, "fchmodat2": 1, "chown": 0, "lchown": 0, "fchownat": 1, "utime": 0, "utimes": 0,
    "futimesat": 1, "utimensat": 1, "setxattr": 0, "lsetxattr": 0, "removexattr": 0, "lremovexattr": 0,
}  # fmt: skip
_DELETES = {"unlink": 0, "rmdir": 0, "unlinkat": 1}
_RENAMES = {"rename": (0, 1), "renameat": (1, 3), "renameat2": (1, 3)}
EXECUTES = {"execve": 0, "execveat": 1}
_ASKS = {
    "access": 0, "faccessat": 1, "faccessat2": 1, "stat": 0, "lstat": 0, "stat64": 0, "lstat64": 0, "newfstatat": 1,
    "fstatat64": 1, "statx": 1, "readlink": 0, "readlinkat": 1, "statfs": 0, "chdir": 0, "chroot": 0, "acct": 0,
    "swapon": 0, "swapoff": 0, "mount": 1, "umount": 0, "umount2": 0, "pivot_root": 0, "getxattr": 0, "lgetxattr": 0,
    "listxattr": 0, "llistxattr": 0, "inotify_add_watch": 1, "fanotify_mark": 4, "name_to_handle_at": 1, "open_tree": 1,
    "move_mount": 1, "mount_setattr": 1, "uselib": 0,
}  # fmt: skip
FOLDERS = frozenset({"chdir", "fchdir", "getcwd"})
DEEDS = frozenset({*_OPENS, *_MAKES, *_CHANGES, *_DELETES, *_RENAMES, "open_by_handle_at"})
_NAMED: dict[str, int] = {
    **_ASKS, **_OPENS, **_MAKES, **_CHANGES, **_DELETES, **EXECUTES,
    **{name: places[0] for name, places in _RENAMES.items()},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Name:
    """`path` as the process wrote it; `at`: the descriptor it is relative to, None for the working directory."""

    path: str
    at: bytes | None


@dataclass(frozen=True, slots=True)
class Use:
    """What a call did to one file. `to`: the new name of one that was renamed. listing: as a folder, whose names were
    asked for; it may be opened to name what is in it."""

    deed: Deed
    name: Name
    to: Name | None = None
    listing: bool = False


def named(call: Call) -> Name | None:
    """The file that a call is about, whatever came of it."""
    place = _NAMED.get(call.name)
    return None if place is None else _name(split(call.arguments), place)


def opened_plainly(call: Call) -> tuple[Deed | None, str]:
    """What was done to which file by a call that opened it, where that is one thing alone and strace tells its true
    name (-y), or the name is absolute: the same for whoever does it. (None, "") otherwise."""
    arguments, said = call.arguments, call.opened
    end = arguments.rfind(b'"')
    flags = arguments[end + 1 :]
    if b"O_RDWR" in flags or b"O_PATH" in flags or b"O_DIRECTORY" in flags or b"\\" in said or b"\\" in arguments:
        return None, ""
    if said[:2] == b"</" and said[-1:] == b">":
        path = said[1:-1]
    else:
        path = arguments[arguments.find(b'"') + 1 : end]
        if said or path[:1] != b"/" or b"/." in path or b"//" in path or path[-1:] == b"/":
            return None, ""
    writes = b"O_WRONLY" in flags
    if not writes and (b"O_CREAT" in flags or b"O_TRUNC" in flags):
        return None, ""
    return Deed.WRITTEN if writes else Deed.READ, path.decode(errors="backslashreplace")


def uses(call: Call) -> tuple[Use, ...]:
    """What a call that succeeded did to files."""
    parts = split(call.arguments)
    if (place := _OPENS.get(call.name)) is not None:
        name = _name(parts, place)
        flags = b"O_WRONLY|O_CREAT" if call.name == "creat" else parts[place + 1] if len(parts) > place + 1 else b""
        return _opened(call.opened, name, flags) if name else ()
    for places, deed in ((_MAKES, Deed.WRITTEN), (_CHANGES, Deed.CHANGED), (_DELETES, Deed.DELETED)):
        if (place := places.get(call.name)) is not None:
            name = _name(parts, place)
            return (Use(deed, name),) if name else ()
    if call.name == "open_by_handle_at":  # it names no file; what it opened strace tells
        return _opened(call.opened, Name("", None), parts[2] if len(parts) > 2 else b"")
    if (both := _RENAMES.get(call.name)) is not None:
        old, new = (_name(parts, place) for place in both)
        return (Use(Deed.WRITTEN, old, to=new),) if old and new else ()
    return ()


def _opened(said: bytes, name: Name, flags: bytes) -> tuple[Use, ...]:
    """What opening a file means. said: what strace says that was opened, with links followed, where it does (-y)."""
    if said.startswith(b"</") and said.endswith(b">"):
        name = Name(unescape(said[1:-1]).decode(errors="backslashreplace"), name.at)
    if b"O_PATH" in flags or b"O_DIRECTORY" in flags:
        return (Use(Deed.READ, name, listing=True),)
    writes = any(flag in flags for flag in (b"O_WRONLY", b"O_RDWR", b"O_TRUNC", b"O_CREAT"))
    read = (Use(Deed.READ, name),) if b"O_WRONLY" not in flags else ()
    return (*read, *((Use(Deed.WRITTEN, name),) if writes else ()))


def _name(parts: list[bytes], place: int) -> Name | None:
    if place >= len(parts):
        return None
    said = text(parts[place])
    if said is None:
        return None
    at = parts[place - 1] if place and not parts[place - 1].startswith(b'"') else None
    return Name(said.value.decode(errors="backslashreplace"), at)
