"""A base image as data: a folder of `images/` with its `image.yml`, its files and the script that packs it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.domain.errors import NotFound, UserError
from orchestrator.provisioning.quantities import Size, Time
from orchestrator.settings import data_root

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9@._:+-]*$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachineSize(_Part):
    """A machine to start: `memory` in bytes, `network` by its name in OpenNebula."""

    cpus: Annotated[int, Field(ge=1)]
    memory: Size
    network: str


class Definition(_Part):
    """What `image.yml` holds.

    packages: installed by mmdebstrap, the kernel's among them. disk_size: bytes of the root disk.
    initrd_modules: kernel modules always loaded by the initrd; initrd_fallback_modules: those tried when the root disk
    does not show. masked_generators: systemd generators not to run. playbook: a file of `playbooks/`, run in the
    machine `build`. Timeouts in seconds.
    """

    name: str
    folder: Path
    suite: Word
    components: tuple[Word, ...]
    mirror: str
    security_mirror: str
    packages: tuple[Word, ...]
    disk_size: Size
    kernel_cmdline: str
    initrd_modules: tuple[Word, ...]
    initrd_fallback_modules: tuple[Word, ...]
    enabled_units: tuple[Word, ...]
    masked_units: tuple[Word, ...]
    masked_generators: tuple[Word, ...]
    playbook: str
    build: MachineSize
    smoke_test: MachineSize
    boot_timeout: Time
    provision_timeout: Time

    @property
    def playbook_path(self) -> Path:
        """Of our own playbooks; an absolute path stands for itself."""
        return data_root() / "playbooks" / self.playbook

    def fingerprint(self) -> str:
        """A hash of every file of the folder: what the root file system is made of, but for the packages' versions."""
        return _hash_of(self.folder, self.folder.rglob("*"))

    def recipe(self) -> str:
        """A hash of all that a version is made of, but for the packages' versions: the folder, the playbook, the roles
        beside it. A version of another recipe may lack what the runners of this one rely on."""
        playbook = self.playbook_path
        provisioning = _hash_of(playbook.parent, [playbook, *(playbook.parent / "roles").rglob("*")])
        return hashlib.sha256(f"{self.fingerprint()}\0{provisioning}".encode()).hexdigest()[:32]


def _hash_of(root: Path, entries: Iterable[Path]) -> str:
    """32 hexadecimal digits: of the names below `root` and the contents of all that are files."""
    digest = hashlib.sha256()
    for path in sorted(entry for entry in entries if entry.is_file()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def load_definition(name: str, images: Path | None = None) -> Definition:
    """The definition of image `name`. Raises NotFound (naming those that there are) and UserError naming the key."""
    root = images or data_root() / "images"
    known = sorted(path.parent.name for path in root.glob("*/image.yml"))
    if name not in known:
        raise NotFound("image", f"{name}: no such folder with an image.yml in {root}", "known: " + ", ".join(known))
    path = root / name / "image.yml"
    try:
        return Definition(**yaml.safe_load(path.read_text()), name=name, folder=path.parent)
    except ValidationError as error:
        complaint = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in complaint["loc"])
        raise UserError(f"{path}, {where}", complaint["msg"].removeprefix("Value error, ")) from error
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(str(path), f"not a mapping in YAML: {error}") from error
