"""The tests of `find`, as find(1) has them, on entries of an image."""

from __future__ import annotations

import argparse
import fnmatch
import os
import re
import stat

from layerfs.cli.parser import CommandParser, UsageError
from layerfs.tree.entry import Entry, Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerfs.reading import OpenImage
    from layerfs.seekable.overlaying import Node

    Test = Callable[[bytes, Node], bool]

TYPES = {
    Kind.FILE: "file",
    Kind.DIRECTORY: "dir",
    Kind.SYMLINK: "symlink",
    Kind.HARDLINK: "hardlink",
    Kind.CHARACTER: "char",
    Kind.BLOCK: "block",
    Kind.FIFO: "fifo",
    Kind.SOCKET: "socket",
}
_LETTERS = {
    "f": Kind.FILE,
    "d": Kind.DIRECTORY,
    "l": Kind.SYMLINK,
    "c": Kind.CHARACTER,
    "b": Kind.BLOCK,
    "p": Kind.FIFO,
    "s": Kind.SOCKET,
}
_FORMATS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.HARDLINK: stat.S_IFREG,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}
_UNITS = {"c": 1, "w": 2, "b": 512, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def mode_of(entry: Entry) -> int:
    """Give st_mode (inode(7))."""
    return _FORMATS[entry.kind] | (0o777 if entry.kind is Kind.SYMLINK else entry.mode)


def links_of(node: Node) -> int:
    """Give st_nlink; a directory's is as ext4 counts it."""
    if node.children is None:
        return node.links
    return 2 + sum(child.children is not None for child in node.children.values())


def configure(parser: CommandParser) -> None:
    """Add the tests, with their names of find(1)."""

    def add(name: str, metavar: str, text: str) -> None:
        parser.add_argument(name, metavar=metavar, action="append", default=[], help=text, dest=name[1:])

    add("-name", "GLOB", "the name, without directories, matches")
    add("-iname", "GLOB", "as -name, upper and lower case alike")
    add("-path", "GLOB", "the whole path matches")
    add("-regex", "PATTERN", "the whole path matches a regular expression (Python's)")
    add("-type", "LETTERS", "the type is one of f, d, l, c, b, p, s, with commas between")
    add("-size", "[+-]N[ckMG]", "the size, rounded up to whole units, is N, more (+) or less (-)")
    add("-perm", "[-/]MODE", "the octal mode is MODE, has all bits (-) or any (/) of it")
    add("-uid", "[+-]N", "the owner is user N, or above (+) or below (-)")
    add("-gid", "[+-]N", "the owner is group N, or above (+) or below (-)")
    add("-links", "[+-]N", "there are N names of the file, more (+) or less (-)")
    parser.flag("-empty", help="a file without data, or a directory without entries")
    parser.add_argument("-mindepth", metavar="N", type=int, default=0, help="leave out N levels")
    parser.add_argument("-maxdepth", metavar="N", type=int, default=None, help="go N levels down at most")
    parser.flag("-print0", help="end names with NUL instead of a line's end")


class Tests:
    """What a command line of `find` asks for.

    Raises:
        UsageError: a test's value makes no sense.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._least: int = arguments.mindepth
        self._most: int | None = arguments.maxdepth
        self._tests: list[Test] = []
        for glob in arguments.name:
            self._match(_glob(glob), whole=False)
        for glob in arguments.iname:
            self._match(_glob(glob, re.IGNORECASE), whole=False)
        for glob in arguments.path:
            self._match(_glob(glob), whole=True)
        for pattern in arguments.regex:
            self._match(_regex(pattern), whole=True)
        for letters in arguments.type:
            self._type(letters)
        for text in arguments.size:
            self._size(text)
        for text in arguments.perm:
            self._perm(text)
        for text in arguments.uid:
            self._number("-uid", text, lambda node: node.entry.uid)
        for text in arguments.gid:
            self._number("-gid", text, lambda node: node.entry.gid)
        for text in arguments.links:
            self._number("-links", text, links_of)
        if arguments.empty:
            self._tests.append(
                lambda path, node: (
                    not node.children
                    if node.children is not None
                    else node.entry.kind is Kind.FILE and not node.entry.size
                )
            )

    def search(self, image: OpenImage, path: bytes) -> Iterator[tuple[bytes, Node]]:
        """Give the files at and below a path for which every test holds, with their paths.

        Raises:
            OSError: there is no such path.
        """
        todo = [(path, image.tree.find(path, follow=False), 0)]
        while todo:
            here, node, depth = todo.pop()
            if depth >= self._least and all(test(here, node) for test in self._tests):
                yield here, node
            if node.children is not None and (self._most is None or depth < self._most):
                todo += [
                    (os.path.join(here, name), node.children[name], depth + 1)
                    for name in sorted(node.children, reverse=True)
                ]

    def _match(self, pattern: re.Pattern[bytes], *, whole: bool) -> None:
        def matches(path: bytes, node: Node) -> bool:
            text = path if whole else path.rstrip(b"/").rpartition(b"/")[2] or b"/"
            return pattern.fullmatch(text) is not None

        self._tests.append(matches)

    def _type(self, letters: str) -> None:
        kinds = [_LETTERS.get(letter) for letter in letters.split(",")]
        if None in kinds:
            raise _bad("-type", letters)
        self._tests.append(lambda path, node: node.entry.kind in kinds)

    def _size(self, text: str) -> None:
        unit = 512
        if text[-1:] in _UNITS:
            unit, text = _UNITS[text[-1]], text[:-1]
        self._number("-size", text, lambda node: -(-(node.entry.size or len(node.entry.target)) // unit))

    def _perm(self, text: str) -> None:
        sign, digits = (text[0], text[1:]) if text[:1] in ("-", "/") else ("", text)
        if not digits or not set(digits) <= set("01234567"):
            raise _bad("-perm", text)
        bits = int(digits, 8)
        if sign == "-":
            self._tests.append(lambda path, node: mode_of(node.entry) & bits == bits)
        elif sign == "/":
            self._tests.append(lambda path, node: not bits or bool(mode_of(node.entry) & bits))
        else:
            self._tests.append(lambda path, node: mode_of(node.entry) & 0o7777 == bits)

    def _number(self, test: str, text: str, value: Callable[[Node], int]) -> None:
        sign, digits = (text[0], text[1:]) if text[:1] in ("-", "+") else ("", text)
        if not digits.isascii() or not digits.isdigit():
            raise _bad(test, text)
        number = int(digits)
        if sign == "+":
            self._tests.append(lambda path, node: value(node) > number)
        elif sign == "-":
            self._tests.append(lambda path, node: value(node) < number)
        else:
            self._tests.append(lambda path, node: value(node) == number)


def _glob(glob: str, flags: int = 0) -> re.Pattern[bytes]:
    return re.compile(os.fsencode(fnmatch.translate(glob)), flags)


def _regex(pattern: str) -> re.Pattern[bytes]:
    try:
        return re.compile(os.fsencode(pattern), re.DOTALL)
    except re.error as error:
        raise UsageError(
            f"-regex {pattern!r}: {error}", hint="it is a regular expression of Python's"
        ) from None


def _bad(test: str, text: str) -> UsageError:
    return UsageError(f"{test} cannot take {text!r}", hint="`layerfs find --help` shows what it takes")
