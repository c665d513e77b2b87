"""Images: register, copy into the datastore, use, delete."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import time
from pathlib import Path

from orchestrator.localcloud import bodies, edits, names, quotas
from orchestrator.localcloud.calls import Caller, Calls
from orchestrator.localcloud.cloud import Cloud, log, now
from orchestrator.localcloud.markup import element
from orchestrator.localcloud.model import Image, ImageState, ImageType
from orchestrator.localcloud.networks import parsed
from orchestrator.localcloud.pools import page, visible
from orchestrator.localcloud.refusals import Code, Refused, internal, wrong_state
from orchestrator.localcloud.template import Template, text_of

calls = Calls()

_QCOW2 = b"QFI\xfb"
IMAGE_DS, SYSTEM_DS, FILE_DS = 0, 1, 2
_FILE_TYPES = (ImageType.KERNEL, ImageType.RAMDISK, ImageType.CONTEXT)
_NOT_ALLOCATED = "Error allocating a new image. "


def file_format(path: Path) -> tuple[str, int]:
    """`qcow2` or `raw`, and the virtual size in bytes. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(32)
    if head[:4] == _QCOW2 and len(head) == 32:
        return "qcow2", int.from_bytes(head[24:32], "big")
    return "raw", path.stat().st_size


def _megabytes(size: int) -> int:
    return max(1, -(-size // (1 << 20)))


def _checked_size(template: Template, path: str) -> int:
    """In MB, as the original measures before it copies. Raises Refused 8192."""
    if path:
        try:
            if "://" in path:
                raise PermissionError(13, os.strerror(13))
            if Path(path).exists() and not Path(path).is_file():
                raise PermissionError(13, os.strerror(13))
            return _megabytes(file_format(Path(path))[1])
        except OSError as error:
            raise internal(f"Cannot parse image SIZE: cannot access '{path}' ({error.strerror})") from None
    size = text_of(template, "SIZE")
    if not size.isdigit() or int(size) == 0:
        raise internal("Cannot parse image SIZE: Wrong number or missing SIZE attribute.")
    return int(size)


@calls.add("one.image.allocate", "si|b")
def allocate(cloud: Cloud, caller: Caller, text: str, datastore_id: int, _no_capacity_check: bool = False) -> int:
    """The id comes at once; the image is LOCKED until its copy in the datastore is there."""
    template = parsed(text)
    store = cloud.store
    datastore = store.datastores.get(datastore_id)
    caller.require_create("IMAGE")
    caller.require(("USE", datastore))
    if datastore.type == SYSTEM_DS:
        raise Refused(Code.ALLOCATE, _NOT_ALLOCATED + "New images can only be allocated in a files or image datastore.")
    word = text_of(template, "TYPE", "OS").upper() or "OS"
    if word not in ImageType.__members__:
        raise Refused(Code.ALLOCATE, f"{_NOT_ALLOCATED}Unknown type {word}")
    kind = ImageType[word]
    if (datastore.type == FILE_DS) != (kind in _FILE_TYPES):
        files = "IMAGES of type KERNEL, RAMDISK and CONTEXT"
        if datastore.type == FILE_DS:
            raise Refused(Code.ALLOCATE, f"{_NOT_ALLOCATED}Only {files} can be registered in a FILE_DS datastore")
        raise Refused(Code.ALLOCATE, f"{_NOT_ALLOCATED}{files} cannot be registered in an IMAGE_DS datastore")
    path = text_of(template, "PATH")
    size = _checked_size(template, path)
    if "SOURCE" in template and not caller.is_admin:
        caller.deny("Template includes a restricted attribute SOURCE.")
    name = text_of(template, "NAME")
    names.check(name)
    names.check_free(name, store.images, owner=caller.user.oid, word="IMAGE", prefix=_NOT_ALLOCATED)
    wanted = quotas.Wanted(images={datastore_id: 1}, size={datastore_id: size})
    if broken := quotas.check(store, caller.user, wanted):
        caller.deny(broken)
    persistent = text_of(template, "PERSISTENT").upper() == "YES"
    image = new_image(cloud, caller, name, kind, datastore_id, size, persistent=persistent)
    image.path = path
    hidden = ("NAME", "PATH", "TYPE", "SIZE", "PERSISTENT", "FORMAT", "SOURCE")
    image.template = {key: values for key, values in template.items() if key not in hidden}
    if kind in (ImageType.OS, ImageType.DATABLOCK):
        image.template.setdefault("DEV_PREFIX", ["vd"])
    store.images.save(image)
    wanted_format = text_of(template, "FORMAT") or text_of(template, "DRIVER") or "raw"
    cloud.in_background(lambda: _bring(cloud, image.oid, wanted_format))
    return image.oid


def new_image(
    cloud: Cloud, caller: Caller, name: str, kind: ImageType, datastore_id: int, size: int, *, persistent: bool = False
) -> Image:
    """An image that is LOCKED and has no file yet; not saved."""
    return Image(
        cloud.store.images.next_id(),
        name,
        uid=caller.user.oid,
        gid=caller.user.gid,
        uname=caller.user.name,
        gname=caller.gname,
        type=kind,
        persistent=persistent,
        regtime=now(),
        modtime=now(),
        size=size,
        datastore_id=datastore_id,
    )


def new_source(cloud: Cloud, image: Image) -> Path:
    """A file name that no image had before."""
    digest = hashlib.sha256(f"{image.oid} {secrets.token_hex(8)}".encode()).hexdigest()[:32]
    return cloud.datastore_directory(image.datastore_id) / digest


def _bring(cloud: Cloud, image_id: int, wanted_format: str) -> None:
    """Copy the file into the datastore (or make an empty one), then set the image READY, or ERROR."""
    started = time.monotonic()
    with cloud.lock:
        image = cloud.store.images.find(image_id)
        if image is None:
            return
        source, target = image.path, new_source(cloud, image)
    error = ""
    try:
        if source:
            _require_safe(cloud, image, Path(source))
            copy_file(Path(source), target)
        else:
            _make_empty(target, image.size)
        found_format, _ = file_format(target)
    except (OSError, subprocess.SubprocessError) as problem:
        error, found_format = f"Error copying image in the datastore: {problem}", wanted_format
        target.unlink(missing_ok=True)
    cloud.closing.wait(max(0.0, cloud.settings.image_lock_time - (time.monotonic() - started)))
    finish(cloud, image_id, target, found_format, error)


def bring_again(cloud: Cloud, image: Image) -> None:
    """After a restart: copy once more, or, if the image was to come from a VM's disk, give it up."""
    if "SAVED_DISK_ID" in image.template:
        error = "Error saving disk: the cloud was stopped meanwhile"
        target = new_source(cloud, image)
        cloud.in_background(lambda: finish(cloud, image.oid, target, "", error))
    else:
        cloud.in_background(lambda: _bring(cloud, image.oid, image.format or "raw"))


def copy_file(source: Path, target: Path) -> None:
    """Whole, sparse where it was sparse, and never half there under its name. Raises OSError, SubprocessError."""
    partial = target.with_suffix(".partial")
    try:
        subprocess.run(
            ["cp", "--reflink=auto", "--sparse=auto", "--", str(source), str(partial)], check=True, capture_output=True
        )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _require_safe(cloud: Cloud, image: Image, source: Path) -> None:
    """A datastore of driver `fs` takes files out of its RESTRICTED_DIRS only when they are in SAFE_DIRS. Raises
    PermissionError."""
    datastore = cloud.store.datastores.find(image.datastore_id)
    if datastore is None or datastore.ds_mad != "fs" or source.is_relative_to(cloud.home):
        return

    def inside(key: str) -> bool:
        return any(source.resolve().is_relative_to(part) for part in text_of(datastore.template, key).split())

    if inside("RESTRICTED_DIRS") and not inside("SAFE_DIRS"):
        raise PermissionError(f"Not allowed to copy image file {source}")


def _make_empty(target: Path, size_mb: int) -> None:
    with target.open("wb") as file:
        file.truncate(size_mb << 20)


def finish(cloud: Cloud, image_id: int, source: Path, found_format: str, error: str = "") -> None:
    """The file of a LOCKED image is there, or will not come."""
    with cloud.lock:
        image = cloud.store.images.find(image_id)
        if image is None:  # deleted meanwhile
            source.unlink(missing_ok=True)
            return
        if error:
            log.warning("image %s: %s", image_id, error)
            image.state = ImageState.ERROR
            image.template["ERROR"] = [f"{time.ctime()}: {error}"]
        else:
            image.source, image.format, image.modtime = str(source), found_format, now()
            image.state = used_state(image)
        cloud.store.images.save(image)
        cloud.life.image_settled(image)


def used_state(image: Image) -> ImageState:
    """READY, USED or USED_PERS, by who uses it."""
    if not image.vms:
        return ImageState.READY
    return ImageState.USED_PERS if image.persistent else ImageState.USED


@calls.add("one.image.info", "i|b")
def info(cloud: Cloud, caller: Caller, image_id: int, _decrypt: bool = False) -> str:
    image = cloud.store.images.get(image_id)
    caller.require(("USE", image))
    return bodies.image_body(cloud.store, image)


@calls.add("one.imagepool.info", "iii")
def pool_info(cloud: Cloud, caller: Caller, flag: int, start: int, end: int) -> str:
    shown = page(visible(caller, cloud.store.images, flag), start, end)
    return element("IMAGE_POOL", *(bodies.image_body(cloud.store, image) for image in shown))


@calls.add("one.image.update", "isi")
def update(cloud: Cloud, caller: Caller, image_id: int, text: str, how: int) -> int:
    image = cloud.store.images.get(image_id)
    caller.require(("MANAGE", image))
    image.template = edits.updated(image.template, text, how)
    cloud.store.images.save(image)
    return image_id


@calls.add("one.image.enable", "ib")
def enable(cloud: Cloud, caller: Caller, image_id: int, on: bool) -> int:
    image = cloud.store.images.get(image_id)
    caller.require(("MANAGE", image))
    if image.state not in (ImageState.READY, ImageState.DISABLED, ImageState.ERROR) or image.vms or not image.source:
        raise wrong_state("Could not enable image: it is in use or not ready")
    image.state = ImageState.READY if on else ImageState.DISABLED
    cloud.store.images.save(image)
    return image_id


@calls.add("one.image.persistent", "ib")
def persistent(cloud: Cloud, caller: Caller, image_id: int, on: bool) -> int:
    image = cloud.store.images.get(image_id)
    caller.require(("MANAGE", image))
    if image.vms:
        raise wrong_state("Could not change image persistent state: it is in use by a VM")
    image.persistent = on
    cloud.store.images.save(image)
    return image_id


@calls.add("one.image.clone", "is|i")
def clone(cloud: Cloud, caller: Caller, image_id: int, name: str, datastore_id: int = -1) -> int:
    image = cloud.store.images.get(image_id)
    caller.require_create("IMAGE")
    caller.require(("USE", image))
    if image.state not in (ImageState.READY, ImageState.USED):
        raise wrong_state(f"Cannot clone image in state: {ImageState(image.state).name}")
    names.check(name)
    names.check_free(name, cloud.store.images, owner=caller.user.oid, word="IMAGE", prefix=_NOT_ALLOCATED)
    target = image.datastore_id if datastore_id < 0 else cloud.store.datastores.get(datastore_id).oid
    copy = new_image(cloud, caller, name, ImageType(image.type), target, image.size, persistent=image.persistent)
    copy.template = {key: list(values) for key, values in image.template.items()}
    copy.path = image.source
    cloud.store.images.save(copy)
    cloud.in_background(lambda: _bring(cloud, copy.oid, image.format))
    return copy.oid


@calls.add("one.image.delete", "i|b")
def delete(cloud: Cloud, caller: Caller, image_id: int, force: bool = False) -> int:
    """`force` deletes an image in ERROR or LOCKED too; one in use is never deleted."""
    image = cloud.store.images.get(image_id)
    caller.require(("MANAGE", image))
    remove(cloud, image, force=force)
    return image_id


def remove(cloud: Cloud, image: Image, *, force: bool = False) -> None:
    """Raises Refused 2048 while VMs use it, or while it is being copied."""
    if image.vms:
        raise wrong_state(f"Cannot delete image. There are {len(image.vms)} VMs using it.")
    if image.state == ImageState.LOCKED and not force:
        raise wrong_state("Cannot delete image. Image is in LOCKED state and cannot be removed.")
    cloud.store.images.delete(image.oid)
    if image.source:
        source = Path(image.source)
        cloud.in_background(lambda: source.unlink(missing_ok=True))
