"""A running machine's disk, copied by its own QEMU as it is at one moment."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError
from orchestrator.localcloud.hypervisors.disks import create_empty, virtual_size
from orchestrator.localcloud.hypervisors.qmp import Qmp
from orchestrator.localcloud.hypervisors.record import DiskFile

_COPY_SECONDS = 3600.0
_POLL_SECONDS = 0.2
_JOB = "save"


def copy_running(directory: Path, node: str, disk: DiskFile, target: Path) -> None:
    """Write the disk to `target`, complete or not at all. Raises HypervisorError."""
    part = target.with_name(target.name + ".part")
    try:
        create_empty(part, virtual_size(Path(disk.path), disk.format))
        with Qmp(directory, seconds=_COPY_SECONDS) as qmp:
            qmp.execute(
                "blockdev-add",
                driver="qcow2",
                node_name=_JOB,
                file={"driver": "file", "filename": str(part.absolute())},
            )
            try:
                _copy(qmp, node)
            finally:
                qmp.execute("blockdev-del", node_name=_JOB)
        part.replace(target)
    except OSError as error:
        raise HypervisorError(f"{target}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _copy(qmp: Qmp, node: str) -> None:
    qmp.execute("blockdev-backup", job_id=_JOB, device=node, target=_JOB, sync="full", auto_dismiss=False)
    while True:
        job = next(job for job in qmp.execute("query-jobs") if job["id"] == _JOB)
        if job["status"] == "concluded":
            break
        time.sleep(_POLL_SECONDS)
    qmp.execute("job-dismiss", id=_JOB)
    if "error" in job:
        raise HypervisorError(f"copying {node}: {job['error']}")
