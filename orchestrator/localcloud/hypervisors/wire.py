"""A machine's description as a JSON document, and back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from orchestrator.localcloud.hypervisors import DiskSpec, MachineSpec, NicSpec


def document_of(thing: MachineSpec | NicSpec) -> dict[str, Any]:
    """Paths as texts, the rest as it is."""
    return dataclasses.asdict(
        thing,
        dict_factory=lambda pairs: {key: str(value) if isinstance(value, Path) else value for key, value in pairs},
    )


def nic_of(document: dict[str, Any]) -> NicSpec:
    """Raises TypeError."""
    return NicSpec(**document)


def spec_of(document: dict[str, Any]) -> MachineSpec:
    """Raises TypeError, KeyError."""
    return MachineSpec(
        **{
            **document,
            "directory": Path(document["directory"]),
            "disks": tuple(DiskSpec(**{**disk, "backing": Path(disk["backing"])}) for disk in document["disks"]),
            "nics": tuple(nic_of(nic) for nic in document["nics"]),
            "kernel": Path(document["kernel"]) if document["kernel"] else None,
            "initrd": Path(document["initrd"]) if document["initrd"] else None,
        }
    )
