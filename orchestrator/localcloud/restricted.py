"""Attributes that ordinary users may not set in a VM template (VM_RESTRICTED_ATTR of oned.conf's defaults)."""

from __future__ import annotations

from orchestrator.localcloud.template import Template

_NIC = tuple(
    """
    BRIDGE EXTERNAL FILTER FILTER_IP_SPOOFING FILTER_MAC_SPOOFING INBOUND_AVG_BW INBOUND_PEAK_BW INBOUND_PEAK_KB MAC
    OPENNEBULA_MANAGED OUTBOUND_AVG_BW OUTBOUND_PEAK_BW OUTBOUND_PEAK_KB VLAN_ID VLAN_TAGGED_ID
    """.split()  # noqa: SIM905 - many words, easier read so
)
_RATES = tuple(
    f"{what}_{unit}_SEC{tail}"
    for what in ("READ", "TOTAL", "WRITE")
    for unit in ("BYTES", "IOPS")
    for tail in ("", "_MAX", "_MAX_LENGTH")
)
_VECTORS: dict[str, tuple[str, ...]] = {
    "CONTEXT": ("FILES",),
    "DISK": ("OPENNEBULA_MANAGED", "ORIGINAL_SIZE", "SIZE_IOPS_SEC", "SIZE_PREV", *_RATES),
    "NIC": _NIC,
    "NIC_ALIAS": tuple(name for name in _NIC if not name.startswith(("EXTERNAL", "FILTER", "VLAN_TAGGED"))),
    "NIC_DEFAULT": ("BRIDGE", "EXTERNAL", "FILTER", "MAC", "VLAN_ID"),
    "RAW": ("DATA",),
    "TOPOLOGY": ("HUGEPAGE_SIZE", "PIN_POLICY"),
    "USER_INPUTS": ("CPU", "MEMORY", "VCPU"),
}
_WHOLE = ("CPU_COST", "DEPLOY_ID", "DISK_COST", "EMULATOR", "MEMORY_COST", "PCI", "USER_PRIORITY")


def restricted_attribute(template: Template) -> tuple[str, str] | None:
    """The first restricted attribute: its vector (or itself) and its own name; None when there is none."""
    for key in sorted({*_VECTORS, *_WHOLE}):
        for value in template.get(key, []):
            if key in _WHOLE:
                return key, key
            for part in _VECTORS[key]:
                if isinstance(value, dict) and part in value:
                    return key, part
    return None


def restricted_names() -> list[str]:
    """As oned.conf writes them: `NIC/MAC`, `EMULATOR`."""
    inside = [f"{vector}/{part}" for vector, parts in _VECTORS.items() for part in parts]
    return sorted([*inside, *_WHOLE])
