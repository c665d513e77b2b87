"""A clone restored by nothing but QEMU: what the cloud's own way of starting one is measured against."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path

from orchestrator.localcloud.hypervisors import HypervisorError, MachineSpec, acceleration
from orchestrator.localcloud.hypervisors.clone import GOES_ON, lay_out_clone
from orchestrator.localcloud.hypervisors.console import LOG
from orchestrator.localcloud.hypervisors.qemu_argv import Channels, Memory, machine_argv
from orchestrator.localcloud.hypervisors.qmp import SOCKET
from orchestrator.localcloud.hypervisors.saved_state import DEVICES, MEMORY
from orchestrator.localcloud.hypervisors.state_key import state_key, why_no_state
from orchestrator.localcloud.hypervisors.states import States

_CHANNELS = Channels(qmp=8, console=9)


@dataclass(frozen=True, slots=True)
class BareClone:
    """`argv`: to be started as it is; then `restore()`. `said`: the file of what the guest prints, which ends in
    `becomes` when it has taken its context and answers at its address."""

    argv: tuple[str, ...]
    directory: Path

    @property
    def said(self) -> Path:
        return self.directory / LOG

    becomes = GOES_ON

    def restore(self) -> None:
        """Tell the QEMU that was started where the state is; return when it runs. Blocks; a second at most. Raises
        OSError while QEMU does not listen yet."""
        wanted: list[dict[str, object]] = [
            {"execute": "qmp_capabilities"},
            {
                "execute": "migrate-set-capabilities",
                "arguments": {"capabilities": [{"capability": "x-ignore-shared", "state": True}]},
            },
            {"execute": "migrate-incoming", "arguments": {"uri": f"exec:cat '{self.directory / DEVICES}'"}},
        ]
        with socket.socket(socket.AF_UNIX) as qmp:
            qmp.connect(str(self.directory / SOCKET))
            qmp.sendall(b"".join(json.dumps(each).encode() + b"\n" for each in wanted))
            lines = qmp.makefile("rb")
            while True:
                said = json.loads(lines.readline())
                if "error" in said:
                    raise HypervisorError(said["error"]["desc"])
                if said.get("event") == "RESUME":
                    return


def bare_clone(home: Path, spec: MachineSpec) -> BareClone | None:
    """Lay out `spec.directory` (which exists, and whose path is short and plain) from the state that the cloud of
    `home` has of such a machine; None when it has none. The state is not changed. Raises HypervisorError, OSError."""
    if why_no_state(spec) or spec.kernel is None:
        return None
    accelerator = acceleration.probe(home, spec.kernel).accelerator
    state = States(home, 0).find(state_key(spec, accelerator, acceleration.installed_qemu().version))
    if state is None:
        return None
    lay_out_clone(state, spec)
    directory = spec.directory.absolute()
    argv = machine_argv(
        spec, accelerator, _CHANNELS, sandbox=(), memory=Memory(directory / MEMORY, shared=False), restored=True
    )
    argv[argv.index("-add-fd") : argv.index("-add-fd") + 2] = []
    paths = {
        f"fd={_CHANNELS.qmp},": f"path={directory / SOCKET},",
        "path=/dev/fdset/1,append=on": f"path={directory / LOG}",
    }
    for word, path in paths.items():
        argv = [each.replace(word, path) for each in argv]
    return BareClone(tuple(argv), directory)
