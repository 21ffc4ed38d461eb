"""The same random calls on the kernel's overlayfs and on the FUSE union: same results, same trees.

LAYERFS_DIFFERENTIAL=N makes N examples of each test instead of the few of a quick run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from layerfs_fuse import FuseMount, copy_up, nodes
from layerfs_fuse.overlay_dialect import OverlayDialect

from layerfs.mount import Bind, Mount, Overlay
from layerfs.mounting import open_mount
from layerfs.tree.copy import copy_tree
from layerfs.tree.overlay_diff import overlay_changes
from layerfs.tree.whiteouts import OverlayWhiteouts
from tests.support.union_calls import WHITEOUT, Call, Caller, calls, few_calls
from tests.support.union_layers import has_links, make_layers
from tests.support.union_views import View, moved_on, unlike, view

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount overlayfs"),
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse"),
]

EXAMPLES = int(os.environ.get("LAYERFS_DIFFERENTIAL", "0"))
thorough = settings(
    max_examples=EXAMPLES or 20,
    deadline=None,
    database=None,
    derandomize=not EXAMPLES,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
CLOSE_LOOK = 10
"""After so many calls every file is read, and not only those that were named."""

FOLLOWING = ("redirect_dir=follow", "index=off", "xino=on", "metacopy=on")


@dataclasses.dataclass
class Place:
    """The directories of one union."""

    directory: Path
    lower: tuple[Path, ...]

    def __post_init__(self) -> None:
        for each in (self.upper, self.work):
            each.mkdir(parents=True)
        self.upper.chmod(0o777)

    @property
    def upper(self) -> Path:
        return self.directory / "upper"

    @property
    def work(self) -> Path:
        return self.directory / "work"

    def overlay(self, options: Sequence[str]) -> Overlay:
        return Overlay("differential", self.lower, self.upper, self.work, tuple(options))

    def fuse(self) -> FuseMount:
        return FuseMount("differential", self.lower, self.upper, self.work, OverlayDialect())

    def changes(self) -> set[tuple[str, bytes]]:
        lower = Overlay("differential", self.lower, None, None, FOLLOWING)
        upper = os.open(self.upper, os.O_RDONLY)
        try:
            changes = overlay_changes(
                upper,
                open_lower=lambda: open_mount(lower),
                open_merged=lambda: open_mount(
                    Overlay("merged", (self.upper, *self.lower), None, None, FOLLOWING)
                ),
                whiteouts=OverlayWhiteouts(user=False),
            )
            return {(change.kind.value, change.entry.path) for change in changes if change.entry.path}
        finally:
            os.close(upper)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="layerfs-differential-"))
    back = os.open(".", os.O_PATH)
    try:
        yield place
    finally:
        os.fchdir(back)
        os.close(back)
        shutil.rmtree(place)


@contextlib.contextmanager
def mounted(mount: Mount) -> Iterator[int]:
    root = open_mount(mount)
    try:
        yield root
    finally:
        os.chdir("/")  # out of the tree
        os.close(root)


@contextlib.contextmanager
def large_from(size: int | None) -> Iterator[None]:
    """Let servers that start in the block take files of lower layers for large from so many bytes on."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (nodes, copy_up) if size is not None else ():
            patch.setattr(module, "LARGE", size)
        yield


class Pair:
    """Two trees in which the same calls are made; the first is the one that is right.

    Not `timed`: overlayfs's, which changes times itself when it completes a metadata-only copy. `held`: every
    file is open all the time, but nothing is read or locked by descriptors from before it was changed.
    """

    def __init__(self, right: int, tried: int, *, timed: bool, held: bool = False) -> None:
        self.timed = timed
        self.held = [_hold(root) for root in (right, tried)] if held else []
        self.roots = (right, tried)
        self.callers = (Caller(right), Caller(tried))
        self.views: tuple[View, View] = (view(right), view(tried))
        self.done: list[Call] = []
        self.check(self.views)

    def make(self, call: Call) -> bool:
        """Make a call in both and compare; False: the first cannot tell what would be right."""
        if call.name == "nothing":
            return True
        self.done.append(call)
        tried, right = (caller.make(call) for caller in reversed(self.callers))
        if self.held and call.name == "open" and not int(str(call.arguments[2])) & os.O_ACCMODE:
            for caller in self.callers:
                caller.make(Call("close", call.arguments[:1]))
        if right != tried and self._cannot_tell(call, right):
            return False
        if right != tried and not self._may_differ(call, right, tried):
            pytest.fail(f"{call}: {right!r} is right, not {tried!r}, after {self.done[:-1]}")
        everything = len(self.done) % CLOSE_LOOK == 0
        views = tuple(view(root, None if everything else call.paths) for root in self.roots)
        self.check((views[0], views[1]), call)
        self.views = (views[0], views[1])
        return True

    def _may_differ(self, call: Call, right: object, tried: object) -> bool:
        """Say whether the kernel does what is asked of file systems on FUSE in another way."""
        if call.name == "fallocate":
            return tried == "EOPNOTSUPP" and call.arguments[1] not in (0, 1, 2, 3, 16, 17)
        if call.name in ("chown", "lchown", "fchown") and call.arguments[1:] == (-1, -1):
            return right == "EPERM" and tried is None  # we are not told of what was to be changed
        if call.name == "fstat" and isinstance(right, dict):  # overlayfs counts a name that is gone
            return right | {"links": 0} == tried and right["links"] == 1
        if call.name == "seek":  # what a place in a directory is
            found = self.callers[0].opened().get(int(str(call.arguments[0])))
            return found is not None and stat.S_ISDIR(found.st_mode)
        return False

    def _cannot_tell(self, call: Call, right: object) -> bool:
        """Say whether the kernel fails where it need not."""
        if right == "EXDEV":  # it redirects no directory whose path is long
            return call.name.startswith("rename")
        if right == "ENOENT" and call.name in ("fchmod", "fchown", "futime", "fsetxattr"):
            return True  # it copies no file up that has lost its directory
        # Of a renamed directory it counts the whiteouts that are files with an attribute.
        path = call.paths[-1] if call.paths else str(call.arguments[0])
        return right == "ENOTEMPTY" and not any(names for _, _, names in os.walk(path))

    def check(self, views: tuple[View, View], call: Call | None = None) -> None:
        wrong = unlike(*views, times=self.timed)
        if call is not None:
            changed = [moved_on(old, new, what="number") for old, new in zip(self.views, views, strict=True)]
            wrong += [f"{path}: another inode number than before" for path in changed[0] ^ changed[1]]
            if self.timed and call.name not in UNTIMED:
                touched = [
                    moved_on(old, new, what="mtime") for old, new in zip(self.views, views, strict=True)
                ]
                wrong += [f"{path}: mtime changed in one of them" for path in touched[0] ^ touched[1]]
        if wrong:
            pytest.fail(f"after {self.done}:\n  " + "\n  ".join(wrong))

    def make_all(self, calls: Iterable[Call]) -> tuple[bool, View]:
        """Make calls while the first can tell what is right; says whether it could, and what is there."""
        try:
            told = all(self.make(call) for call in calls)
        finally:
            for caller in self.callers:
                caller.close_all()
            for descriptor in itertools.chain(*self.held):
                os.close(descriptor)
        after = view(self.roots[1])
        if told:
            self.check((view(self.roots[0]), after))
        return told, after


def _hold(root: int) -> list[int]:
    os.fchdir(root)
    paths = [os.path.join(above, name) for above, _, names in os.walk(".") for name in names]
    return [os.open(each, os.O_RDONLY) for each in paths if stat.S_ISREG(os.lstat(each).st_mode)]


UNTIMED = ("map_write", "poke", "map", "unmap", "open", "close", "fsync")
"""When these make the time of a file change is for the kernel to choose."""


def _options(*, linked: bool, metacopy: bool) -> list[str]:
    """Let the kernel do what POSIX asks for, as far as it can."""
    switches = {"index": linked, "metacopy": metacopy}
    return ["redirect_dir=on", "xino=on", *(f"{key}={'on' if on else 'off'}" for key, on in switches.items())]


def _with_lower(
    lower: Sequence[Path], place: Path, before: Sequence[Call], metacopy: bool
) -> tuple[Path, ...]:
    """Put a layer on top that the kernel has made."""
    made = Place(place / "made", tuple(lower))
    with mounted(made.overlay(_options(linked=False, metacopy=metacopy))) as root:
        caller = Caller(root)
        for each in before:
            caller.make(each)
        caller.close_all()
    return (made.upper, *lower)


@thorough
@given(
    before=few_calls,
    steps=calls,
    linked=st.booleans(),
    metacopy=st.booleans(),
    large=st.booleans(),
)
def test_calls_have_the_results_of_the_kernels_overlayfs(
    before: list[Call], steps: list[Call], linked: bool, metacopy: bool, large: bool
) -> None:
    with scratch() as place:
        lower = tuple(make_layers(place, linked=linked))
        if before:
            lower = _with_lower(lower, place, before, metacopy)
            linked = any(has_links(each) for each in lower)
        right, tried = Place(place / "right", lower), Place(place / "tried", lower)
        with (
            large_from(1 if large else None),
            mounted(right.overlay(_options(linked=linked, metacopy=metacopy))) as first,
            mounted(tried.fuse()) as second,
        ):
            told, after = Pair(first, second, timed=not metacopy, held=large).make_all(steps)
        _check_upper(tried, after)
        if told and not linked:
            assert right.changes() == tried.changes()
            with mounted(right.fuse()) as root:
                assert unlike(after, view(root), times=False) == []


@thorough
@given(steps=calls, linked=st.booleans(), large=st.booleans())
def test_calls_have_the_results_of_a_plain_directory(steps: list[Call], linked: bool, large: bool) -> None:
    """Overlayfs itself would say EXDEV to some of them, and is not asked."""
    with scratch() as place:
        tried = Place(place / "tried", tuple(make_layers(place, linked=linked, deep=True)))
        plain = place / "plain"
        plain.mkdir()
        with (
            large_from(1 if large else None),
            mounted(tried.fuse()) as second,
            mounted(Bind("plain", plain, read_only=False)) as first,
        ):
            copy_tree(second, first)
            steps = [each for each in steps if is_plain(each)]
            _, after = Pair(first, second, timed=True, held=large).make_all(steps)
        _check_upper(tried, after)


def is_plain(call: Call) -> bool:
    """Say whether a call means the same where there are no layers."""
    own = any("overlay." in each for each in call.arguments if isinstance(each, str))
    hides = call.name == "renameat2" and call.arguments[2] == WHITEOUT
    hidden = call.name == "mknod" and call.arguments[1] == stat.S_IFCHR and not call.arguments[3]
    # Overlayfs says so of lists that a lower file does not have, file systems say nothing.
    unlisted = (
        call.name.endswith("xattr")
        and any(isinstance(each, str) and each.startswith("system.posix_acl_") for each in call.arguments)
        and (call.name == "removexattr" or b"" in call.arguments)
    )
    # What is sent through a pipe of a file system on FUSE changes no time of the file.
    piped = call.name == "open" and call.arguments[1] == "fifo"
    return not (own or hides or hidden or unlisted or piped)


def _check_upper(tried: Place, after: View) -> None:
    """Look at our upper layer in another mount of ours, and in one of the kernel's."""
    with mounted(tried.fuse()) as root:
        again = view(root)
        assert unlike(after, again, links=False) == []
        assert moved_on(after, again, what="number") == set(), "inode numbers of another mount"
    with mounted(tried.overlay(_options(linked=False, metacopy=True))) as root:
        assert unlike(view(root), after, links=False) == []
