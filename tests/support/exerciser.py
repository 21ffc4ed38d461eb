"""Uses one file in every way that a program can, in random order, and compares it with a model in memory.

``python -m tests.support.exerciser PATH...`` does so for long; the files must exist and may be changed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

from layerfs import linux

MOST = 300_000
KEEP_SIZE, PUNCH, ZERO = 1, 2, 16
PAGE = mmap.PAGESIZE
FLAGS = (
    os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_WRONLY, os.O_WRONLY | os.O_APPEND,
    os.O_RDWR | os.O_SYNC, os.O_RDWR | os.O_DIRECT,
)  # fmt: skip


class Exerciser:
    """A file, the descriptors and the mapping that are held on it, and what it should contain."""

    def __init__(self, path: Path, *, seed: int, read_only: bool = False) -> None:
        self.path: Path | None = path
        self.random = random.Random(seed)
        self.read_only = read_only
        self.model = bytearray(path.read_bytes())
        self.done: list[str] = []
        self.opened: dict[int, int] = {}
        self.mapping: mmap.mmap | None = None
        self.mapped_writable = False
        self.scratch = path.with_name(path.name + ".scratch")
        self.extra: list[Path] = []
        reading: list[tuple[int, Callable[[], None]]] = [
            (12, self.read), (6, self.map_and_read), (4, self.read_mapping), (5, self.reopen),
            (2, self.close), (2, self.check_size), (2, self.check_holes), (2, self.drop_cache),
            (1, self.compare), (2, self.keep_mapping), (1, self.read_direct),
        ]  # fmt: skip
        writing: list[tuple[int, Callable[[], None]]] = [
            (12, self.write), (4, self.map_and_write), (4, self.write_mapping), (4, self.append),
            (5, self.truncate), (3, self.allocate), (4, self.punch), (4, self.zero), (4, self.copy_within),
            (2, self.copy_out_and_in), (2, self.sync), (1, self.truncate_by_opening), (2, self.write_direct),
            (0.3, self.rename), (0.3, self.link), (0.05, self.unlink),
        ]  # fmt: skip
        chosen = reading if read_only else reading + writing
        self.weights = [weight for weight, _ in chosen]
        self.operations = [operation for _, operation in chosen]

    def run(self, steps: int) -> None:
        """Do so many random operations, then close everything and look at the file once more."""
        try:
            # What is open from before a copy-up must see what is written after it.
            self.open(os.O_RDONLY)
            for operation in self.random.choices(self.operations, self.weights, k=steps):
                operation()
            self.finish()
        except (AssertionError, OSError) as error:
            error.add_note("the last operations:\n" + "\n".join(self.done[-40:]))
            raise
        finally:
            if self.mapping is not None:
                self.mapping.close()
            for descriptor in self.opened:
                os.close(descriptor)
            self.opened.clear()

    def finish(self) -> None:
        self.compare()
        if self.mapping is not None:
            self.mapping.close()
            self.mapping = None
        for descriptor in self.opened:
            os.close(descriptor)
        self.opened.clear()
        if self.path is not None:
            self.same(self.path.read_bytes(), 0, len(self.model), "at the end")

    def note(self, text: str) -> None:
        self.done.append(text)
        del self.done[:-100]

    def same(self, seen: bytes, start: int, end: int, how: str) -> None:
        wanted = bytes(self.model[start:end])
        if seen == wanted:
            return
        at = next((n for n, (a, b) in enumerate(zip(seen, wanted, strict=False)) if a != b), None)
        raise AssertionError(
            f"{how}: {len(seen)} bytes instead of {len(wanted)} at {start}"
            + (f", other from {start + at} on: {seen[at : at + 8]!r}, not {wanted[at : at + 8]!r}"
               if at is not None else "")
        )  # fmt: skip

    def range(self, most: int = MOST) -> tuple[int, int]:
        start = self.random.randrange(most)
        length = self.random.choice((1, 10, 511, PAGE, 10_000, 70_000, 200_000))
        return start, min(1 + self.random.randrange(length), most - start)

    def within(self) -> tuple[int, int]:
        """Give the start and end of a part of the file."""
        start, length = self.range(len(self.model))
        return start, start + length

    def bytes(self, length: int) -> bytes:
        return self.random.randbytes(64) * (length // 64) + self.random.randbytes(length % 64)

    # Descriptors.

    def open(self, flags: int) -> int:
        if self.path is not None:
            descriptor = os.open(self.path, flags | os.O_CLOEXEC)
        else:
            descriptor = os.open(f"/proc/self/fd/{next(iter(self.opened))}", flags | os.O_CLOEXEC)
        self.opened[descriptor] = flags
        self.note(f"open {flags:#o} -> {descriptor}")
        return descriptor

    def reopen(self) -> None:
        self.open(self.random.choice(FLAGS) if not self.read_only else os.O_RDONLY)
        while len(self.opened) > 6:
            self.close()

    def close(self) -> None:
        # A file without a name lives as long as something has it open.
        if len(self.opened) > 1 or (self.opened and self.path is not None):
            descriptor = self.random.choice(list(self.opened))
            self.note(f"close {descriptor}")
            del self.opened[descriptor]
            os.close(descriptor)

    def descriptor(self, fits: Callable[[int], bool], flags: int) -> int:
        found = [each for each, opened in self.opened.items() if fits(opened)]
        return self.random.choice(found) if found else self.open(flags)

    def reader(self) -> int:
        return self.descriptor(
            lambda flags: flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_DIRECT, os.O_RDONLY
        )

    def writer(self, *, append: bool = False) -> int:
        return self.descriptor(
            lambda flags: (
                bool(flags & os.O_ACCMODE) and not flags & os.O_DIRECT and bool(flags & os.O_APPEND) is append
            ),
            os.O_RDWR | (os.O_APPEND if append else 0),
        )

    def both(self) -> int:
        return self.descriptor(
            lambda flags: flags & os.O_ACCMODE == os.O_RDWR and not flags & (os.O_APPEND | os.O_DIRECT),
            os.O_RDWR,
        )

    # Reading.

    def read(self) -> None:
        start, length = self.range()
        descriptor = self.reader()
        self.note(f"read {descriptor}: {start}+{length}")
        self.same(os.pread(descriptor, length, start), start, start + length, "read")

    def read_direct(self) -> None:
        descriptor = self.descriptor(lambda flags: bool(flags & os.O_DIRECT), self.direct())
        with mmap.mmap(-1, 8 * PAGE) as buffer:
            start = self.random.randrange(MOST // PAGE) * PAGE
            self.note(f"read directly {descriptor}: {start}")
            length = os.preadv(descriptor, [buffer], start)
            self.same(buffer[:length], start, start + len(buffer), "direct read")

    def direct(self) -> int:
        return os.O_DIRECT | (os.O_RDONLY if self.read_only else os.O_RDWR)

    def map_and_read(self) -> None:
        if self.model:
            start, end = self.within()
            descriptor = self.reader()
            self.note(f"map and read {descriptor}: {start}-{end}")
            with mmap.mmap(descriptor, len(self.model), prot=mmap.PROT_READ) as mapped:
                self.same(mapped[start:end], start, end, "mapping")

    def keep_mapping(self) -> None:
        if self.mapping is not None:
            self.note("unmap")
            self.mapping.close()
            self.mapping = None
        if self.model:
            self.mapped_writable = not self.read_only and self.random.random() < 0.6
            descriptor = self.both() if self.mapped_writable else self.reader()
            self.note(f"keep mapped {descriptor}: {len(self.model)}, writable {self.mapped_writable}")
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if self.mapped_writable else 0)
            self.mapping = mmap.mmap(descriptor, len(self.model), prot=protection)

    def read_mapping(self) -> None:
        if self.mapping is not None and self.model:
            start, end = self.within()
            end = min(end, len(self.mapping))
            if start < end:
                self.note(f"read mapped {start}-{end}")
                self.same(self.mapping[start:end], start, end, "kept mapping")

    def check_size(self) -> None:
        size = os.fstat(self.reader()).st_size
        assert size == len(self.model), f"fstat says {size} bytes instead of {len(self.model)}"
        if self.path is not None:
            size = os.stat(self.path).st_size
            assert size == len(self.model), f"stat says {size} bytes instead of {len(self.model)}"

    def check_holes(self) -> None:
        descriptor, at = self.reader(), 0
        while at < len(self.model):
            try:
                data = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = len(self.model)
            assert not any(self.model[at:data]), f"SEEK_DATA {descriptor} leaves out what lies at {at}-{data}"
            if data == len(self.model):
                return
            at = os.lseek(descriptor, data, os.SEEK_HOLE)
            assert data < at <= len(self.model), f"SEEK_HOLE from {data}: {at}"

    def drop_cache(self) -> None:
        descriptor = self.reader()
        self.note(f"drop cache {descriptor}")
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def compare(self) -> None:
        descriptor = self.reader()
        self.note(f"compare {descriptor}")
        self.same(os.pread(descriptor, 2 * MOST, 0), 0, len(self.model), "whole")

    # Writing.

    def put(self, start: int, data: bytes) -> None:
        if start > len(self.model):
            self.model.extend(bytes(start - len(self.model)))
        self.model[start : start + len(data)] = data

    def write(self) -> None:
        start, length = self.range()
        data, descriptor = self.bytes(length), self.writer()
        self.note(f"write {descriptor}: {start}+{length}")
        assert os.pwrite(descriptor, data, start) == length
        self.put(start, data)

    def write_direct(self) -> None:
        descriptor = self.descriptor(lambda flags: bool(flags & os.O_DIRECT), self.direct())
        pages = self.random.randrange(1, 8)
        start = self.random.randrange(MOST // PAGE - pages) * PAGE
        with mmap.mmap(-1, pages * PAGE) as buffer:
            buffer[:] = self.bytes(len(buffer))
            self.note(f"write directly {descriptor}: {start}+{len(buffer)}")
            assert os.pwritev(descriptor, [buffer], start) == len(buffer)
            self.put(start, buffer[:])

    def append(self) -> None:
        length = min(self.range()[1], MOST - len(self.model))
        if length > 0:
            data, descriptor = self.bytes(length), self.writer(append=True)
            self.note(f"append {descriptor}: {length} at {len(self.model)}")
            assert os.write(descriptor, data) == length
            self.model += data

    def map_and_write(self) -> None:
        if self.model:
            start, end = self.within()
            data, descriptor = self.bytes(end - start), self.both()
            self.note(f"map and write {descriptor}: {start}-{end}")
            with mmap.mmap(descriptor, len(self.model)) as mapped:
                mapped[start:end] = data
                if self.random.random() < 0.5:
                    mapped.flush()
            self.put(start, data)

    def write_mapping(self) -> None:
        if self.mapping is not None and self.mapped_writable and self.model:
            start, end = self.within()
            end = min(end, len(self.mapping))
            if start < end:
                self.note(f"write mapped {start}-{end}")
                data = self.bytes(end - start)
                self.mapping[start:end] = data
                self.put(start, data)

    def truncate(self) -> None:
        size = self.random.randrange(MOST) if self.random.random() < 0.9 else 0
        if self.path is not None and self.random.random() < 0.4:
            self.note(f"truncate by path: {size}")
            os.truncate(self.path, size)
        else:
            descriptor = self.writer()
            self.note(f"truncate {descriptor}: {size}")
            os.ftruncate(descriptor, size)
        self.model[size:] = bytes(max(0, size - len(self.model)))

    def truncate_by_opening(self) -> None:
        self.note("truncate by opening")
        os.close(self.open(os.O_WRONLY | os.O_TRUNC))
        self.opened.popitem()
        self.model.clear()

    def allocate(self) -> None:
        start, length = self.range()
        keep = self.random.random() < 0.4
        descriptor = self.writer()
        self.note(f"allocate {descriptor}: {start}+{length} keep {keep}")
        linux.fallocate(descriptor, KEEP_SIZE if keep else 0, start, length)
        if not keep:
            self.model.extend(bytes(max(0, start + length - len(self.model))))

    def punch(self) -> None:
        start, length = self.range()
        descriptor = self.writer()
        self.note(f"punch {descriptor}: {start}+{length}")
        linux.fallocate(descriptor, PUNCH | KEEP_SIZE, start, length)
        end = min(start + length, len(self.model))
        if start < end:
            self.model[start:end] = bytes(end - start)

    def zero(self) -> None:
        start, length = self.range()
        keep = self.random.random() < 0.5
        descriptor = self.writer()
        self.note(f"zero {descriptor}: {start}+{length} keep {keep}")
        linux.fallocate(descriptor, ZERO | (KEEP_SIZE if keep else 0), start, length)
        if not keep:
            self.model.extend(bytes(max(0, start + length - len(self.model))))
        end = min(start + length, len(self.model))
        if start < end:
            self.model[start:end] = bytes(end - start)

    def copy_within(self) -> None:
        if len(self.model) < 2:
            return
        start, end = self.within()
        to = self.random.randrange(MOST)
        if abs(to - start) < end - start:
            return
        end = min(end, start + MOST - to)
        source, target = self.reader(), self.writer()
        self.note(f"copy {source}: {start}-{end} to {target}: {to}")
        done = 0
        while done < end - start:
            count = os.copy_file_range(source, target, end - start - done, start + done, to + done)
            assert count, "copy_file_range ends early"
            done += count
        self.put(to, bytes(self.model[start:end]))

    def copy_out_and_in(self) -> None:
        if not self.model:
            return
        start, end = self.within()
        to = self.random.randrange(MOST - (end - start) + 1)
        other = os.open(self.scratch, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        try:
            self.note(f"copy {start}-{end} to another file and back to {to}")
            source, target, length = self.reader(), self.writer(), end - start
            os.lseek(source, start, os.SEEK_SET)
            done = 0
            while done < length:
                done += os.sendfile(other, source, None, length - done)
            self.same(os.pread(other, length, 0), start, end, "copied out")
            done = 0
            while done < length:
                done += os.copy_file_range(other, target, length - done, done, to + done)
            self.put(to, bytes(self.model[start:end]))
        finally:
            os.close(other)

    def sync(self) -> None:
        descriptor = self.writer()
        self.note(f"sync {descriptor}")
        self.random.choice((os.fsync, os.fdatasync))(descriptor)
        if self.mapping is not None and self.mapped_writable:
            self.mapping.flush()

    # Names.

    def rename(self) -> None:
        if self.path is not None:
            new = self.path.with_name(f"{self.scratch.name}.{self.random.randrange(1 << 32)}")
            self.note(f"rename to {new}")
            os.rename(self.path, new)
            self.path = new

    def link(self) -> None:
        if self.path is not None:
            new = self.path.with_name(f"{self.scratch.name}.{self.random.randrange(1 << 32)}")
            self.note(f"link to {new}")
            os.link(self.path, new)
            self.extra.append(new)
            if self.random.random() < 0.5:
                self.path, self.extra[-1] = self.extra[-1], self.path

    def unlink(self) -> None:
        if self.path is not None and self.opened:
            self.note("unlink")
            for path in (self.path, *self.extra):
                os.unlink(path)
            self.path = None


def main() -> None:
    """Exercise files one after the other; whatever differs ends it with an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=10_000, help="operations for each file")
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--read-only", action="store_true")
    arguments = parser.parse_args()
    for seed, path in enumerate(arguments.files, arguments.seed):
        try:
            Exerciser(path, seed=seed, read_only=arguments.read_only).run(arguments.steps)
        except BaseException as error:
            error.add_note(f"seed {seed}, file {path}")
            raise
        with contextlib.suppress(OSError):
            os.unlink(path.with_name(path.name + ".scratch"))


if __name__ == "__main__":
    main()
