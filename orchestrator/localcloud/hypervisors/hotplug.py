"""NICs plugged into and out of a running machine."""

from __future__ import annotations

import socket
import time

from orchestrator.localcloud.hypervisors import HypervisorError, NicSpec
from orchestrator.localcloud.hypervisors.qemu_argv import PORTS, forwarding, port_name
from orchestrator.localcloud.hypervisors.qmp import Qmp

_UNPLUG_SECONDS = 10.0
_POLL_SECONDS = 0.1
_DEVICES = "/machine/peripheral"


def require_free(nic: NicSpec) -> None:
    """QEMU does not say why it cannot listen on an address. Raises HypervisorError with the reason."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        # As QEMU has it: connections of an earlier machine that linger are no hindrance.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((nic.address, nic.host_port))
            listener.listen(1)
        except OSError as error:
            raise HypervisorError(f"NIC {nic.nic_id}: {nic.address}:{nic.host_port}: {error.strerror}") from error


def plug_nic(qmp: Qmp, nic: NicSpec) -> None:
    """Into the first free port. Raises HypervisorError: no free port, an address in use, an id taken."""
    taken = _taken_ports(qmp)
    free = next((name for name in map(port_name, range(PORTS)) if name not in taken), None)
    if free is None:
        raise HypervisorError(f"no port is free for another NIC: {PORTS} is the most")
    netdev, device = f"net{nic.nic_id}", f"nic{nic.nic_id}"
    require_free(nic)
    qmp.execute(
        "netdev_add",
        type="user",
        id=netdev,
        ipv6=False,
        restrict=not nic.outbound,
        hostfwd=[{"str": forwarding(nic)}],
    )
    try:
        qmp.execute("device_add", driver="virtio-net-pci", id=device, netdev=netdev, mac=nic.mac, bus=free, romfile="")
    except HypervisorError:
        qmp.execute("netdev_del", id=netdev)
        raise


def unplug_nic(qmp: Qmp, nic_id: int) -> None:
    """Ask the guest to let go of it, and cut its network whatever the guest does. Raises HypervisorError: no such NIC,
    or a guest that keeps the device."""
    device = f"nic{nic_id}"
    qmp.execute("device_del", id=device)
    deadline = time.monotonic() + _UNPLUG_SECONDS
    while (plugged := device in _devices(qmp)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    qmp.execute("netdev_del", id=f"net{nic_id}")
    if plugged:
        raise HypervisorError(
            f"the guest did not let go of NIC {nic_id} within {_UNPLUG_SECONDS:.0f} s; its network is cut"
        )


def _devices(qmp: Qmp) -> list[str]:
    """The ids of the machine's devices. QEMU's object tree knows them from the first moment on, whereas its list of PCI
    devices (query-pci) sees into a port only when the guest has numbered the buses."""
    return [child["name"] for child in qmp.execute("qom-list", path=_DEVICES)]


def _taken_ports(qmp: Qmp) -> set[str]:
    nics = [device for device in _devices(qmp) if device.startswith("nic")]
    buses = [qmp.execute("qom-get", path=f"{_DEVICES}/{nic}", property="parent_bus") for nic in nics]
    return {str(bus).rpartition("/")[2] for bus in buses}
