"""What one container's process is started with, apart from what its image says."""

from __future__ import annotations

import os
from typing import Any

from layerfs.errors import InvalidError
from layerfs.value import fields, frozen

NETWORKS = ("none", "host")


@frozen
class Volume:
    """A file or directory of the host that is shown inside; both paths are absolute."""

    source: str
    target: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> Volume:
        """Read ``HOST:CONTAINER[:ro|rw]`` as ``docker run -v`` writes it; ``./x`` is below our directory.

        Raises:
            InvalidError: another form, or a name where a path is due: layerfs has no named volumes.
        """
        source, *rest = text.split(":")
        if len(rest) not in (1, 2) or not source or not rest[0]:
            raise InvalidError(f"{text!r} is not a volume", hint="write HOST-PATH:CONTAINER-PATH[:ro]")
        read_only = False
        for option in rest[1].split(",") if len(rest) == 2 else ():
            # SELinux labels and propagation are docker's to set; here mounts are always private.
            if option not in ("ro", "rw", "z", "Z", "rprivate", "private"):
                raise InvalidError(f"volume {text!r}: {option!r} is no option of it", hint="ro and rw are")
            read_only = read_only or option == "ro"
        if source in (".", "..") or source.startswith(("./", "../")):
            source = os.path.abspath(source)
        if not source.startswith("/"):
            raise InvalidError(f"volume {text!r}: {source!r} is not a path", hint="begin it with / or ./")
        if not rest[0].startswith("/"):
            raise InvalidError(f"volume {text!r}: {rest[0]!r} is not absolute")
        if os.path.normpath(rest[0]) in ("/", "//"):
            raise InvalidError(f"volume {text!r} would hide the whole container")
        return cls(source, rest[0], read_only)


@frozen(kw_only=True)
class RunSettings:
    """What `run` and `create` are told; None and empty mean: as the image says, or docker's default.

    `env` holds ``NAME=VALUE``; a bare ``NAME`` takes a variable of the image away. `network` is "none",
    a network of its own with a loopback device alone, or "host".
    """

    command: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    working_dir: str | None = None
    user: str | None = None
    hostname: str | None = None
    network: str = "none"
    volumes: tuple[Volume, ...] = ()
    read_only: bool = False
    tty: bool = False
    interactive: bool = False
    no_new_privileges: bool = False

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise InvalidError(f"no network {self.network!r}", hint=f"there are {' and '.join(NETWORKS)}")
        if self.working_dir is not None and not self.working_dir.startswith("/"):
            raise InvalidError(f"the working directory {self.working_dir!r} is not absolute")

    def to_json(self) -> str:
        """Write the settings for the database; what is at its default is left out."""
        import json

        members = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if getattr(self, field.name) != field.default
        }
        if self.volumes:
            members["volumes"] = [[v.source, v.target, v.read_only] for v in self.volumes]
        return json.dumps(members, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> RunSettings:
        """Read what `to_json` wrote.

        Raises:
            InvalidError: it is something else.
        """
        import json

        try:
            members: dict[str, Any] = json.loads(text)
            for name in ("command", "entrypoint", "env"):
                if members.get(name) is not None:
                    members[name] = tuple(members[name])
            members["volumes"] = tuple(Volume(*each) for each in members.get("volumes", ()))
            return cls(**members)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidError(f"not the settings of a container: {error}") from error
