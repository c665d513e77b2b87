"""Key pairs, made by us: a host key for each VM, so that nothing is trusted on first use, and a runner's client key."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field

import asyncssh


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An ed25519 key pair.

    private: OpenSSH's private key format, unencrypted, with a newline at its end. Not shown by `repr`.
    public: one line, `ssh-ed25519 AAAA… comment`.
    fingerprint: `SHA256:…`, as `ssh-keygen -l` shows it.
    """

    private: str = field(repr=False)
    public: str
    fingerprint: str

    @property
    def private_base64(self) -> str:
        """The private key in one line, as CONTEXT carries it (MAYFLY_HOST_KEY_BASE64)."""
        return base64.b64encode(self.private.encode()).decode()


def make_key(comment: str) -> KeyPair:
    """Make a key pair. `comment` ends its public line: a word that says whose it is."""
    return _pair(asyncssh.generate_private_key("ssh-ed25519", comment=comment))


def read_key(private: str) -> KeyPair:
    """The pair of a private key in OpenSSH's format. Raises ValueError when it is none, or is encrypted."""
    try:
        return _pair(asyncssh.import_private_key(private))
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise ValueError(f"not an unencrypted private key in OpenSSH's format: {error}") from error


def _pair(key: asyncssh.SSHKey) -> KeyPair:
    return KeyPair(
        private=key.export_private_key("openssh").decode(),
        public=key.export_public_key("openssh").decode().strip(),
        fingerprint=key.get_fingerprint(),
    )
