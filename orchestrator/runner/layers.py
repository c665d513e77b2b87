"""The layer of a task that brings packages: on which image version it runs, how the layer comes into its machine; and
of the task that builds one, what its program said when it failed."""

from __future__ import annotations

import asyncio
import dataclasses

from orchestrator.artifacts import StagedEntry
from orchestrator.decide.layers import IMAGE_VARIABLE
from orchestrator.domain.errors import LayerFailed, ProvisionFailed
from orchestrator.domain.outcome import Reason, Verdict
from orchestrator.domain.task import Entrypoint, InputSpec
from orchestrator.guest import LAYER_FILE, Arming, Guest
from orchestrator.opennebula import ImageVersion
from orchestrator.runner.patience import persist
from orchestrator.runner.progress import Progress
from orchestrator.runner.tools import Tools
from orchestrator.store import LayerRow, TaskRow

LONGEST_REASON = 1500
TAIL_BYTES = 8192


async def layer_of(task: TaskRow, tools: Tools) -> LayerRow | None:
    """The layer with which the task runs; None when it brings no packages. Raises LayerFailed when it is not there."""
    if not task.spec.packages:
        return None
    row = await persist(lambda: tools.store.layers.of_task(task.id), "reading the layer")
    if row is None or row.blob is None:
        raise LayerFailed("its packages are not installed, or not any more: submit it again")
    return row


async def version_for(task: TaskRow, tools: Tools) -> ImageVersion | None:
    """The one version of the base image that the task must run on: that which its layer was built for, or, when it
    builds one, is built for. None: whichever its pool uses now. Raises LayerFailed when there is no such version any
    more, CloudError."""
    if task.spec.entrypoint is Entrypoint.LAYER:
        name = task.spec.environment.get(IMAGE_VARIABLE, "")
    else:
        layer = await layer_of(task, tools)
        name = "" if layer is None else layer.image_version
    if not name:
        return None
    for version in await tools.cloud.image_versions():
        if version.template_name == name:
            return version
    raise LayerFailed(f"its packages are for {name}, an image version that is gone: submit it again, to have them anew")


def require_version(task: TaskRow, image_version: str) -> None:
    """Raise ProvisionFailed, so that it is tried again, when a builder has got a machine that stood ready and is not of
    the image version that its layer is for."""
    wanted = task.spec.environment.get(IMAGE_VARIABLE) if task.spec.entrypoint is Entrypoint.LAYER else None
    if wanted is not None and wanted != image_version:
        raise ProvisionFailed(f"its packages are for {wanted}, and the machine that stood ready is of {image_version}")


async def lay(guest: Guest, arming: Arming, progress: Progress, tools: Tools) -> None:
    """Put the task's layer into its machine, if it has one. Debian packages are laid into the unit itself, so it is
    armed first as the task wants it, should it not be. Raises LayerFailed, StagingFailed, and what `Guest.arm` does."""
    layer = await layer_of(progress.task, tools)
    if layer is not None and layer.blob is not None:
        entry = await asyncio.to_thread(_entry, tools, layer.blob)
        if progress.task.spec.packages.debian:
            await guest.arm(arming)
        await guest.lay(entry, lambda done, total: progress.transfer("in", done, total))


def _entry(tools: Tools, blob: str) -> StagedEntry:
    [entry] = tools.artifacts.entries([InputSpec(LAYER_FILE, LAYER_FILE, blob)])
    return dataclasses.replace(entry, mode=0o400)


def told_why(verdict: Verdict, progress: Progress) -> Verdict:
    """Of a builder whose program ended badly: with what pip or apt said, which is the end of its stderr."""
    if progress.task.spec.entrypoint is not Entrypoint.LAYER or verdict.reason is not Reason.EXIT_NONZERO:
        return verdict
    stderr = progress.logs.stderr
    text = stderr.read(max(0, stderr.state().kept_bytes - TAIL_BYTES), TAIL_BYTES).decode(errors="replace")
    said = " ".join("".join(each if each.isprintable() else " " for each in text).split())[-LONGEST_REASON:]
    return dataclasses.replace(verdict, message=f"{verdict.message}: {said}") if said else verdict
