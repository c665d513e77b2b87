"""How Ansible reaches one machine: an inventory of one host, and the files that OpenSSH's client is given."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.provisioning.ports import SshIdentity


@contextmanager
def ansible_access(name: str, identity: SshIdentity) -> Iterator[dict[str, Any]]:
    """An inventory with one host, `name`, whose host key is checked strictly against the one that we made; nobody's own
    SSH configuration or agent takes part. The files are gone when the block ends."""
    with TemporaryDirectory(prefix="mayfly-ssh-") as folder:
        key, known_hosts = Path(folder, "key"), Path(folder, "known_hosts")
        key.touch(mode=0o600)
        key.write_text(identity.private_key)
        known_hosts.write_text(known_host(identity) + "\n")
        options = {
            "UserKnownHostsFile": str(known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "ControlPersist": "15s",
        }
        arguments = ["-F", "none", *(f"-o{option}={value}" for option, value in options.items())]
        variables = {
            "ansible_host": identity.address,
            "ansible_port": identity.port,
            "ansible_user": "root",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_private_key_file": str(key),
            "ansible_ssh_common_args": shlex.join(arguments),
        }
        yield {"all": {"hosts": {name: variables}}}


def known_host(identity: SshIdentity) -> str:
    """The line of known_hosts for this machine, without the key's comment (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).

    >>> known_host(SshIdentity("127.0.0.5", 2222, "", "ssh-ed25519 AAAA build"))
    '[127.0.0.5]:2222 ssh-ed25519 AAAA'
    """
    host = identity.address if identity.port == 22 else f"[{identity.address}]:{identity.port}"
    return " ".join([host, *identity.host_public_key.split()[:2]])
