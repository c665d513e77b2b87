"""VM templates, and VMs made from them."""

from __future__ import annotations

import dataclasses

from orchestrator.localcloud import bodies, clones, edits, images, names, quotas, references, vm_make
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud, now
from orchestrator.localcloud.markup import element
from orchestrator.localcloud.model import VmTemplate
from orchestrator.localcloud.networks import parsed
from orchestrator.localcloud.pools import page, visible
from orchestrator.localcloud.refusals import Code, Refused
from orchestrator.localcloud.restricted import restricted_attribute
from orchestrator.localcloud.template import Template, merge, text_of, vectors

calls = Calls()

_NOT_ALLOCATED = "Error allocating a new virtual machine template. "


def check_restricted(caller: Caller, template: Template) -> None:
    """Raises Refused 512."""
    if not caller.is_admin and (found := restricted_attribute(template)):
        caller.deny(f"VM Template includes a restricted attribute {found[1]}.")


@calls.add("one.template.allocate", "s")
def allocate(cloud: Cloud, caller: Caller, text: str) -> int:
    template = parsed(text)
    caller.require_create("TEMPLATE")
    check_restricted(caller, template)
    name = text_of(template, "NAME")
    names.check(name)
    names.check_free(name, cloud.store.templates, owner=caller.user.oid, word="TEMPLATE")
    return _saved(cloud, caller, name, template)


def _saved(cloud: Cloud, caller: Caller, name: str, template: Template) -> int:
    made = VmTemplate(
        cloud.store.templates.next_id(),
        name,
        {key: values for key, values in template.items() if key != "NAME"},
        uid=caller.user.oid,
        gid=caller.user.gid,
        uname=caller.user.name,
        gname=caller.gname,
        regtime=now(),
    )
    cloud.store.templates.save(made)
    return made.oid


@calls.add("one.template.info", "i|bb")
def info(cloud: Cloud, caller: Caller, template_id: int, expanded: bool = False, _decrypt: bool = False) -> str:
    """`expanded`: each DISK and NIC as it would be in a VM."""
    template = cloud.store.templates.get(template_id)
    inside = references.needed_rights(cloud.store, caller, template.template) if expanded else []
    caller.require(("USE", template), *inside)
    if not expanded:
        return bodies.template_body(template)
    whole = _expanded(cloud, caller, template.template)
    return bodies.template_body(dataclasses.replace(template, template=whole))


def _expanded(cloud: Cloud, caller: Caller, template: Template) -> Template:
    result: Template = {
        key: [dict(value) if isinstance(value, dict) else value for value in values] for key, values in template.items()
    }
    for number, disk in enumerate(vectors(result, "DISK")):
        if (image := references.image_of(cloud.store, caller, disk)) is not None:
            vm_make.fill_disk(cloud, disk, image, number)
    for nic in vectors(result, "NIC"):
        network = references.network_of(cloud.store, caller, nic)
        nic.update({"NETWORK": network.name, "NETWORK_ID": str(network.oid)})
    return result


@calls.add("one.templatepool.info", "iii")
def pool_info(cloud: Cloud, caller: Caller, flag: int, start: int, end: int) -> str:
    shown = page(visible(caller, cloud.store.templates, flag), start, end)
    return element("VMTEMPLATE_POOL", *(bodies.template_body(template) for template in shown))


@calls.add("one.template.update", "isi")
def update(cloud: Cloud, caller: Caller, template_id: int, text: str, how: int) -> int:
    template = cloud.store.templates.get(template_id)
    caller.require(("MANAGE", template))
    changed = edits.updated(template.template, text, how)
    check_restricted(caller, changed)
    changed.pop("NAME", None)
    promoted = clones.is_promoted(changed) and not clones.is_promoted(template.template)
    template.template = changed
    cloud.store.templates.save(template)
    if promoted:
        clones.prepare_template(cloud, template)
    return template_id


@calls.add("one.template.chmod", "iiiiiiiiii|b")
def chmod(cloud: Cloud, caller: Caller, template_id: int, *values: int) -> int:
    """With a true last argument the images of its disks too."""
    template = cloud.store.templates.get(template_id)
    caller.require(("MANAGE", template))
    edits.chmod(template, values[:9])
    cloud.store.templates.save(template)
    if values[9:] == (True,):
        for disk in vectors(template.template, "DISK"):
            image = references.image_of(cloud.store, caller, disk)
            if image is not None and caller.may("MANAGE", image):
                edits.chmod(image, values[:9])
                cloud.store.images.save(image)
    return template_id


@calls.add("one.template.clone", "is|b")
def clone(cloud: Cloud, caller: Caller, template_id: int, name: str, _images_too: bool = False) -> int:
    """The template alone: its copy has the same images."""
    template = cloud.store.templates.get(template_id)
    caller.require_create("TEMPLATE")
    caller.require(("USE", template))
    names.check(name)
    names.check_free(name, cloud.store.templates, owner=caller.user.oid, word="TEMPLATE")
    return _saved(cloud, caller, name, template.template)


@calls.add("one.template.delete", "i|b")
def delete(cloud: Cloud, caller: Caller, template_id: int, recursive: bool = False) -> int:
    """`recursive`: its images too. True even when one of them is in use and stays."""
    template = cloud.store.templates.get(template_id)
    caller.require(("MANAGE", template))
    cloud.store.templates.delete(template_id)
    if recursive:
        for disk in vectors(template.template, "DISK"):
            try:
                image = references.image_of(cloud.store, caller, disk)
                if image is not None and caller.may("MANAGE", image):
                    images.remove(cloud, image)
            except Refused:
                continue
    return template_id


@calls.add("one.template.instantiate", "i|sbsb")
def instantiate(
    cloud: Cloud,
    caller: Caller,
    template_id: int,
    name: str = "",
    hold: bool = False,
    extra: str = "",
    persistent: bool = False,
) -> int:
    """`extra` over the template: a vector replaces whole vectors.

    Raises Refused: 512 for rights, restricted attributes and quotas, 16384 for what cannot be had."""
    template = cloud.store.templates.get(template_id)
    given = parsed(extra)
    if persistent:
        raise Refused(Code.ALLOCATE, _NOT_ALLOCATED + "Persistent copies of templates are not supported by this cloud.")
    if not caller.is_admin and (found := restricted_attribute(given)):
        caller.deny(f"User Template includes a restricted attribute {found[0]}.")
    merged = merge(template.template, given)
    merged["TEMPLATE_ID"] = [str(template_id)]
    merged.pop("NAME", None)
    if name or "NAME" in given:
        merged["NAME"] = [name or text_of(given, "NAME")]
    # A 7.2.0 asks for no right on the images of disks here: its check looks for an image of the same name that the
    # caller
    # owns, and passes over it when there is none (recorded: the refusal names TEMPLATE and SECGROUP, not IMAGE).
    caller.require(("USE", template), *references.needed_rights(cloud.store, caller, merged, images=False))
    try:
        check_quota(cloud, caller, merged)
        return vm_make.create(cloud, caller, merged, hold=hold).oid
    except Refused as refused:
        if refused.code == Code.INTERNAL:
            raise Refused(Code.ALLOCATE, _NOT_ALLOCATED + refused.text) from None
        raise


def check_quota(cloud: Cloud, caller: Caller, template: Template) -> None:
    """Raises Refused 512 when a quota would be broken."""
    wanted = vm_make.wanted_of(cloud, caller, template)
    if broken := quotas.check(cloud.store, caller.user, wanted):
        caller.deny(broken)
