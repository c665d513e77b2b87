"""How we know that a VM is gone, and its disks with it: what a VM's row keeps, and a receipt repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Disks:
    """What was seen of the disks in `folder`, the VM's own in the cloud's system datastore, as this machine sees it.

    before: names of those that were there while the VM was; left: of those that are there still. why_not: nobody could
    look, and why; without it, `folder` was looked into after the end.
    """

    folder: str = ""
    before: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    why_not: str = ""

    @property
    def gone(self) -> bool:
        """It was looked for them, and there are none."""
        return bool(self.folder) and not self.left and not self.why_not

    @property
    def text(self) -> str:
        """In words."""
        if self.why_not:
            return f"its disks could not be looked for: {self.why_not}"
        if self.left:
            return f"STILL THERE in {self.folder}: {', '.join(self.left)}"
        if self.before:
            return f"gone from {self.folder}: {', '.join(self.before)}"
        return f"no disk of it is left in {self.folder}"


@dataclass(frozen=True, slots=True)
class CloseProof:
    """says: what was seen, in words. cloud_id: OpenNebula's id of the VM. state: DONE, empty when OpenNebula knows no
    such VM (any more). ended_at: since when, by OpenNebula's clock. disks: None when that says nothing of them.

    >>> CloseProof("OpenNebula says DONE of VM 7", 7, "DONE").text
    'OpenNebula says DONE of VM 7'
    """

    says: str
    cloud_id: int | None = None
    state: str = ""
    ended_at: datetime | None = None
    disks: Disks | None = None

    @property
    def text(self) -> str:
        """In words, on one line."""
        since = f" since {self.ended_at:%Y-%m-%dT%H:%M:%SZ}" if self.ended_at else ""
        return f"{self.says}{since}" + (f"; {self.disks.text}" if self.disks else "")

    @property
    def document(self) -> dict[str, Any]:
        """As JSON has it: `says`, `vm`, `state`, `ended_at`, `disks` with `folder`, `before`, `left`, `why_not` and
        `gone`."""
        disks = self.disks
        return {
            "says": self.says,
            "vm": self.cloud_id,
            "state": self.state,
            "ended_at": self.ended_at.isoformat() if self.ended_at else None,
            "disks": None
            if disks is None
            else {
                "folder": disks.folder,
                "before": list(disks.before),
                "left": list(disks.left),
                "why_not": disks.why_not,
                "gone": disks.gone,
            },
        }

    def encode(self) -> str:
        """For the VM's row."""
        return json.dumps(self.document, separators=(",", ":"))

    @classmethod
    def decode(cls, kept: str) -> CloseProof:
        """From a VM's row. Rows that were closed before proofs had a structure hold nothing but words, and so does what
        cannot be read."""
        try:
            found = json.loads(kept) if kept.startswith("{") else {}
            return _read(found) if isinstance(found, Mapping) and found else cls(kept)
        except (KeyError, TypeError, ValueError):
            return cls(kept)


def _read(found: Mapping[str, Any]) -> CloseProof:
    disks = found["disks"]
    return CloseProof(
        says=str(found["says"]),
        cloud_id=None if found["vm"] is None else int(found["vm"]),
        state=str(found["state"]),
        ended_at=None if found["ended_at"] is None else datetime.fromisoformat(found["ended_at"]),
        disks=None
        if disks is None
        else Disks(str(disks["folder"]), tuple(disks["before"]), tuple(disks["left"]), str(disks["why_not"])),
    )
