"""Credential helpers: programs ``docker-credential-NAME`` that keep secrets (docker-credential-helpers)."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from layerfs.errors import TransportError
from layerfs.registry.credentials import Credentials

_PREFIX: Final = "docker-credential-"
# What helpers print, with a status that is not 0, when they simply have none.
_NONE: Final = ("credentials not found", "no credentials server url", "no credentials username")
_IDENTITY: Final = "<token>"
_SECONDS: Final = 60


def get(helper: str, server: str) -> Credentials | None:
    """Ask a helper for the credentials for a server; None when it has none.

    Raises:
        TransportError: it is missing or failed.
    """
    printed = _run(helper, "get", server.encode(), may_lack=True)
    if printed is None:
        return None
    try:
        found: Any = json.loads(printed)
        username, secret = found["Username"], found["Secret"]
    except (ValueError, RecursionError, TypeError, KeyError):
        username, secret = None, None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise TransportError(f"{_PREFIX}{helper} printed something else than credentials")
    if not secret:
        return None
    return Credentials(identity_token=secret) if username == _IDENTITY else Credentials(username, secret)


def store(helper: str, server: str, credentials: Credentials) -> None:
    """Hand credentials over to a helper.

    Raises:
        TransportError: it is missing or failed.
    """
    told = {"ServerURL": server, "Username": credentials.username, "Secret": credentials.password}
    _run(helper, "store", json.dumps(told).encode())


def erase(helper: str, server: str) -> None:
    """Have a helper forget the credentials for a server.

    Raises:
        TransportError: it is missing or failed.
    """
    _run(helper, "erase", server.encode(), may_lack=True)


def _run(helper: str, action: str, given: bytes, *, may_lack: bool = False) -> bytes | None:
    import subprocess

    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", helper):
        raise TransportError(f"{helper[:100]!r} cannot be the name of a credential helper")
    program = f"{_PREFIX}{helper}"
    try:
        done = subprocess.run([program, action], input=given, capture_output=True, timeout=_SECONDS)
    except FileNotFoundError:
        raise TransportError(
            f"the credential helper {program} is not installed",
            hint="install it, or take it out of the file of credentials",
        ) from None
    except subprocess.TimeoutExpired:
        raise TransportError(f"the credential helper {program} does not answer") from None
    except OSError as error:
        raise TransportError(f"the credential helper {program} cannot be run: {error.strerror}") from error
    if done.returncode == 0:
        return done.stdout
    # Not shown: it might quote what it was given.
    said = (done.stdout + done.stderr).decode(errors="replace").lower()
    if may_lack and any(words in said for words in _NONE):
        return None
    raise TransportError(
        f"the credential helper {program} failed with status {done.returncode}",
        hint=f"`echo {given.decode()} | {program} {action}` shows why" if action != "store" else None,
    )
