"""Mayfly: every process in a virtual machine of its own, sealed, traced, and destroyed when it ends."""

__version__ = "0.1.0"
