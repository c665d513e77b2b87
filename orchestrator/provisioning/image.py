"""Base images and their versions: what `mayfly image` does."""

from __future__ import annotations

import asyncio
import fcntl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.domain.errors import NotPossible
from orchestrator.provisioning.build import BuildTools, build_candidate, sweep
from orchestrator.provisioning.definition import load_definition
from orchestrator.provisioning.ports import Progress
from orchestrator.provisioning.versions import (
    ImageVersion,
    all_versions,
    promote_version,
    promoted_version,
    prune,
    roll_back,
)


class BaseImages:
    """The base images of one cloud. Every method raises CloudError when the cloud refuses or fails."""

    def __init__(self, tools: BuildTools) -> None:
        self._tools = tools
        self._cloud = tools.cloud

    async def versions(self, image: str | None = None) -> list[ImageVersion]:
        """Every version (of `image`), by image, the newest first."""
        return await all_versions(self._cloud, image)

    async def up_to_date(self, image: str) -> ImageVersion | None:
        """The promoted version, when it was made from the definition as it is now; else None. Raises NotFound."""
        definition = await asyncio.to_thread(load_definition, image, self._tools.definitions)
        promoted = await promoted_version(self._cloud, image)
        recipe = await asyncio.to_thread(definition.recipe)
        return promoted if promoted is not None and promoted.recipe == recipe else None

    async def promote(self, image: str, version: int) -> ImageVersion:
        """Boot new VMs from this version. Raises NotFound."""
        return await promote_version(self._cloud, image, version)

    async def rollback(self, image: str) -> ImageVersion:
        """Boot new VMs from the version promoted before this one. Raises NotPossible."""
        return await roll_back(self._cloud, image)

    async def build(self, image: str, tell: Progress) -> ImageVersion:
        """Make a new version, try it out, promote it, and delete versions no longer kept.

        A build that fails or is cancelled leaves nothing in the cloud. Raises NotFound (no such definition),
        NotPossible (a build runs in this home already; a tool is missing), PlatformError with a log as evidence.
        """
        definition = await asyncio.to_thread(load_definition, image, self._tools.definitions)
        with self._alone():
            builder = await asyncio.to_thread(_builder_name, self._tools.home)
            if left := await sweep(self._cloud, builder):
                tell("register", None, f"removed {left} things that a killed build had left")
            number = await build_candidate(self._tools, definition, builder, tell)
            tell("promote", None, f"version {number}")
            version = await promote_version(self._cloud, image, number)
            for old in await prune(self._cloud, image):
                tell("promote", None, f"deleted version {old.version}")
            tell("promote", 1.0, f"{version.name} is promoted")
            return version

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One build at a time in a home: a lock that ends with the process."""
        self._tools.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._tools.home / "image-build.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise NotPossible("image build", "another build runs in this home", "wait for it to end") from None
            yield


def _builder_name(home: Path) -> str:
    """The name of this home among the builders of a cloud: made once, kept in the home."""
    path = home / "image-builder"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        path.write_text(f"{uuid.uuid4()}\n")
        return path.read_text().strip()
