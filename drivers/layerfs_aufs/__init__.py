"""Layers in aufs's format: mounted by the kernel's aufs where there is one, else by layerfs's FUSE union.

On disk: ``<layer>/diff`` is a branch of aufs (aufs(5)), so that an image's layers unpack as they are.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from layerfs_fuse import FuseDriver
from layerfs_fuse.aufs_dialect import AufsDialect
from layerfs_fuse.mounts import FuseMount
from layerfs_fuse.served import ServedLayers
from layerfs_fuse.trial import try_union

from layerfs.directories import opened, probing
from layerfs.driver import Change
from layerfs.errors import MountError, UnsupportedError
from layerfs.mount import Mount
from layerfs.tree.whiteouts import PREFIX, AufsWhiteouts
from layerfs_aufs.mounts import MOST_BRANCHES, AufsMount
from layerfs_aufs.trial import is_known, try_kernel

__all__ = ["AufsDriver", "AufsMount"]


class AufsDriver(ServedLayers):
    """One branch per layer; whichever of the two mounts them, they look the same."""

    name = "aufs"

    @classmethod
    def check(cls, root: Path) -> None:
        """Mount and write a scratch tree below `root` in the one way or the other."""
        refused = _refused(root)
        if refused is None:
            return
        with probing(root) as scratch:
            try:
                try_union(scratch, AufsDialect(), AufsWhiteouts(), front=FuseDriver.front)
            except UnsupportedError as error:
                raise UnsupportedError(
                    f"{_lack(refused)}, nor can layerfs's FUSE union serve it: {error}",
                    errno=error.errno,
                    hint=error.hint,
                ) from error

    @classmethod
    def fallback(cls, root: Path) -> str | None:
        """Say why the kernel's aufs does not serve here."""
        refused = _refused(root)
        return None if refused is None else f"served by layerfs's FUSE union: {_lack(refused)}"

    def changes(self, layer: str, below: Sequence[str]) -> Iterator[Change]:
        """Read the changes out of ``diff``, looking below only at the names that stand in it."""
        from layerfs.tree.aufs_diff import aufs_changes

        self._directories.require(layer, *below)
        with opened(self._diff(layer)) as upper:
            yield from aufs_changes(
                upper, open_lower=functools.partial(self._open_stack, below) if below else None
            )

    @property
    def _whiteouts(self) -> AufsWhiteouts:
        return AufsWhiteouts()

    def _union(self, source: str, lower: tuple[str, ...], upper: Path | None, work: Path | None) -> Mount:
        lowers = tuple(map(Path, lower))
        branches = lowers if upper is None else (upper, *lowers)
        # What is more than aufs can stack, the other way can.
        if self._has_kernel and len(branches) <= MOST_BRANCHES:
            return AufsMount(source, branches, writable=upper is not None)
        return self._served(source, lower, upper, work)

    def _served(
        self, source: str, lower: tuple[str, ...], upper: Path | None, work: Path | None
    ) -> FuseMount:
        lowers = tuple(map(Path, lower))
        log = self._log(upper or lowers[0])
        return FuseMount(source, lowers, upper, work, AufsDialect(), FuseDriver.front, log=log)

    def _is_plain(self, layer: str, *, read_only: bool) -> bool:
        """Say that of a layer to be read which has none of aufs's files; they stand in a branch's root."""
        return read_only and not any(
            os.fsencode(name).startswith(PREFIX) for name in os.listdir(self._diff(layer))
        )

    @functools.cached_property
    def _has_kernel(self) -> bool:
        return _refused(self.root) is None


def _refused(root: Path) -> MountError | None:
    """Try the kernel's aufs on a scratch directory; give its refusal, None when it serves."""
    if not is_known():
        return MountError("this kernel has no aufs", errno=errno.ENODEV)
    with probing(root) as scratch:
        try:
            try_kernel(scratch)
        except MountError as error:
            return error
    return None


def _lack(refused: MountError) -> str:
    """Say in one clause what the kernel's aufs lacks."""
    return f"{refused} ({errno.errorcode.get(refused.errno or 0, 'no errno')})"
