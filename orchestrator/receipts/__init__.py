"""Receipts: the signed statement of one attempt, the crate of a whole run, and checking
either with a public key alone."""

from orchestrator.receipts.envelope import Refused
from orchestrator.receipts.issuing import issue
from orchestrator.receipts.keys import KeyRow, Keys, public_pem, read_public

__all__ = ["KeyRow", "Keys", "Refused", "issue", "public_pem", "read_public"]
