"""The guest's side of layers: what a builder runs, and how a layer comes into the machine of a task that has one."""

from __future__ import annotations

from orchestrator.decide.layers import LAYER, SQUASHFS
from orchestrator.domain.errors import StagingFailed
from orchestrator.guest import wire
from orchestrator.guest.launch import RUN_DIRECTORY

LAYER_FOLDER = "/var/lib/mayfly-layer"
"""Of root, mode 0700: what is mounted lies there, outside of the inputs."""
LAYER_FILE = SQUASHFS


def builder_program() -> str:
    """The program of a builder's task: `build.py`, which stands alone."""
    return wire.script("build_layer.py")


def mount_request() -> str:
    """The text of the request that mounts what was staged."""
    return wire.request("mount-layer", f"{LAYER_FOLDER}/{LAYER_FILE}", LAYER, f"{RUN_DIRECTORY}/pid", body="layer.sh")


def require_mounted(reply: wire.Reply) -> None:
    """Raise StagingFailed when it was not."""
    if reply.status:
        raise StagingFailed(f"the layer could not be mounted (status {reply.status}): {reply.stderr}")
