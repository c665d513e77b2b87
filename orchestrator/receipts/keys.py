"""The installation's signing keys: one that signs, and the public halves of all that ever did, to verify with.

FOLDER/signing.pem       the private key, PKCS 8, unencrypted: for its owner alone, or it is refused
FOLDER/KEYID.pub.pem     public keys; KEYID is the sha256 of the key in DER, in hex: what
                         `openssl pkey -pubin -in FILE -outform DER | sha256sum` says
"""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from orchestrator.domain.errors import NotPossible

FIELD = "keys"
SIGNING = "signing.pem"
_PUBLIC = ".pub.pem"
LARGEST = 64 * 1024
"""Bytes: a key has a hundred."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A public key of ours. `signs`: it is the one that signs now. `since`: when it was made."""

    id: str
    signs: bool
    since: datetime
    path: Path


class Keys:
    """`folder` is made when a key is first needed. Methods block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def _private(self) -> Path:
        return self.folder / SIGNING

    def exist(self) -> bool:
        """There is a key that signs."""
        return self._private.exists()

    def signer(self) -> CryptoSigner:
        """What signs; the key is made at first need. Raises NotPossible when others can read it, or it is no key."""
        if not self.exist():
            self._put(Ed25519PrivateKey.generate(), replacing=False)
        return self._signer()

    def rotate(self) -> str:
        """Sign with a new key from now on; its id. The former private key is gone, its public key stays. Raises
        NotPossible."""
        if self.exist():
            self._signer()  # whose public key is there then, whatever became of the file
        return self._put(Ed25519PrivateKey.generate(), replacing=True)

    def list(self) -> tuple[KeyRow, ...]:
        """All of them, the newest first. Raises NotPossible."""
        signing = self._signer().public_key.keyid if self.exist() else ""
        rows = []
        for path in self.folder.glob(f"*{_PUBLIC}"):
            key_id = read_public(path).keyid
            since = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            rows.append(KeyRow(key_id, key_id == signing, since, path))
        return tuple(sorted(rows, key=lambda row: (row.signs, row.since), reverse=True))

    def trusted(self) -> tuple[SSlibKey, ...]:
        """The public keys to verify with. Raises NotPossible for a file that is none."""
        return tuple(read_public(path) for path in sorted(self.folder.glob(f"*{_PUBLIC}")))

    def _signer(self) -> CryptoSigner:
        private = _read_private(self._private)
        public = private.public_key()
        key = _known_by_its_hash(public)
        path = self.folder / f"{key.keyid}{_PUBLIC}"
        if not path.exists():
            _write(path, _pem(public), 0o644)
        return CryptoSigner(private, key)

    def _put(self, private: Ed25519PrivateKey, *, replacing: bool) -> str:
        """The public half first: whatever is signed can be verified."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            key_id = _known_by_its_hash(private.public_key()).keyid
            public = self.folder / f"{key_id}{_PUBLIC}"
            _write(public, _pem(private.public_key()), 0o644)
            pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            if not _write(self._private, pem, 0o600, replacing=replacing):
                public.unlink()  # another process has made the key meanwhile
        except OSError as error:
            problem = f"cannot write to {self.folder}: {error.strerror}"
            raise NotPossible(FIELD, problem, "make it a folder of yours") from error
        return key_id


def read_public(path: Path) -> SSlibKey:
    """An Ed25519 public key in PEM. Raises NotPossible for what is none."""
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise NotPossible(
            "key", f"{path} is no public key", "give a PEM file, as mayfly keys show prints it"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise NotPossible("key", f"{path} is a key of another kind", "receipts are signed with Ed25519")
    return _known_by_its_hash(key)


def _read_private(path: Path) -> Ed25519PrivateKey:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise NotPossible("key", f"{path} cannot be read: {error.strerror}", "see mayfly keys list") from error
    if stat.S_IMODE(mode) & 0o077:
        problem = f"{path} can be read or written by others (mode {stat.S_IMODE(mode):04o})"
        raise NotPossible("key", problem, f"chmod 600 {path}, and mayfly keys rotate if anybody may have read it")
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise NotPossible("key", f"{path} is no unencrypted private key", "move it away; a new one is made") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise NotPossible("key", f"{path} is a key of another kind", "receipts are signed with Ed25519")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        raise NotPossible("key", f"{path} cannot be read: {error.strerror}", "name a file that you may read") from error


def public_pem(key: SSlibKey) -> str:
    """The key as PEM text, for those who verify."""
    return _pem(Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))).decode()


def _known_by_its_hash(public: Ed25519PublicKey) -> SSlibKey:
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return SSlibKey.from_crypto(public, keyid=hashlib.sha256(der).hexdigest())


def _pem(public: Ed25519PublicKey) -> bytes:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _write(path: Path, data: bytes, mode: int, *, replacing: bool = False) -> bool:
    """Put `data` there, whole. False: something is there already, and stays, unless `replacing`."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        os.write(fd, data)
        os.fsync(fd)
        if replacing:
            fresh.replace(path)
            return True
        try:
            os.link(fresh, path)
        except FileExistsError:
            return False
        return True
    finally:
        os.close(fd)
        with suppress(FileNotFoundError):
            fresh.unlink()
