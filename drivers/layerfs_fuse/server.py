"""Answers the kernel's requests out of a union, one after the other."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from layerfs import linux
from layerfs_fuse import protocol as p
from layerfs_fuse.aside import Aside, Call
from layerfs_fuse.changes import Changes, Maker, failure
from layerfs_fuse.copy_up import Postponed
from layerfs_fuse.device import RUNG, Device
from layerfs_fuse.handles import KEPT, Listings, OpenFile, Readers
from layerfs_fuse.large import LargeFiles, Request
from layerfs_fuse.nodes import Node
from layerfs_fuse.options import Passed
from layerfs_fuse.passthrough import Passthrough
from layerfs_fuse.protocol import Attribute, Op
from layerfs_fuse.union import Absent, Union

if TYPE_CHECKING:
    from socket import socket

    from layerfs_fuse.fetches import Fetches
    from layerfs_fuse.gate import Gate

# What is about the connection, or about many files.
_OF_NO_FILE: Final = frozenset(
    map(int, (Op.INIT, Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.DESTROY))
)  # fmt: skip
_DESTROY: Final = int(Op.DESTROY)
_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
_MOST_NODES: Final = 1 << 16
"""Above this many files that the kernel knows of, it is asked to forget some."""
_PRUNED: Final = 1024
_LONGEST_COPY: Final = 1 << 30
_WRITING: Final = os.O_ACCMODE | os.O_TRUNC

# Gives the answer, None for an empty one, how much of the device's `room` it fills, or that the answer will
# come from elsewhere.
_ELSEWHERE: Final = -1
Handler = Callable[[Node, memoryview], bytes | int | None]


class Server:
    """Serves one mount; `log` takes the words about an error of our own."""

    def __init__(
        self,
        device: Device,
        union: Union,
        *,
        passthrough: Passed = "all",
        fetching: socket | None = None,
        unfinished: bool = False,
    ) -> None:
        """Begin to serve.

        Args:
            fetching: is connected to the process that gets what files lack of their data.
            unfinished: it makes the outlines of layers first.
        """
        self.log: Callable[[str], None] | None = None
        self._device = device
        self._union = union
        self._nodes = union.nodes
        self._files: dict[int, OpenFile] = {}
        self._listings = Listings(union)
        self._readers = Readers(union)
        self._spares_open = self._spares_opendir = False
        self._setxattr_in = p.SETXATTR_IN
        self._next_handle = 1
        self._passthrough = Passthrough(device.descriptor, passthrough)
        self._asking = (0, 0, 0)
        self._aside = Aside(device)
        self._large = LargeFiles(union, self._aside, device.ring) if isinstance(union, Changes) else None
        if isinstance(union, Changes):
            union.copied = self._tell_of_copy
        self._fetches: Fetches | None = None
        # What waits for the outlines of layers, as long as they are not there.
        self._gate: Gate | None = None
        if fetching is not None:
            from layerfs_fuse.fetches import Fetches
            from layerfs_fuse.gate import Gate

            self._gate = Gate(self._nodes) if unfinished else None
            self._fetches = Fetches(
                union.layers, fetching, gate=self._gate, wake=device.ring, log=self._tell,
                refuse=lambda unique, number: device.send(unique, b"", number),
            )  # fmt: skip
            union.require = self._fetches.require
        self._unique = self._identity = 0
        self._next_pruning = 0
        self._handlers: list[Handler | None] = [None] * (max(Op) + 1)
        for op in Op:
            self._handlers[op] = getattr(self, f"_{op.name.lower()}", None)

    def run(self) -> None:
        """Serve until the file system is unmounted."""
        receive, buffer = self._device.receive, self._device.buffer
        unpack, begin = p.REQUEST.unpack_from, p.REQUEST.size
        layers, nodes, view = self._union.layers, self._nodes, memoryview(buffer)
        while length := receive():
            if length != RUNG:
                op, unique, identity, uid, gid, thread = unpack(buffer)
                self._unique, self._asking = unique, (uid, gid, thread)
                self._answer(op, unique, identity, view[begin:length])
                if op == _DESTROY:
                    return
            if self._large is not None and self._large.finished:
                self._large.settle(self._answer_again)
            if self._fetches is not None and self._fetches.finished:
                self._settle_fetches(self._fetches)
            if len(layers.opened) > layers.most_open:
                layers.trim()
            if len(nodes) > _MOST_NODES and nodes.issued > self._next_pruning:
                self._prune()

    def _settle_fetches(self, fetches: Fetches) -> None:
        fetches.settle(self._answer_again, self._nodes.release)
        gate, self._gate = self._gate, fetches.gate
        if gate is not None and (gate.failed or self._gate is None):
            gate.release(self._answer_again)

    def _answer_again(self, request: Request) -> None:
        op, self._unique, identity, body, self._asking = request
        self._answer(op, self._unique, identity, memoryview(body))

    def _prune(self) -> None:
        """Ask the kernel to let go of what nobody uses: it would keep everything as long as it has memory.

        In a thread, since it may wait for data that it has asked us for.
        """
        identities = self._nodes.spare(_PRUNED)
        self._next_pruning = self._nodes.issued + _PRUNED // 2
        body = p.PRUNE_OUT.pack(len(identities), 0, 0) + struct.pack(f"={len(identities)}Q", *identities)

        def prune() -> None:
            if not self._device.notify(p.NOTIFY_PRUNE, body):
                self._next_pruning = sys.maxsize

        self._aside.run(prune)

    def _tell_of_copy(self, node: Node) -> None:
        """Let the kernel ask for the attributes of a file again, its data and names left alone."""
        if node.lookups:
            self._device.notify(p.NOTIFY_INVAL_INODE, p.INVAL_INODE_OUT.pack(node.id, -1, 0))

    def _answer(self, op: int, unique: int, identity: int, body: memoryview) -> None:
        try:
            if op in _OF_NO_FILE:
                self._answer_connection(op, unique, identity, body)
                return
            handler = self._handlers[op] if op < len(self._handlers) else None
            if handler is None:
                raise failure(errno.ENOSYS)
            answer = self._begun(handler, op, unique, identity, body)
        except OSError as error:
            self._device.send(unique, b"", error.errno or errno.EIO)
        except Exception:
            # Whatever went wrong inside, the process that asks must get an answer, else it hangs.
            self._device.send(unique, b"", errno.EIO)
            self.failed()
        else:
            if not isinstance(answer, int):
                self._device.send(unique, answer or b"")
            elif answer != _ELSEWHERE:
                self._device.send_room(unique, answer)

    def _begun(
        self, handler: Handler, op: int, unique: int, identity: int, body: memoryview
    ) -> bytes | int | None:
        self._identity = identity
        if self._gate is not None and not self._gate.admits(op, self._nodes.get(identity)):
            self._gate.wait(Request(op, unique, identity, bytes(body), self._asking))
            return _ELSEWHERE
        try:
            try:
                return handler(self._nodes.get(identity), body)
            except OSError as error:
                if error.errno != errno.EMFILE or not self._union.layers.relieve():
                    raise
                return handler(self._nodes.get(identity), body)
        except Postponed as postponed:
            assert self._large is not None
            self._large.wait(postponed, Request(op, unique, identity, bytes(body), self._asking))
            return _ELSEWHERE
        except Absent as absent:
            assert self._fetches is not None
            self._fetches.wait(absent, Request(op, unique, identity, bytes(body), self._asking))
            return _ELSEWHERE

    def _answer_connection(self, op: int, unique: int, identity: int, body: memoryview) -> None:
        if op == Op.FORGET:
            self._nodes.forget(identity, p.FORGET_IN.unpack_from(body)[0])
        elif op == Op.BATCH_FORGET:
            count, _ = p.BATCH_FORGET_IN.unpack_from(body)
            end = p.BATCH_FORGET_IN.size + count * p.BATCH_FORGET_ONE.size
            for node, times in p.BATCH_FORGET_ONE.iter_unpack(body[p.BATCH_FORGET_IN.size : end]):
                self._nodes.forget(node, times)
        elif op == Op.INIT:
            self._device.send(unique, self._init(body))
        elif op == Op.INTERRUPT:
            if self._fetches is not None:
                self._fetches.interrupt(p.INTERRUPT_IN.unpack_from(body)[0])
        elif op == Op.DESTROY:
            self._device.send(unique, b"")

    def failed(self) -> None:
        """Hear of an error of our own, in the block that handles it; a place for tests to listen."""
        self._tell(traceback.format_exc())

    def _tell(self, words: str) -> None:
        if self.log is not None:
            self.log(words)

    @property
    def _changes(self) -> Changes:
        if not isinstance(self._union, Changes):
            raise failure(errno.EROFS)
        self._listings.outdate()
        return self._union

    def _later(self, call: Call, *descriptors: int) -> int:
        """Have the request at hand answered while others are served."""
        self._aside.answer(self._unique, call, *descriptors)
        return _ELSEWHERE

    def _maker(self, umask: int) -> Maker:
        uid, gid, _ = self._asking
        return Maker(uid, gid, umask)

    def _init(self, body: memoryview) -> bytes:
        major, minor, readahead, flags, more = p.INIT_IN.unpack_from(body)
        if major != p.MAJOR:
            return p.INIT_OUT.pack(p.MAJOR, p.MINOR, *([0] * 11))
        agreed = p.WANTED & (flags | more << 32)
        self._setxattr_in = p.SETXATTR_EXT_IN if agreed & p.Init.SETXATTR_EXT else p.SETXATTR_IN
        self._spares_opendir = bool(agreed & p.Init.NO_OPENDIR_SUPPORT)
        self._spares_open = bool(agreed & p.Init.NO_OPEN_SUPPORT) and not isinstance(self._union, Changes)
        if agreed & p.Init.PASSTHROUGH:
            self._passthrough.enable()
        return p.INIT_OUT.pack(
            p.MAJOR, min(minor, p.MINOR), readahead, agreed & 0xFFFFFFFF, 64, 48, p.MAX_WRITE, 1,
            p.MAX_PAGES, 0, agreed >> 32, 1, 0,
        )  # fmt: skip

    # Names and attributes.

    def _valid(self, node: Node, found: os.stat_result) -> int:
        """Say how many seconds the attributes of a file hold."""
        if node in self._nodes.renewed:
            # The kernel has two inodes of it, and tells neither what it does by the other.
            return 0
        if self._gate is not None and node.children is not None:
            # Its subdirectories have not been counted yet.
            return 0
        # What the kernel writes to such a file itself takes these bits away, and it does not notice.
        return 0 if found.st_mode & _SET_IDS and self._passthrough.ties(node.id) else p.FOREVER

    def _entry(self, node: Node, found: os.stat_result | None = None) -> bytes:
        """Answer with a file, of which the kernel keeps the attributes and one more reference."""
        if found is None:
            found = self._union.stat(node)
        node.lookups += 1
        links = self._number_links(node, found)
        return p.entry(node.id, self._valid(node, found), node.number, links, found)

    def _number_links(self, node: Node, found: os.stat_result) -> int:
        links = self._union.number_links(node, found)
        return links if self._gate is None or node.children is None else min(links, 1)

    def _lookup(self, node: Node, body: memoryview) -> bytes:
        found = self._union.find(node, _name(body))
        return p.NEGATIVE if found is None else self._entry(*found)

    def _getattr(self, node: Node, body: memoryview) -> bytes:
        found = self._union.stat(node)
        links = self._number_links(node, found)
        return p.attributes(self._valid(node, found), node.number, links, found)

    def _setattr(self, node: Node, body: memoryview) -> bytes:
        (valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _) = (
            p.SETATTR_IN.unpack_from(body)
        )
        changes = self._changes
        if valid & Attribute.SIZE:
            changes.truncate(node, size)
            if valid & Attribute.KILL_SUIDGID:
                self._changes.kill_set_ids(node)
        if valid & (Attribute.UID | Attribute.GID):
            changes.chown(node, uid if valid & Attribute.UID else -1, gid if valid & Attribute.GID else -1)
        if valid & Attribute.MODE:
            changes.chmod(node, stat.S_IMODE(mode))
        if not valid & ~Attribute.HANDLE:
            self._change_nothing(node)
        if valid & (Attribute.ATIME | Attribute.MTIME):
            now, found = time.time_ns(), self._union.stat(node)
            changes.utime(
                node,
                _time(valid, Attribute.ATIME, Attribute.ATIME_NOW, now, atime, atime_ns, found.st_atime_ns),
                _time(valid, Attribute.MTIME, Attribute.MTIME_NOW, now, mtime, mtime_ns, found.st_mtime_ns),
            )
        return self._getattr(node, body)

    def _change_nothing(self, node: Node) -> None:
        """Do what chown(2) of neither owner nor group does: it takes setuid and setgid away."""
        if not node.is_directory and self._asking[0] in (0, self._union.stat(node).st_uid):
            self._changes.kill_set_ids(node)

    def _kill_unless_root(self, node: Node) -> None:
        """Take setuid and setgid where the kernel does not say whether it has to be done (CAP_FSETID)."""
        if self._asking[0]:
            self._changes.kill_set_ids(node)

    def _readlink(self, node: Node, body: memoryview) -> bytes:
        return self._union.readlink(node)

    def _mknod(self, node: Node, body: memoryview) -> bytes:
        mode, device, umask, _ = p.MKNOD_IN.unpack_from(body)
        name = _name(body[p.MKNOD_IN.size :])
        return self._entry(self._changes.mknod(node, name, mode, device, self._maker(umask)))

    def _mkdir(self, node: Node, body: memoryview) -> bytes:
        mode, umask = p.MKDIR_IN.unpack_from(body)
        name = _name(body[p.MKDIR_IN.size :])
        return self._entry(self._changes.mkdir(node, name, mode, self._maker(umask)))

    def _symlink(self, node: Node, body: memoryview) -> bytes:
        name, target, _ = bytes(body).split(b"\0", 2)
        return self._entry(self._changes.symlink(node, name, target, self._maker(0)))

    def _link(self, node: Node, body: memoryview) -> bytes:
        source = self._union.nodes.get(p.LINK_IN.unpack_from(body)[0])
        return self._entry(self._changes.link(source, node, _name(body[p.LINK_IN.size :])))

    def _unlink(self, node: Node, body: memoryview) -> None:
        self._changes.unlink(node, _name(body))

    def _rmdir(self, node: Node, body: memoryview) -> None:
        self._changes.rmdir(node, _name(body))

    def _rename(self, node: Node, body: memoryview) -> None:
        (directory,) = p.RENAME_IN.unpack_from(body)
        self._move(node, directory, body[p.RENAME_IN.size :], 0)

    def _rename2(self, node: Node, body: memoryview) -> None:
        directory, flags, _ = p.RENAME2_IN.unpack_from(body)
        self._move(node, directory, body[p.RENAME2_IN.size :], flags)

    def _move(self, node: Node, directory: int, names: memoryview, flags: int) -> None:
        old_name, new_name, _ = bytes(names).split(b"\0", 2)
        self._changes.rename(node, old_name, self._union.nodes.get(directory), new_name, flags)

    # Regular files.

    def _open(self, node: Node, body: memoryview) -> bytes:
        if self._spares_open:
            # The kernel asks no more then, and keeps what it has read.
            raise failure(errno.ENOSYS)
        flags, more = p.OPEN_IN.unpack_from(body)
        inode = self._identity
        self._check_inode(node, flags)
        writing = bool(flags & _WRITING)
        takes = writing or node.upper or self._passthrough.takes(node, inode)
        if takes:
            self._union.layers.require_room()
        if writing:
            self._changes.copy_up(node, data=not flags & os.O_TRUNC)
            if flags & os.O_TRUNC:
                self._changes.truncate(node, 0)
                if more & p.OPEN_KILL_SUIDGID:
                    self._changes.kill_set_ids(node)
        elif not takes:
            node.users += 1
            self._passthrough.refused.forget(self._asking[2])
            return p.OPENED_TO_READ
        if flags & os.O_DIRECT and self._passthrough.takes(node, inode):
            # The kernel, which opens it so itself, would say EIO where the file system below cannot.
            os.close(self._union.open(node, flags & (os.O_ACCMODE | os.O_DIRECT)))
        return self._opened(OpenFile(self._union, node, flags), inode)

    def _check_inode(self, node: Node, flags: int) -> None:
        """See to it that a file comes to be opened by an inode whose data can be what it must be.

        Told that this one is stale, the kernel looks the file up again, once, and finds another. Who asks for
        the same one again has not come by a name: it is a link of proc_pid_fd(5), or mounted somewhere. Who
        asks without any flag is the kernel, for ioctl_iflags(2).
        """
        inode, thread, writing = self._identity, self._asking[2], bool(flags & _WRITING)
        below = self._passthrough.ties_below(inode)
        if writing:
            # It comes up: from now on nobody is tied to the lower one who is not yet.
            node.large = False
        if node.id == inode:
            if not (below and (writing or node.upper)):
                return
            if flags:
                self._nodes.renew(node)
                self._device.notify(p.NOTIFY_INVAL_INODE, p.INVAL_INODE_OUT.pack(inode, -1, 0))
        refused = self._passthrough.refused
        if not (writing and below) and (not flags or refused.insists(thread, inode)):
            return
        refused.add(thread, inode, writing=writing)
        raise failure(errno.ESTALE)

    def _opened(self, file: OpenFile, inode: int) -> bytes:
        handle = self._next_handle
        self._next_handle += 1
        self._files[handle] = file
        self._passthrough.refused.forget(self._asking[2])
        if identity := self._passthrough.tie(file, inode):
            return p.OPEN_OUT.pack(handle, p.OPENED_PASSTHROUGH, identity)
        # What the page cache holds is true, unless the file was written past it.
        stale = file.node.upper and self._passthrough.enabled
        return p.OPEN_OUT.pack(handle, 0 if stale else p.OPENED_KEEP_CACHE, 0)

    def _create(self, node: Node, body: memoryview) -> bytes:
        flags, mode, umask, _ = p.CREATE_IN.unpack_from(body)
        name = _name(body[p.CREATE_IN.size :])
        self._union.layers.require_room()
        made, descriptor = self._changes.create(node, name, mode, flags & KEPT, self._maker(umask))
        entry = self._entry(made, os.fstat(descriptor))
        return entry + self._opened(OpenFile(self._union, made, flags, descriptor), made.id)

    def _tmpfile(self, node: Node, body: memoryview) -> bytes:
        flags, mode, umask, _ = p.CREATE_IN.unpack_from(body)
        self._union.layers.require_room()
        made = self._changes.tmpfile(node, mode, self._maker(umask))
        return self._entry(made) + self._opened(OpenFile(self._union, made, flags), made.id)

    def _file(self, node: Node, handle: int) -> int:
        self._union.require_data(node)
        return self._files[handle].current(self._union) if handle else self._readers.descriptor(node)

    def _read(self, node: Node, body: memoryview) -> int:
        handle, offset, size, _, _, _, _ = p.READ_IN.unpack_from(body)
        room = self._device.room[:size]
        if handle:
            return os.preadv(self._files[handle].current(self._union), (room,), offset)
        self._union.require_data(node, offset, size)
        return self._readers.read(node, room, offset)

    def _write(self, node: Node, body: memoryview) -> bytes:
        handle, offset, size, flags, _, _, _ = p.WRITE_IN.unpack_from(body)
        data = body[p.WRITE_IN.size : p.WRITE_IN.size + size]
        descriptor = self._file(node, handle)
        if flags & p.WRITE_CACHE:
            # Pages written in memory never make a file longer; these may have been sent before it was
            # truncated by an open, for which the kernel does not hold them back.
            data = data[: max(0, os.fstat(descriptor).st_size - offset)]
        written = os.pwrite(descriptor, data, offset)
        if written == len(data):
            written = size
        if flags & p.WRITE_KILL_SUIDGID:
            self._changes.kill_set_ids(node)
        return p.SIZE_OUT.pack(written, 0)

    def _release(self, node: Node, body: memoryview) -> None:
        handle = p.RELEASE_IN.unpack_from(body)[0]
        if handle:
            file = self._files.pop(handle)
            self._passthrough.untie(file)
            file.close()
        else:
            node.users -= 1
            if not node.users:
                self._readers.close(node)
        self._nodes.release(node)

    def _fsync(self, node: Node, body: memoryview) -> int:
        handle, data_only, _ = p.FSYNC_IN.unpack_from(body)
        return self._later(os.fdatasync if data_only & 1 else os.fsync, self._file(node, handle))

    def _lseek(self, node: Node, body: memoryview) -> bytes:
        handle, offset, whence, _ = p.LSEEK_IN.unpack_from(body)
        descriptor = self._file(node, handle)
        if self._may_be_mapped(node):
            # The kernel may hold data that we have not been sent, so what is a hole to us need not be one.
            size = os.fstat(descriptor).st_size
            if not 0 <= offset < size:
                raise failure(errno.ENXIO)
            return p.OFFSET_OUT.pack(offset if whence == os.SEEK_DATA else size)
        return p.OFFSET_OUT.pack(os.lseek(descriptor, offset, whence))

    def _may_be_mapped(self, node: Node) -> bool:
        """Say whether somebody may write a file in memory (mmap(2)) whose pages the kernel caches for us."""
        return any(
            file.node is node and not file.backing and file.flags & os.O_ACCMODE == os.O_RDWR
            for file in self._files.values()
        )

    def _fallocate(self, node: Node, body: memoryview) -> int:
        handle, offset, length, mode, _ = p.FALLOCATE_IN.unpack_from(body)
        self._kill_unless_root(node)
        return self._later(lambda file: linux.fallocate(file, mode, offset, length), self._file(node, handle))

    def _copy_file_range(self, node: Node, body: memoryview) -> int:
        handle, at, other, target, to, length, _ = p.COPY_FILE_RANGE_IN.unpack_from(body)
        changed = self._nodes.get(other)
        self._kill_unless_root(changed)

        def copy(source: int, destination: int) -> bytes:
            return p.SIZE_OUT.pack(
                os.copy_file_range(source, destination, min(length, _LONGEST_COPY), at, to), 0
            )

        return self._later(copy, self._file(node, handle), self._file(changed, target))

    def _ioctl(self, node: Node, body: memoryview) -> bytes:
        _, _, command, _, size, _ = p.IOCTL_IN.unpack_from(body)
        answer = b""
        if command == linux.FS_IOC_GETFLAGS:
            with self._union.opened(node) as file:
                answer = linux.file_flags(file).to_bytes(4, sys.byteorder)
        elif command == linux.FS_IOC_FSGETXATTR:
            with self._union.opened(node) as file:
                answer = linux.file_attributes(file)
        elif command == linux.FS_IOC_SETFLAGS and size >= 4:
            given = body[p.IOCTL_IN.size : p.IOCTL_IN.size + 4]
            self._changes.set_file_flags(node, int.from_bytes(given, sys.byteorder))
        else:
            raise failure(errno.ENOTTY)
        return p.IOCTL_OUT.pack(0, 0, 0, 0) + answer

    # Directories.

    def _opendir(self, node: Node, body: memoryview) -> bytes:
        if self._spares_opendir and self._gate is None:
            # The kernel asks no more then, and caches listings.
            raise failure(errno.ENOSYS)
        return p.OPEN_OUT.pack(0, p.OPENED_KEEP_CACHE | p.OPENED_CACHE_DIRECTORY, 0)

    def _readdir(self, node: Node, body: memoryview) -> bytes:
        _, offset, size, _, _, _, _ = p.READ_IN.unpack_from(body)
        parts = bytearray()
        for place, name, first in self._listings.after(node, offset):
            if first is None:
                number, mode = _dot(node, name), stat.S_IFDIR
            elif one := self._union.described(node, name, first):
                number, mode = one
            else:
                continue
            entry = p.dirent(number, place, name, mode >> 12)
            if len(parts) + len(entry) > size:
                break
            parts += entry
        return bytes(parts)

    def _readdirplus(self, node: Node, body: memoryview) -> int:
        _, offset, size, _, _, _, _ = p.READ_IN.unpack_from(body)
        room, layers = self._device.room, self._union.layers
        find, links, renewed = self._union.find, self._number_links, self._nodes.renewed
        forever = not renewed and self._gate is None
        at = 0
        for place, name, first in self._listings.after(node, offset):
            if at + p.PLUS_ROOM + len(name) > size:
                break
            if first is None:
                at = p.plus_name(room, at, _dot(node, name), place, name)
                continue
            found = find(node, name, first)
            # Of many subdirectories in many layers not all can be open at once.
            if len(layers.opened) > layers.most_open:
                layers.trim()
            if found is not None:
                child, status = found
                child.lookups += 1
                valid = p.FOREVER if forever and not status.st_mode & _SET_IDS else self._valid(child, status)
                at = p.plus(
                    room, at, child.id, valid, child.number, links(child, status), status, place, name
                )
        return at

    def _releasedir(self, node: Node, body: memoryview) -> None:
        """There is nothing to let go."""

    def _fsyncdir(self, node: Node, body: memoryview) -> int | None:
        if node.upper and node.places:
            return self._later(os.fsync, node.places[0].open())
        return None

    # Extended attributes and the file system as a whole.

    def _setxattr(self, node: Node, body: memoryview) -> None:
        size, flags, *more = self._setxattr_in.unpack_from(body)
        name, _, rest = bytes(body[self._setxattr_in.size :]).partition(b"\0")
        self._changes.set_xattr(node, name, rest[:size], flags)
        if more and more[0] & p.SETXATTR_KILL_SGID:
            self._changes.chmod(node, stat.S_IMODE(self._union.stat(node).st_mode) & ~stat.S_ISGID)

    def _getxattr(self, node: Node, body: memoryview) -> bytes:
        size, _ = p.GETXATTR_IN.unpack_from(body)
        return _sized(self._union.xattr(node, _name(body[p.GETXATTR_IN.size :])), size)

    def _listxattr(self, node: Node, body: memoryview) -> bytes:
        size, _ = p.GETXATTR_IN.unpack_from(body)
        names = self._union.xattr_names(node)
        if self._asking[0]:  # xattr(7): those are listed to CAP_SYS_ADMIN alone
            names = [name for name in names if not name.startswith(b"trusted.")]
        return _sized(b"".join(name + b"\0" for name in names), size)

    def _removexattr(self, node: Node, body: memoryview) -> None:
        self._changes.remove_xattr(node, _name(body))

    def _syncfs(self, node: Node, body: memoryview) -> None:
        linux.syncfs(self._union.layers.roots[0].open())

    def _statfs(self, node: Node, body: memoryview) -> bytes:
        found = os.fstatvfs(self._union.layers.roots[0].open())
        return p.STATFS_OUT.pack(
            found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
            found.f_bsize, found.f_namemax, found.f_frsize, 0,
        )  # fmt: skip


def _dot(node: Node, name: bytes) -> int:
    """Give the inode number of ``.`` or ``..`` in a directory."""
    return node.number if name == b"." or node.parent is None else node.parent.number


def _name(body: memoryview) -> bytes:
    """Read a name that ends with a NUL."""
    return bytes(body).partition(b"\0")[0]


def _sized(value: bytes, size: int) -> bytes:
    """Answer a question for an attribute's value, or for its size (`size` 0)."""
    if size == 0:
        return p.SIZE_OUT.pack(len(value), 0)
    if len(value) > size:
        raise failure(errno.ERANGE)
    return value


def _time(valid: int, given: int, at_once: int, now: int, seconds: int, rest: int, old: int) -> int:
    if not valid & given:
        return old
    return now if valid & at_once else seconds * 1_000_000_000 + rest
