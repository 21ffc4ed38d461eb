"""`mount` and `umount`: an image's or a container's tree at a place of the user's choice."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
from pathlib import Path

from layerfs import mounting
from layerfs.cli import registry_options
from layerfs.cli.commands import Command
from layerfs.cli.context import Context, note
from layerfs.cli.copy_options import add_platform, platform_of
from layerfs.cli.output import document, line
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.errors import NotFoundError, OptionError

_END = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def _configure_mount(parser: CommandParser) -> None:
    parser.add_argument(
        "what", metavar="IMAGE-or-CONTAINER", help="a name, or an id; containers are looked for first"
    )
    parser.add_argument("target", metavar="TARGET", help="an existing directory")
    parser.flag("--read-only", help="refuse writes")
    parser.flag(
        "--lazy",
        help="mount an image that is not here, too: the tree at once, each file's data when it is read",
    )
    parser.add_argument("--name", metavar="NAME", help="the name of the container that keeps the changes")
    add_platform(parser)
    registry_options.add(parser)
    parser.add_argument(
        "-o",
        metavar="OPTION[,OPTION...]",
        dest="options",
        action="append",
        default=[],
        help="such as nosuid,noexec, and what the driver knows, such as squash_to_uid=1000; may be repeated",
    )
    parser.flag(
        "--foreground",
        help="stay until interrupted, and then take the mount away, or until somebody else does",
    )


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
                lazy=arguments.lazy,
                platform=platform_of(arguments) if arguments.lazy else None,
                registry=registry_options.read(arguments)
                if arguments.lazy or registry_options.given(arguments)
                else None,
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
            # Somebody else may be first to unmount, even to remove the container.
            if arguments.foreground and mounting.mounted(target) is not None:
                with contextlib.suppress(NotFoundError):
                    store.unmount(target)
    return 0


def _stay(target: Path, *, rootless: bool) -> None:
    """Sleep until the mount is gone, or the user or the system asks for the end.

    Asking at any time from now on is heard.
    """
    asked, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    wakeup = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    before = {each: signal.signal(each, lambda *_: None) for each in _END}
    try:
        note(f"mounted at {target}; press Ctrl-C to unmount")
        if rootless:
            note(f"enter with: nsenter --user --mount --preserve-credentials --target {os.getpid()}")
        ours = mounting.mounted(target)
        poller = select.poll()
        poller.register(asked, select.POLLIN)
        # proc(5): "a filesystem mount or unmount ... to be marked as having a priority event (POLLPRI)".
        poller.register(table, select.POLLPRI)
        # By its number: a remount changes its options.
        while ours is not None and any(info.id == ours.id for info in mounting.parse_table(table)):
            if asked in dict(poller.poll()):
                return
        note(f"{target} is not mounted any more")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(wakeup)
        for descriptor in (asked, told, table):
            os.close(descriptor)


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
static_nlink, allow_other, and xino=, threaded=, clone_fd, max_idle_threads=N and debug, which change
nothing. Of fuse-overlayfs's it refuses those that would have to do something here and do not, such as
xattr_permissions= and noxattrs, and lowerdir= and its like. Other drivers have none of their own, nor has
the front end by libfuse.

Under squash_* a chown does nothing, and chmod sets no setuid or setgid bit. New files are shown as squashed
too, and stored as belonging to whoever made them; an ordinary user's own mount stores what he makes as the
image's root's.

With --lazy the image may also be written as `pull` takes it, docker://HOST/REPO:TAG or oci:DIR:TAG. Its
manifest, its config and a table of contents of each layer are fetched, and that is all before the tree can be
used: a file's data comes when somebody reads it, large files in pieces of 4 MiB, is verified, and stays in
the store for later mounts. Of an image with many files the root shows at once, and who looks further at that
very moment waits until the rest of the names is there. Layers in eStargz and zstd:chunked have such tables;
any other is fetched whole, once, and read from then on without being unpacked. What cannot be fetched is an
I/O error for its reader, who may try again, and a line in the log that `layerfs check` shows. The driver is
fuse. `create`, `run`, `commit`, `push` and `save` need all of the image, and pull the rest of it first, from
where its files come. The options about the registry hold as long as the mount lasts; say them again when the
container is mounted once more.

With passthrough=all, the default, the kernel reads and writes the files of the writable layer itself, and
reads those of the image from 4 MiB on itself, which is fastest (Linux 6.9, mounts by root). Who has such a
file of the image open does not see what others change in it from then on: passthrough=upper, for programs
that follow large files of the image while others write them, leaves these to the server. passthrough=none
leaves all to it, which is slowest, for kernels whose passthrough is not to be trusted.

The options, and --read-only, are those of this one mount: the container does not keep them. What it keeps is
its driver, whatever --driver says; an image is unpacked once for each driver that is used with it. To take
changes to another driver, `commit` the container and mount the new image with that.

A directory in the store or above it is refused, since the mount would hide the store.

An ordinary user's mounts are made by fusermount3(1), with the driver fuse. With other drivers they are seen
by the process that mounts alone, so --foreground is needed. `ps` lists such a mount with that process, and
it counts for every command as long as anybody is in the process's mount namespace.""",
        examples=[
            "layerfs mount debian:12 /mnt --name work",
            "layerfs mount -o ro,nosuid,nodev debian:12 /mnt",
            "layerfs mount --lazy docker://registry.example.org/app:1 /mnt",
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
