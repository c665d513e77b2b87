"""A seal profile: what a process and its machine may reach, as data. Named and versioned in `images/seals/`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Network(StrEnum):
    """What of the network a process has. NONE: no interface that is up. LOOPBACK: its own loopback alone. OPEN: what
    the machine has."""

    NONE = "none"
    LOOPBACK = "loopback"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Seal:
    """One profile. version: grows with every change of what it means; a receipt names it.

    others_hidden: processes that are not the task's own are not to be seen in /proc. tmp_executable: what is written to
    /tmp, /task/tmp and /task/out may be executed. denied_calls: system calls that fail with EPERM, by name or as a
    group of systemd's ("@mount"), see systemd.exec(5), SystemCallFilter=.

    >>> Seal("sealed", 1).closed
    True
    """

    name: str
    version: int
    network: Network = Network.LOOPBACK
    others_hidden: bool = True
    tmp_executable: bool = True
    denied_calls: tuple[str, ...] = ()

    @property
    def closed(self) -> bool:
        """The machine may reach nothing: looked at from outside and tried from inside, before any input goes in."""
        return self.network is not Network.OPEN

    @property
    def id(self) -> str:
        """As receipts and reports write it: "sealed/1"."""
        return f"{self.name}/{self.version}"
