"""The session string, from where OpenNebula's own clients have it: the file that ONE_AUTH names."""

from __future__ import annotations

from pathlib import Path

from orchestrator.domain.errors import NotPossible

_REMEDY = "let ONE_AUTH name a file that holds one line, user:password or user:token, of an OpenNebula account"


def read_session(path: Path | None) -> str:
    """`user:password` out of the file at `path` (None: `~/.one/one_auth`, OpenNebula's default).

    Raises NotPossible, naming ONE_AUTH, when the file is missing, cannot be read, or holds anything else. The message
    never shows what the file holds.
    """
    file = path or Path("~/.one/one_auth").expanduser()
    try:
        text = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise NotPossible("ONE_AUTH", f"there is no file {file}", _REMEDY) from None
    except PermissionError:
        raise NotPossible("ONE_AUTH", f"{file} may not be read by this user", _REMEDY) from None
    except UnicodeDecodeError:
        raise NotPossible("ONE_AUTH", f"{file} is not text", _REMEDY) from None
    except OSError as error:
        raise NotPossible("ONE_AUTH", f"{file} cannot be read: {error.strerror}", _REMEDY) from None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise NotPossible("ONE_AUTH", f"{file} does not hold user:password", _REMEDY)
    if "\n" in text:
        raise NotPossible("ONE_AUTH", f"{file} holds more than one line", _REMEDY)
    return text
