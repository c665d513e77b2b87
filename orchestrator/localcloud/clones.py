"""Which machines will be wanted again and again, so that a saved state of them is worth making: those of promoted
image versions, which a template's tag tells (docs/decisions/0002)."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.localcloud.cloud import Cloud, log
from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec, NicSpec, Prepares
from orchestrator.localcloud.machines import machine_spec
from orchestrator.localcloud.model import Vm, VmTemplate
from orchestrator.localcloud.references import FILE_REFERENCES, file_id
from orchestrator.localcloud.template import Template, Vector, text_of, vector_of, vectors
from orchestrator.localcloud.vm_make import fill_disk

_NOBODY = -1
"""No VM's id."""


def is_promoted(template: Template) -> bool:
    """Whether a template is the version of its image that pools boot."""
    return text_of(template, "MAYFLY_STATE") == "promoted"


def prepare_promoted(cloud: Cloud) -> None:
    """After a start: what was not made before the cloud ended is made now."""
    with cloud.lock:
        promoted = [template for template in cloud.store.templates if is_promoted(template.template)]
        for template in promoted:
            prepare_template(cloud, template)


def prepare_template(cloud: Cloud, template: VmTemplate) -> None:
    """Under the lock: have a state made of the template's own size, with one NIC unless it says how many."""
    if not isinstance(cloud.hypervisor, Prepares):
        return
    try:
        spec = _spec_of(cloud, template)
    except (HypervisorError, ValueError) as error:
        log.info("no state of template %s is made: %s", template.oid, error)
        return
    hypervisor = cloud.hypervisor
    cloud.in_background(lambda: hypervisor.prepare(spec))


def prepare_more_like(cloud: Cloud, spec: MachineSpec) -> None:
    """A machine was laid out: if it is of a promoted version, have a state made of its size, for the next ones."""
    if not isinstance(cloud.hypervisor, Prepares):
        return
    with cloud.lock:
        vm = cloud.store.vms.find(spec.vm_id)
        ident = text_of(vm.template, "TEMPLATE_ID") if vm is not None else ""
        template = cloud.store.templates.find(int(ident)) if ident.isdigit() else None
        wanted = template is not None and is_promoted(template.template)
    if wanted:
        cloud.hypervisor.prepare(spec)


def _spec_of(cloud: Cloud, template: VmTemplate) -> MachineSpec:
    """The machine that a VM of this template alone would be. Raises HypervisorError and ValueError when it names what
    is not there, or names it by another way than by id."""
    vm = Vm(
        _NOBODY, template.name, {key: [_copied(value) for value in values] for key, values in template.template.items()}
    )
    for number, disk in enumerate(vectors(vm.template, "DISK")):
        image = cloud.store.images.find(int(disk.get("IMAGE_ID", "")))
        if image is None:
            raise HypervisorError(f"no image {disk['IMAGE_ID']}")
        fill_disk(cloud, disk, image, number)
    system = vector_of(vm.template, "OS")
    for key in FILE_REFERENCES:
        if (ident := file_id(system.get(key, ""))) is not None:
            system[f"{key}_ID"] = str(ident)
    vm.template.pop("NIC", None)
    nics = len(vectors(template.template, "NIC")) or 1
    made = tuple(NicSpec(number, "", "", 0, outbound=False) for number in range(nics))
    return replace(machine_spec(cloud, vm), nics=made, context={"NETWORK": "YES"})


def _copied(value: str | Vector) -> str | Vector:
    return dict(value) if isinstance(value, dict) else value
