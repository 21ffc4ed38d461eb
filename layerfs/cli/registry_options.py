"""The options of every command that speaks with a registry, as podman and skopeo have them."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from layerfs.cli import secrets
from layerfs.cli.parser import CommandParser, UsageError

_NAMES = ("tls_verify", "cert_dir", "authfile", "creds", "no_creds")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.registry.settings import Options


def add(parser: CommandParser, *, prefix: str = "", of: str = "the registry", creds: bool = True) -> None:
    """Add the options; `prefix`, such as ``src-``, tells those of two registries apart."""
    parser.switch(
        f"--{prefix}tls-verify",
        help=f"false: take any certificate of {of}, and plain HTTP, which else only this machine may speak",
    )
    parser.add_argument(
        f"--{prefix}cert-dir",
        metavar="DIR",
        help=f"a CA and client certificates for {of}: *.crt, *.cert, *.key",
    )
    parser.add_argument(
        f"--{prefix}authfile",
        metavar="FILE",
        help=f"credentials for {of} (REGISTRY_AUTH_FILE; podman's, docker's)",
    )
    if creds:
        parser.add_argument(
            f"--{prefix}creds",
            metavar="USER[:PASSWORD]",
            help=f"these credentials for {of}, not stored ones; the password is asked for when left out",
        )
        parser.flag(f"--{prefix}no-creds", help=f"no credentials for {of}, whichever are stored")


def given(arguments: argparse.Namespace) -> bool:
    """Say whether any of the options was used."""
    return any(getattr(arguments, name, None) for name in _NAMES)


def read(arguments: argparse.Namespace, *, prefix: str = "") -> Options:
    """Give what the options say; where those with the prefix are silent, those without it hold."""
    from layerfs.registry.credentials import Credentials
    from layerfs.registry.settings import Options

    def one(name: str) -> str | None:
        found: str | None = getattr(arguments, f"{prefix.replace('-', '_')}{name}", None)
        return found or getattr(arguments, name, None)

    verify, directory, authfile, creds = (
        one("tls_verify"), one("cert_dir"), one("authfile"), one("creds")
    )  # fmt: skip
    if creds is not None:
        secrets.cover(creds)
        creds = _complete(creds, arguments)
    return Options(
        tls_verify=None if verify is None else verify == "true",
        cert_dir=None if directory is None else Path(directory),
        authfile=None if authfile is None else Path(authfile),
        creds=None if creds is None else Credentials.parse(creds),
        anonymous=bool(one("no_creds")),
        environment=dict(os.environ),
    )


def _complete(creds: str, arguments: argparse.Namespace) -> str:
    """Ask for the password that was left out, once for all who read these arguments."""
    if not creds or ":" in creds:
        return creds
    if not sys.stdin.isatty():
        raise UsageError(
            f"there is no terminal to ask for the password of {creds} on",
            hint="write --creds USER:PASSWORD, or `layerfs login` first, with --password-stdin",
        )
    import getpass

    asked: dict[str, str] = vars(arguments).setdefault("asked", {})
    if creds not in asked:
        asked[creds] = getpass.getpass(f"password of {creds}: ")
    return f"{creds}:{asked[creds]}"
