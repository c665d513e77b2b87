"""Who acts on the command line."""

from __future__ import annotations

import os
import pwd


def me() -> str:
    """The name of the user whose process this is, whatever the environment says; of one without a name `uid:NUMBER`."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid:{os.getuid()}"
