"""Puts an image's config and the user's settings together into one process, by docker's rules."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Protocol

from layerfs.errors import InvalidError, ProcessError
from layerfs.runtime.settings import RunSettings, Volume
from layerfs.value import frozen

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageDefaults(Protocol):
    """The members of an image's config that say how its process starts (image-spec, config.md)."""

    @property
    def user(self) -> str | None: ...
    @property
    def env(self) -> Sequence[str] | None: ...
    @property
    def entrypoint(self) -> Sequence[str] | None: ...
    @property
    def cmd(self) -> Sequence[str] | None: ...
    @property
    def working_dir(self) -> str | None: ...


@frozen(kw_only=True)
class ProcessSpec:
    """One process, ready to be started by `launch.run`: nothing is left to decide but what the tree says.

    `user` is as in `users.resolve_user`; HOME comes from the tree when `env` lacks it.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str = "/"
    user: str = ""
    hostname: str = "localhost"
    network: str = "none"
    volumes: tuple[Volume, ...] = ()
    read_only: bool = False
    tty: bool = False
    interactive: bool = False
    no_new_privileges: bool = False


def resolve(image: ImageDefaults, settings: RunSettings, *, hostname: str) -> ProcessSpec:
    """Decide what is run. `hostname` serves when the settings give none (docker: 12 digits of the id).

    - A given entry point makes the image's Cmd void; an empty one, or one empty word, means none.
    - Settings' variables replace the image's. Variables of an image without ``=`` are dropped.
    - PATH and HOSTNAME have defaults, TERM too with a terminal.

    Raises:
        ProcessError: there is no command, status 125.
        InvalidError: a NUL byte in a word or a variable, or a host name that the kernel cannot hold.
    """
    entrypoint, command = settings.entrypoint, settings.command
    if entrypoint is None:
        entrypoint = tuple(image.entrypoint or ())
        if not command:
            command = tuple(image.cmd or ())
    if entrypoint == ("",):
        entrypoint = ()
    argv = (*entrypoint, *(command or ()))
    if not argv:
        raise ProcessError("no command given, and the image has none")
    name = settings.hostname or hostname
    env = _environment(image.env or (), settings, name)
    cwd = settings.working_dir or image.working_dir or "/"
    user = (image.user or "") if settings.user is None else settings.user
    for text in (*argv, *env, *env.values(), cwd, user, name):
        if "\0" in text:
            raise InvalidError(f"a NUL byte in {text!r}")
    if not name or len(name.encode()) > 64:  # __NEW_UTS_LEN of <linux/utsname.h>
        raise InvalidError(f"the host name {name!r} has not 1 to 64 bytes")
    return ProcessSpec(
        argv=argv,
        env=env,
        # Docker cleans the path as text before it looks at any symlink.
        cwd=posixpath.normpath("/" + cwd.lstrip("/")),
        user=user,
        hostname=name,
        network=settings.network,
        volumes=settings.volumes,
        read_only=settings.read_only,
        tty=settings.tty,
        interactive=settings.interactive,
        no_new_privileges=settings.no_new_privileges,
    )


def _environment(image: Sequence[str], settings: RunSettings, hostname: str) -> dict[str, str]:
    env = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if settings.tty:
        env["TERM"] = "xterm"
    for text in image:
        name, equals, value = text.partition("=")
        if name and equals:
            env[name] = value
    for text in settings.env:
        name, equals, value = text.partition("=")
        if equals and name:
            env[name] = value
        elif not equals:
            env.pop(name, None)
    return env
