"""A plain root file system, a tar file or a directory, as an image of one layer."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from layerfs import files
from layerfs.digest import Digest
from layerfs.errors import ArchiveError
from layerfs.oci import media_types
from layerfs.oci.config import History, ImageConfig
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import Manifest
from layerfs.transports.endpoint import CHUNK, Available, Resolved
from layerfs.transports.file_set import OpenFile
from layerfs.transports.spool import open_plain
from layerfs.tree.budget import DEFAULT_BUDGET, Budget

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from layerfs.compression import Readable
    from layerfs.oci.platform import Platform


class RootfsSource:
    """One image whose layer is a root file system; a Source.

    A tar file that is not compressed becomes the layer byte for byte. A compressed one, and a
    pipe, are written to a temporary file, plain; a directory is packed into one.

    Args:
        source: a tar file's path, a directory's path, or an open tar stream that stays the caller's.
        spool: makes an empty temporary file.
        created: when the image is made, RFC 3339; the history has it too.
        comment: what the history says of the layer.
        config: members of the config's ``config`` object (``Cmd``, ``Env``, ...).
        platform: whom the programs in it are for; this machine's when left out.
        budget: bounds the ratio of compression.
        warn: told what a layer cannot hold.

    Raises:
        LayerError, BudgetError: a compressed stream is damaged, or unpacks to too much; a file of the
            directory cannot be stored.
        ArchiveError: the source is empty.
        OSError: it cannot be read.
    """

    def __init__(
        self,
        source: Path | BinaryIO,
        *,
        spool: Callable[[], BinaryIO],
        created: str | None = None,
        comment: str | None = None,
        config: Mapping[str, Any] | None = None,
        platform: Platform | None = None,
        budget: Budget | None = DEFAULT_BUDGET,
        warn: Callable[[str], None],
    ) -> None:
        if isinstance(source, Path) and source.is_dir():
            self._file, diff_id = _pack(source, spool, warn)
        else:
            self._file = open_plain(source, spool=spool, budget=budget)
            diff_id = _hash(self._file)
        size = os.fstat(self._file.fileno()).st_size
        if not size:
            self._file.close()
            title = str(source) if isinstance(source, Path) else "the input"
            raise ArchiveError(f"{title} is empty: a tar archive is needed")
        self.config = ImageConfig.build(
            diff_ids=[diff_id],
            history=[History(created, created_by="layerfs import", comment=comment)],
            platform=platform,
            created=created,
            config=config,
        )
        layer = Descriptor(media_types.OCI_LAYER, diff_id, size)
        described = Descriptor.to(self.config.raw, media_types.OCI_CONFIG)
        self._manifest = Manifest.build(described, [layer])

    def images(self) -> Sequence[Available]:
        """Give the one image, which has no name."""
        return [Available(self._manifest.descriptor)]

    def manifest(self, image: Available | str | None = None, *, platform: Platform | None = None) -> Resolved:
        """Give the image's manifest, whatever is asked for."""
        return Resolved(self._manifest.descriptor, self._manifest.raw)

    def open(self, descriptor: Descriptor) -> AbstractContextManager[Readable]:
        """Open the config or the layer; see `Source.open`."""
        if descriptor.digest == self.config.digest:
            return nullcontext(io.BytesIO(self.config.raw))
        return OpenFile(self._file.fileno(), size=descriptor.size, owned=False)

    def close(self) -> None:
        """Close the tar file."""
        self._file.close()


def _hash(file: BinaryIO) -> Digest:
    hasher = Digest("sha256", "").hasher()
    buffer = memoryview(bytearray(CHUNK))
    offset = 0
    while count := os.preadv(file.fileno(), [buffer], offset):
        hasher.update(buffer[:count])
        offset += count
    return Digest("sha256", hasher.hexdigest())


def _pack(
    source: Path, spool: Callable[[], BinaryIO], warn: Callable[[str], None]
) -> tuple[BinaryIO, Digest]:
    """Write a directory as a layer into a temporary file, which the caller closes."""
    from layerfs.tree.archive import write_layer
    from layerfs.tree.diff import changes_between

    hasher = Digest("sha256", "").hasher()
    target = spool()
    root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with io.BufferedWriter(_Hashing(target.fileno(), hasher.update), CHUNK) as packed:
            write_layer(changes_between(None, root), packed.write, warn=warn)
    except BaseException:
        target.close()
        raise
    finally:
        os.close(root)
    return target, Digest("sha256", hasher.hexdigest())


class _Hashing(io.RawIOBase):
    """A file that hashes what is written to it; its descriptor stays the caller's."""

    def __init__(self, descriptor: int, update: Callable[[memoryview], object]) -> None:
        self._descriptor = descriptor
        self._update = update

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        view = memoryview(data)
        files.write_all(self._descriptor, view)
        self._update(view)
        return len(view)
