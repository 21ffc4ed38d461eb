"""`mount` and `umount`: an image's or a container's tree at a place of the user's choice."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

from layerfs.cli.commands import Command
from layerfs.cli.context import Context, note
from layerfs.cli.output import document, line
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.errors import OptionError

_END = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def _configure_mount(parser: CommandParser) -> None:
    parser.add_argument(
        "what", metavar="IMAGE-or-CONTAINER", help="a name, or an id; containers are looked for first"
    )
    parser.add_argument("target", metavar="TARGET", help="an existing directory")
    parser.flag("--read-only", help="refuse writes")
    parser.add_argument("--name", metavar="NAME", help="the name of the container that keeps the changes")
    parser.add_argument(
        "-o",
        metavar="OPTION[,OPTION...]",
        dest="options",
        action="append",
        default=[],
        help="such as nosuid,noexec, and what the driver knows, such as squash_to_uid=1000; may be repeated",
    )
    parser.flag("--foreground", help="stay until interrupted, then take the mount away")


def _mount(context: Context, arguments: argparse.Namespace) -> int:
    target = Path(arguments.target).absolute()
    with context.open_store(here=arguments.foreground) as store:
        try:
            container = store.mount(
                arguments.what,
                target,
                read_only=arguments.read_only,
                name=arguments.name,
                options=arguments.options,
            )
        except OptionError as error:
            raise UsageError(str(error), hint=error.hint or "`layerfs mount --help` names options") from error
        try:
            if context.json:
                document({"container": container.name, "id": container.id, "target": str(target)})
            else:
                line(container.name)
            if arguments.foreground:
                _stay(target, rootless=context.rootless)
        finally:
            if arguments.foreground:
                store.unmount(target)
    return 0


def _stay(target: Path, *, rootless: bool) -> None:
    """Sleep until the user or the system asks for the end; asking at any time from now on is heard."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _END)
    try:
        note(f"mounted at {target}; press Ctrl-C to unmount")
        if rootless:
            note(f"enter with: nsenter --user --mount --preserve-credentials --target {os.getpid()}")
        signal.sigwait(_END)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _configure_umount(parser: CommandParser) -> None:
    parser.add_argument(
        "targets", metavar="TARGET-or-NAME", nargs="+", help="the directory, or the container's name"
    )


def _umount(context: Context, arguments: argparse.Namespace) -> int:
    with context.open_store() as store:
        return context.each(arguments.targets, store.unmount)


COMMANDS = {
    "mount": Command(
        description="""\
Returns when the tree is usable. What is written goes to a layer of its own, kept by a container whose name
is printed: `diff`, `commit` and `rm` take that name, `umount` the directory or the name.

Options that hold for any file system: ro, nosuid, nodev, noexec, noatime, nodiratime, relatime,
strictatime, nosymfollow, and their opposites. The FUSE union (drivers fuse and aufs) takes those of
fuse-overlayfs(1) too: squash_to_root, squash_to_uid=UID, squash_to_gid=GID,
uidmapping=STORED:SHOWN:COUNT[:...], gidmapping= as that, timeout=SECONDS, volatile (or fsync=0), noacl,
static_nlink, allow_other, and xino= and threaded=, which change nothing. Other drivers have none of their
own, nor has the front end by libfuse.

An ordinary user's mounts are made by fusermount3(1), with the driver fuse. With other drivers they are seen
by the process that mounts alone, so --foreground is needed.""",
        examples=[
            "layerfs mount debian:12 /mnt --name work",
            "layerfs mount -o ro,nosuid,nodev debian:12 /mnt",
            "layerfs --driver fuse mount -o squash_to_uid=$(id -u) debian:12 ~/tree",
        ],
        configure=_configure_mount,
        run=_mount,
    ),
    "umount": Command(
        description="Nothing that was written is lost: mount the container again, commit it, or remove it.",
        examples=["layerfs umount /mnt", "layerfs umount work"],
        configure=_configure_umount,
        run=_umount,
    ),
}
