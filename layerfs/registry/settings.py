"""What a session with registries is told: options, and which environment and files speak in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.value import field, frozen

if TYPE_CHECKING:
    from layerfs.registry.credentials import Credentials


@frozen(kw_only=True)
class Options:
    """How registries are spoken with; lengths of time are in seconds.

    Nothing below the command line reads the environment: `environment` is it, as ``os.environ`` has it, for
    the files of credentials (HOME, XDG_RUNTIME_DIR, ...) and for proxies. `etc` is where the host's
    own files lie.

    `tls_verify` as podman has it: True asks for HTTPS with a certificate that can be verified, False allows
    any certificate and plain HTTP. None is True, but that a registry on this machine (127.0.0.0/8, ::1,
    localhost) may speak plain HTTP, and that registries.conf(5) may allow more. `authfile` and `cert_dir`
    come before the usual places, `creds` and `anonymous` before any file. Given as texts, paths and
    ``USER[:PASSWORD]``, these become what they mean.

    `connect_timeout` is for a connection to be made, `read_timeout` for an answer that stands still, and
    `upload_timeout` for a registry that thinks about what it was sent.

    `attempts` is how often a request is made that may be made again, `backoff` the pause after the first
    failure, doubled each time; a server that asks for a longer one gets it up to `patience`.

    Raises:
        TypeError: a path, credentials or the environment are given as something else.
        InvalidError: the text of credentials names no user.
    """

    tls_verify: bool | None = None
    cert_dir: Path | None = None
    authfile: Path | None = None
    creds: Credentials | None = None
    anonymous: bool = False
    connections: int = 6
    connect_timeout: float = 30.0
    read_timeout: float = 60.0
    upload_timeout: float = 600.0
    attempts: int = 6
    backoff: float = 0.5
    patience: float = 120.0
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    etc: Path = Path("/etc")

    def __post_init__(self) -> None:
        for name in ("cert_dir", "authfile", "etc"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, Path(given))
        if self.creds is not None:
            object.__setattr__(self, "creds", _credentials(self.creds))
        if not isinstance(self.environment, Mapping):
            raise TypeError(f"an environment is a mapping, and no {type(self.environment).__name__}")

    @property
    def home(self) -> Path | None:
        """The user's home directory, None when the environment does not tell."""
        home = self.environment.get("HOME")
        return Path(home) if home else None

    @property
    def config_home(self) -> Path | None:
        """Where the user's configuration lies (XDG Base Directory Specification)."""
        given = self.environment.get("XDG_CONFIG_HOME")
        if given:
            return Path(given)
        return None if self.home is None else self.home / ".config"


def _credentials(given: object) -> Credentials:
    from layerfs.registry.credentials import Credentials

    if isinstance(given, str):
        return Credentials.parse(given)
    if not isinstance(given, Credentials):
        raise TypeError(f"creds are Credentials, or USER:PASSWORD, and no {type(given).__name__}")
    return given
