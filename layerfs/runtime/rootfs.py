"""Builds everything that a container's process sees, inside a mount namespace of its own, and enters it.

Two steps, since a new /proc can be mounted from inside the PID namespace only: the monitor (see
`launch`) attaches the tree, and the process mounts the rest and makes it the root.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

from layerfs import linux, mounting
from layerfs.errors import NotFoundError, ProcessError, printable
from layerfs.mount import Mount
from layerfs.runtime import kernel_mounts, mounts
from layerfs.runtime.places import Places
from layerfs.runtime.process import ProcessSpec
from layerfs.runtime.scope import make_directory, make_file, open_inside
from layerfs.runtime.settings import Volume

_HOSTS: Final = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
_HOST_FILE_MAXIMUM: Final = 1 << 20


class Rootfs:
    """The file systems of one container; made by `attach`, in a new mount namespace.

    `root` and `scratch` are open directories: the container's tree, and a tmpfs that ends up outside of it.
    """

    def __init__(self, spec: ProcessSpec, root: int, scratch: int) -> None:
        self.root = root
        self._spec = spec
        self._scratch = scratch
        self._places = Places(root)

    @classmethod
    def attach(cls, mount: Mount, spec: ProcessSpec) -> Rootfs:
        """Attach the container's tree and make the mount points that it lacks.

        Raises:
            MountError: the kernel refused the tree.
            ProcessError: a mount point of the tree is a symlink.
        """
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
        scratch = mounts.new(
            "tmpfs", ("mode=755",), source="layerfs", attributes=mounts.NOSUID | mounts.NODEV
        )
        # On top of the host's root directory, where it hides nothing: absolute paths begin beneath it.
        top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        mounts.attach(scratch, top)
        os.close(top)
        os.mkdir("root", dir_fd=scratch)
        target = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=scratch)
        mounting.attach(mount, target)
        os.close(target)
        rootfs = cls(
            spec, os.open("root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=scratch), scratch
        )
        # The container may make device nodes, and its image may bring some: none of them is to work.
        mounts.restrict(rootfs.root, mounts.NODEV)
        try:
            rootfs._places.make()
        except BaseException:
            with contextlib.suppress(OSError):
                rootfs._places.take_away()
            raise
        return rootfs

    def is_dead(self) -> bool:
        """Say whether the process that served the tree, if there was one, is gone."""
        return mounting.is_dead(self.root)

    def detach(self) -> None:
        """Take away what `attach` made in the tree; for the monitor, when the last process has ended."""
        if self._spec.read_only:
            linux.mount_setattr(self.root, b"", linux.AT_EMPTY_PATH, clear_attributes=linux.MOUNT_ATTR_RDONLY)
        self._places.take_away()

    def enter(self) -> None:
        """Mount the rest, and make the tree our root and the process's working directory ours.

        Raises:
            ProcessError, NotFoundError: a volume or the working directory cannot be had.
            OSError: the kernel refused.
        """
        sources = [(volume, _open_source(volume)) for volume in self._spec.volumes]
        proc_target, sys_target, dev_target = (
            open_inside(self.root, path, os.O_PATH | os.O_DIRECTORY, symlinks=False)
            for path in (b"/proc", b"/sys", b"/dev")
        )
        proc = kernel_mounts.mount_proc(proc_target)
        dev = kernel_mounts.mount_dev(dev_target)
        os.mkdir("empty", 0o555, dir_fd=self._scratch)
        empty = os.open("empty", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._scratch)
        null = os.open("null", os.O_PATH | os.O_CLOEXEC, dir_fd=dev)
        kernel_mounts.mount_sys(sys_target, empty=empty, null=null)
        self._mount_files()
        if self._spec.tty:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open("console", flags, 0o620, dir_fd=dev))
        forbidden = os.fstat(proc).st_dev
        for volume, source in sources:
            self._mount_volume(volume, source, forbidden=forbidden)
        kernel_mounts.protect_proc(proc, empty=empty, null=null)
        directory = self._working_directory()
        if self._spec.read_only:
            mounts.make_read_only(self.root)
        self._pivot(directory)

    def _mount_files(self) -> None:
        for name, content in _files(self._spec).items():
            try:
                target = open_inside(self.root, b"/etc/" + name, os.O_PATH)
            except OSError:
                continue  # the place could not be made: a read-only tree, or links in a circle
            try:
                if stat.S_ISREG(os.fstat(target).st_mode):
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                    file = os.open(name, flags, 0o644, dir_fd=self._scratch)
                    os.write(file, content)
                    os.close(file)
                    tree = mounts.clone(self._scratch, name)
                    mounts.attach(tree, target)
                    os.close(tree)
            finally:
                os.close(target)

    def _mount_volume(self, volume: Volume, source: int, *, forbidden: int) -> None:
        path = os.fsencode(volume.target)
        try:
            if stat.S_ISDIR(os.fstat(source).st_mode):
                target = make_directory(self.root, path)
            else:
                target = make_file(self.root, path)
        except OSError as error:
            raise ProcessError(f"cannot make {volume.target} for a volume: {error.strerror}") from error
        try:
            status = os.fstat(target)
            if status.st_dev == forbidden:
                raise ProcessError(f"the volume at {volume.target} would lie in /proc")
            if os.path.samestat(status, os.fstat(self.root)):
                raise ProcessError(f"the volume at {volume.target} would hide the whole container")
            if stat.S_ISDIR(status.st_mode) != stat.S_ISDIR(os.fstat(source).st_mode):
                raise ProcessError(
                    f"cannot show {volume.source} at {volume.target}: one is a directory, the other is not"
                )
            mounts.attach(source, target)
        finally:
            os.close(target)
            os.close(source)

    def _working_directory(self) -> int:
        path = os.fsencode(self._spec.cwd)
        try:
            return make_directory(self.root, path)
        except OSError as error:
            raise ProcessError(
                f"cannot use {printable(path)} as the working directory: {error.strerror}"
            ) from error

    def _pivot(self, directory: int) -> None:
        os.fchdir(self.root)
        # The old root comes to lie on top of the new one (pivot_root(2), NOTES), with `scratch` on top of it.
        linux.pivot_root(".", ".")
        linux.umount(".", linux.MNT_DETACH)
        linux.umount(".", linux.MNT_DETACH)
        os.fchdir(directory)


def _open_source(volume: Volume) -> int:
    attributes = mounts.RDONLY if volume.read_only else 0
    try:
        # A device may be given as such; but none is to be made in a directory, and then opened.
        if os.path.isdir(volume.source):
            attributes |= mounts.NODEV
        return mounts.clone(linux.AT_FDCWD, volume.source, attributes=attributes, recursive=True, follow=True)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"the volume's {volume.source} does not exist", hint=f"`mkdir {volume.source}` first"
        ) from error
    except OSError as error:
        raise ProcessError(f"cannot show {volume.source} in the container: {error.strerror}") from error


def _files(spec: ProcessSpec) -> dict[bytes, bytes]:
    return {
        b"hosts": _host_file("/etc/hosts") if spec.network == "host" else _HOSTS.encode(),
        b"hostname": spec.hostname.encode() + b"\n",
        b"resolv.conf": _host_file("/etc/resolv.conf"),
    }


def _host_file(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_HOST_FILE_MAXIMUM) or b""
    except FileNotFoundError:
        return b""
