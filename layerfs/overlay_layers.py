"""What drivers that keep layers in overlayfs's format share: all but their mounts.

The format is the kernel's (documentation, filesystems/overlayfs.rst).
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from layerfs.directories import opened
from layerfs.stacked_layers import StackedLayers
from layerfs.tree.change import Change
from layerfs.tree.whiteouts import OverlayWhiteouts


class OverlayLayers(StackedLayers):
    """A driver without its mounts."""

    own_xattrs = (b"trusted.overlay.", b"user.overlay.")
    copied_xattrs = frozenset({b"opaque", b"whiteout", b"whiteouts"})
    odd_xattrs = frozenset({b"redirect", b"metacopy"})

    def changes(self, layer: str, below: Sequence[str]) -> Iterator[Change]:
        """Read the changes out of ``diff``, looking below only at the names that stand in it."""
        from layerfs.tree.overlay_diff import overlay_changes

        self._directories.require(layer, *below)
        with opened(self._diff(layer)) as upper:
            yield from overlay_changes(
                upper,
                open_lower=functools.partial(self._open_stack, below) if below else None,
                open_merged=functools.partial(self._open_merged, (*below, layer)),
                whiteouts=self._whiteouts,
            )

    @property
    def format(self) -> str:
        """Name overlayfs's format, and whose attributes it is written with."""
        return "overlayfs" + (" (user.overlay)" if self._user_xattrs else "")

    def _open_merged(self, layers: Sequence[str]) -> int:
        """Open the merged tree with redirects and metadata-only copies followed, whoever made them."""
        return self._open_stack(layers)

    @functools.cached_property
    def _user_xattrs(self) -> bool:
        return not may_set_trusted(self.root)

    @property
    def _whiteouts(self) -> OverlayWhiteouts:
        return OverlayWhiteouts(user=self._user_xattrs)


def may_set_trusted(directory: Path) -> bool:
    """Try to set an attribute that only CAP_SYS_ADMIN outside of user namespaces may set."""
    try:
        os.setxattr(directory, "trusted.layerfs.probe", b"")
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
            return False
        raise
    try:
        os.removexattr(directory, "trusted.layerfs.probe")
    except OSError as error:
        if error.errno != errno.ENODATA:  # another process has probed at the same time
            raise
    return True
