"""`cat`, `ls` and `find`: the files of images, which are neither unpacked nor mounted for it."""

from __future__ import annotations

import argparse
import gc
import os
import stat
import sys
import time

from layerfs.cli import finding, output, registry_options
from layerfs.cli.commands import Command
from layerfs.cli.context import Context, warn
from layerfs.cli.copy_options import add_platform, platform_of, spool
from layerfs.cli.parser import CommandParser
from layerfs.errors import LayerfsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerfs.reading import OpenImage
    from layerfs.seekable.overlaying import Node
    from layerfs.store import Store

_WHERE = "an image's name or id, or oci:DIR:TAG, docker://HOST/NAME:TAG and the like; then : and the path"
_HALF_A_YEAR = 182 * 86400
_LARGEST_LIST = 1 << 20


def split_place(text: str, is_image: Callable[[str], bool]) -> tuple[str, bytes]:
    """Part IMAGE:PATH; the path is the root when there is none.

    A path that begins with a slash begins at the last ``:/``. Else IMAGE is the longest beginning, up to
    a colon or the end, that `is_image` takes.
    """
    from layerfs import transports

    scheme = text.find("://") + 1
    cut = text.rfind(":/")
    if transports.has_transport(text) and ":" not in text[: max(cut, 0)]:
        # The slash begins the path of a layout, or of an archive.
        cut = -1
    if cut > scheme and text[cut : cut + 3] != "://":
        return text[:cut], os.fsencode(text[cut + 1 :])
    if scheme or transports.has_transport(text):
        return text, b"/"
    cut = len(text)
    while cut > 0:
        if is_image(text[:cut]):
            return text[:cut], os.fsencode(text[cut + 1 :]) or b"/"
        cut = text.rfind(":", 0, cut)
    return text, b"/"


class _Reader:
    """Opens the images of a command line, each once, and the store if one of them may be there."""

    def __init__(self, context: Context, program: str, arguments: argparse.Namespace) -> None:
        self._context = context
        self._store: Store | None = None
        self._arguments = arguments
        self._program = program
        self._open: dict[str, OpenImage] = {}
        self.status = 0
        # A tree of many files is made of as many objects, and looking for garbage among them takes half of
        # the time; there is none, and this process ends soon.
        gc.disable()

    def each(self, places: list[str], action: Callable[[OpenImage, str, bytes], None], failed: int) -> int:
        """Do `action` for every place, tell each failure, and give the exit status."""
        try:
            for place in places:
                try:
                    name, path = split_place(place, self._has_image)
                    image = self._open.get(name)
                    if image is None:
                        image = self._open[name] = self._read(name)
                    action(image, name, path)
                except (LayerfsError, OSError) as error:
                    if isinstance(error, BrokenPipeError):
                        raise
                    self.tell(error, failed)
        finally:
            for image in self._open.values():
                image.close()
            if self._store is not None:
                self._store.close()
        return self.status

    def _in_store(self) -> Store:
        if self._store is None:
            self._store = self._context.open_store()
        return self._store

    def _has_image(self, name: str) -> bool:
        return self._in_store().has_image(name)

    def _read(self, name: str) -> OpenImage:
        from layerfs import reading, transports
        from layerfs.tree.budget import DEFAULT_BUDGET

        platform, options = platform_of(self._arguments), registry_options.read(self._arguments)
        if ":" in name and transports.has_transport(name):
            return reading.open_place(
                transports.parse(name), platform=platform, options=options, spool=spool,
                budget=DEFAULT_BUDGET, warn=warn,
            )  # fmt: skip
        return self._in_store().read_image(name, platform=platform, options=options)

    def tell(self, error: LayerfsError | OSError, status: int) -> None:
        """Tell the user of a failure, as the program of that name does."""
        text = str(error)
        if isinstance(error, OSError) and error.strerror:
            name = output.plain(os.fsdecode(error.filename or ""))
            text = f"{name}: {error.strerror}" if name else error.strerror
        sys.stdout.flush()
        hint = getattr(error, "hint", None)
        lines = [f"layerfs: {self._program}: {text}", *([f"hint: {hint}"] if hint else [])]
        sys.stderr.write("".join(f"{output.words(line)}\n" for line in lines))
        self.status = max(self.status, status)


# -- cat


def _configure_cat(parser: CommandParser) -> None:
    parser.add_argument("places", metavar="IMAGE:PATH", nargs="+", help=_WHERE)
    add_platform(parser)
    registry_options.add(parser)


def _cat(context: Context, arguments: argparse.Namespace) -> int:
    def write(image: OpenImage, name: str, path: bytes) -> None:
        for data in image.read(path):
            sys.stdout.buffer.write(data)

    sys.stdout.flush()
    status = _Reader(context, "cat", arguments).each(arguments.places, write, 1)
    sys.stdout.buffer.flush()
    return status


# -- ls


def _configure_ls(parser: CommandParser) -> None:
    parser.add_argument("places", metavar="IMAGE[:PATH]", nargs="+", help=_WHERE)
    parser.flag("-a", "--all", help="show names that begin with a dot, and . and ..")
    parser.flag("-A", "--almost-all", help="show names that begin with a dot, but neither . nor ..")
    parser.flag("-d", "--directory", help="show directories themselves, not what is in them")
    parser.flag("-l", help="show type, mode, links, owner, size and time")
    parser.flag("-n", "--numeric-uid-gid", help="as -l, with owners as numbers")
    parser.flag("-R", "--recursive", help="show directories below, too")
    add_platform(parser)
    registry_options.add(parser)


def _ls(context: Context, arguments: argparse.Namespace) -> int:
    rows: list[dict[str, object]] = []
    several = len(arguments.places) > 1 or arguments.recursive
    blocks = 0

    def show(image: OpenImage, name: str, path: bytes) -> None:
        nonlocal blocks
        lists = _Lists(image, arguments)
        node = image.tree.find(path, follow=not (lists.long or arguments.directory))
        if node.children is None or arguments.directory:
            if context.json:
                rows.append(_described(path, node))
            else:
                lists.lines([(path, node)])
            blocks += 1
            return
        for here, directory in lists.directories(path, node):
            entries = lists.of(image, here, directory)
            if context.json:
                rows.extend(_described(os.path.join(here, each), child) for each, child in entries)
                continue
            if several:
                output.line(("\n" if blocks else "") + _shown(here) + ":")
            blocks += 1
            if lists.long:
                sizes = sum(-(-child.entry.size // 4096) * 4 for _, child in entries)
                output.line(f"total {sizes}")
            lists.lines(entries)

    status = _Reader(context, "ls", arguments).each(arguments.places, show, 2)
    if context.json:
        output.document(rows)
    return status


class _Lists:
    """Lists what directories of one image hold."""

    def __init__(self, image: OpenImage, arguments: argparse.Namespace) -> None:
        self._all: bool = arguments.all
        self._hidden: bool = arguments.all or arguments.almost_all
        self._recursive: bool = arguments.recursive
        self.long: bool = arguments.l or arguments.numeric_uid_gid
        self._users: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        if self.long and not arguments.numeric_uid_gid:
            self._users = _names(image, b"/etc/passwd")
            self._groups = _names(image, b"/etc/group")

    def directories(self, path: bytes, node: Node) -> Iterator[tuple[bytes, Node]]:
        """Give the directory, and those below if they are wanted, in the order of ls."""
        todo = [(path, node)]
        while todo:
            here, directory = todo.pop()
            yield here, directory
            if self._recursive:
                for name, child in sorted((directory.children or {}).items(), reverse=True):
                    if child.children is not None and (self._hidden or not name.startswith(b".")):
                        todo.append((os.path.join(here, name), child))

    def of(self, image: OpenImage, path: bytes, node: Node) -> list[tuple[bytes, Node]]:
        """Give what is shown of a directory."""
        found = sorted((node.children or {}).items())
        if not self._hidden:
            return [(name, child) for name, child in found if not name.startswith(b".")]
        if self._all:
            found[:0] = [(b".", node), (b"..", image.tree.find(path + b"/.."))]
        return found

    def lines(self, entries: list[tuple[bytes, Node]]) -> None:
        """Write entries, one a line."""
        if not self.long:
            for name, _ in entries:
                output.line(_shown(name))
            return
        rows = [self._row(name, node) for name, node in entries]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(6)]
        for mode, links, user, group, size, when, shown in rows:
            output.line(
                f"{mode} {links:>{widths[1]}} {user:<{widths[2]}} {group:<{widths[3]}} {size:>{widths[4]}}"
                f" {when} {shown}"
            )

    def _row(self, name: bytes, node: Node) -> tuple[str, str, str, str, str, str, str]:
        from layerfs.tree.entry import Kind

        entry = node.entry
        size = str(entry.size or len(entry.target))
        if entry.kind in (Kind.CHARACTER, Kind.BLOCK):
            size = f"{entry.device[0]}, {entry.device[1]}"
        target = f" -> {_shown(entry.target)}" if entry.kind is Kind.SYMLINK else ""
        return (
            stat.filemode(finding.mode_of(entry)),
            str(finding.links_of(node)),
            self._users.get(entry.uid, str(entry.uid)),
            self._groups.get(entry.gid, str(entry.gid)),
            size,
            _when(entry.mtime_ns // 1_000_000_000),
            _shown(name) + target,
        )


def _shown(name: bytes) -> str:
    """Write a name as ls does where nobody reads along, and without control characters on a terminal."""
    text = os.fsdecode(name)
    return "".join(c if c.isprintable() else "?" for c in text) if sys.stdout.isatty() else text


def _names(image: OpenImage, path: bytes) -> dict[int, str]:
    """Read which names the image's own users or groups have."""
    try:
        data = b"".join(image.read(path, 0, _LARGEST_LIST))
    except (LayerfsError, OSError):
        return {}
    found: dict[int, str] = {}
    for line in data.decode(errors="surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isascii() and fields[2].isdigit():
            found.setdefault(int(fields[2]), output.plain(fields[0]))
    return found


def _when(seconds: int) -> str:
    try:
        moment = time.localtime(seconds)
    except (OverflowError, OSError, ValueError):
        return str(seconds)
    recent = 0 <= time.time() - seconds < _HALF_A_YEAR
    return time.strftime("%b %e %H:%M" if recent else "%b %e  %Y", moment)


def _described(path: bytes, node: Node) -> dict[str, object]:
    entry = node.entry
    found: dict[str, object] = {
        "path": os.fsdecode(path),
        "type": finding.TYPES[entry.kind],
        "mode": f"{entry.mode:04o}",
        "links": finding.links_of(node),
        "uid": entry.uid,
        "gid": entry.gid,
        "size": entry.size,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.target:
        found["target"] = os.fsdecode(entry.target)
    if entry.device != (0, 0):
        found["device"] = list(entry.device)
    if node.file.digest is not None:
        found["sha256"] = node.file.digest
    return found


# -- find


def _configure_find(parser: CommandParser) -> None:
    parser.add_argument("places", metavar="IMAGE[:PATH]", nargs="+", help=_WHERE)
    finding.configure(parser)
    add_platform(parser)
    registry_options.add(parser)


def _find(context: Context, arguments: argparse.Namespace) -> int:
    tests = finding.Tests(arguments)
    rows: list[dict[str, object]] = []
    end = "\0" if arguments.print0 else "\n"

    def search(image: OpenImage, name: str, path: bytes) -> None:
        for found, node in tests.search(image, path):
            if context.json:
                rows.append(_described(found, node))
            else:
                sys.stdout.write((os.fsdecode(found) if arguments.print0 else _shown(found)) + end)

    status = _Reader(context, "find", arguments).each(arguments.places, search, 1)
    if context.json:
        output.document(rows)
    return status


_READS = """\
Nothing is unpacked: a layer that is unpacked already is read there, others through an index of their
blobs, which is made the first time. A path that begins with a slash begins at the last `:/`; else IMAGE is
the longest known name. Symlinks lead nowhere but inside the image."""

COMMANDS = {
    "cat": Command(
        description=_READS,
        examples=["layerfs cat debian:12:/etc/os-release", "layerfs cat oci:./layout:1:/etc/os-release"],
        configure=_configure_cat,
        run=_cat,
    ),
    "ls": Command(
        description=f"{_READS}\nThe exit status is 2 when something cannot be listed, as with ls.",
        examples=[
            "layerfs ls debian:12",
            "layerfs ls -l debian:12:/etc",
            "layerfs --json ls -R debian:12:/etc",
        ],
        configure=_configure_ls,
        run=_ls,
    ),
    "find": Command(
        description=f"{_READS}\nAll tests must hold for a file to be printed.",
        examples=["layerfs find debian:12:/usr -name '*.so' -type f", "layerfs find debian:12 -perm /4000"],
        configure=_configure_find,
        run=_find,
    ),
}
