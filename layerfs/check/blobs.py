"""Checks the files of the content store: that each is a blob, private, and what its digest says.

Documents, tables of contents and skeletons are always read; of a large layer's blob the length alone is
compared with what its manifest promises, unless all is to be read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from layerfs.blobs import Blobs
from layerfs.check.findings import Telling
from layerfs.check.refetching import Refetching, described
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.errors import InvalidError, LayerfsError, NotFoundError, VerificationError
from layerfs.images import familiar
from layerfs.progress import Progress
from layerfs.quarantine import Quarantine

# Blobs up to so many bytes are read whatever is asked for.
_SMALL: Final = 4 << 20
_PRIVATE: Final = 0o600
_MOST_NAMES: Final = 3
_NAMED: Final = (
    "SELECT name FROM tags WHERE manifest = ?1 OR manifest IN (SELECT manifest FROM links WHERE blob = ?1)"
    " ORDER BY name"
)


class _Found(NamedTuple):
    """One file; `digest` is None where its name is no blob's, `wrong` None if nothing is wrong."""

    path: Path
    digest: Digest | None
    size: int
    wrong: str | None
    open_to_others: bool = False


class BlobsCheck:
    """The check of the content store.

    Args:
        refetching: gets blobs from registries; None where none is to be asked.
        contents: read all of every blob.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        telling: Telling,
        *,
        quarantine: Quarantine,
        refetching: Refetching | None,
        repair: bool,
        contents: bool,
        progress: Progress,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._telling = telling
        self._quarantine = quarantine
        self._refetching = refetching
        self._repair = repair
        self._contents = contents
        self._progress = progress
        self._sizes: dict[Digest, int] = {}
        self._read: set[str] = set()

    def run(self) -> int:
        """Look at every file; give how many blobs there are."""
        self._sizes = {one.digest: one.size for one in described(self._database, self._blobs)}
        self._read = {
            digest
            for (digest,) in self._database.rows(
                "SELECT toc FROM layers WHERE toc IS NOT NULL UNION SELECT skeleton FROM layers"
                " WHERE skeleton IS NOT NULL UNION SELECT seek FROM seek_tables"
            )
        }
        count = 0
        wrong = []
        with self._progress.task("check blobs", None) as advance:
            for found in self._look_at_all():
                count += found.digest is not None
                advance(found.size)
                if found.wrong is not None or found.open_to_others:
                    wrong.append(found)
        # Documents first: they say how long the others are.
        for found in sorted(wrong, key=lambda each: each.digest in self._sizes):
            self._settle(found)
        self._check_tables()
        return count

    def _look_at_all(self) -> Iterator[_Found]:
        # Hashing is done without Python's lock.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for found in pool.map(self._look_at, list(self._paths())):
                if found is not None:
                    yield found

    def _paths(self) -> Iterator[Path]:
        root = self._blobs.root / "blobs"
        for algorithm in sorted(os.listdir(root)):
            directory = root / algorithm
            if algorithm in ("sha256", "sha512") and directory.is_dir() and not directory.is_symlink():
                for name in sorted(os.listdir(directory)):
                    yield directory / name
            else:
                yield directory

    def _look_at(self, path: Path) -> _Found | None:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None  # collected meanwhile
        digest = None
        with contextlib.suppress(InvalidError):
            digest = Digest.parse(f"{path.parent.name}:{path.name}")
        if digest is None or not stat.S_ISREG(status.st_mode):
            return _Found(path, None, 0, "it is no blob: no digest is its name, or it is no file")
        open_to_others = bool(stat.S_IMODE(status.st_mode) & ~_PRIVATE)
        return _Found(path, digest, status.st_size, self._fault(digest, status.st_size), open_to_others)

    def _fault(self, digest: Digest, size: int) -> str | None:
        expected = self._sizes.get(digest)
        if expected is not None and size != expected:
            return f"it has {size} bytes, not {expected}"
        if not self._contents and size > _SMALL and str(digest) not in self._read:
            return None
        try:
            self._blobs.verify(digest)
        except NotFoundError:
            return None
        except (VerificationError, OSError) as error:
            return str(error)
        return None

    def _settle(self, found: _Found) -> None:
        subject = "file" if found.digest is None else str(found.digest)
        if found.digest is None:
            subject = str(found.path.relative_to(self._blobs.root))
        if found.wrong is None:
            what = "others may read it"
            if self._repair:
                found.path.chmod(_PRIVATE)
                self._telling.repaired("blob", subject, what, how="its mode")
            else:
                self._telling.found("blob", subject, what)
            return
        wrong = found.wrong + self._whose(found.digest)
        if not self._repair:
            self._telling.found("blob", subject, wrong)
            return
        try:
            place = self._quarantine.take(found.path, called=f"blob-{subject}")
        except (LayerfsError, OSError) as error:
            self._telling.found("blob", subject, wrong, hint=f"it cannot be moved aside: {error}")
            return
        # Layers that were unpacked from it stay as they are; who needs it says so later.
        how = f"moved to {place}"
        if found.digest is not None and self._refetching is not None:
            with contextlib.suppress(LayerfsError, OSError):
                how = f"{self._refetching.fetch(found.digest)}; the damaged one was {how}"
        self._telling.repaired("blob", subject, wrong, how=how)

    def _whose(self, digest: Digest | None) -> str:
        """Name the images that need a blob, in brackets."""
        if digest is None:
            return ""
        rows = self._database.rows(_NAMED, str(digest))
        names = [familiar(name) for (name,) in rows]
        return (
            f" (of {', '.join(names[:_MOST_NAMES])}{', ...' if names[_MOST_NAMES:] else ''})" if names else ""
        )

    def _check_tables(self) -> None:
        """Look for tables of seek points that are gone; who needs one has it built."""
        for blob, seek in self._database.rows("SELECT blob, seek FROM seek_tables"):
            if self._blobs.is_whole(Digest.parse(seek)) or not self._blobs.has(Digest.parse(blob)):
                continue
            what = f"its table of seek points {seek} is missing"
            if self._repair:
                with self._database.transaction() as connection:
                    connection.execute("DELETE FROM seek_tables WHERE blob = ?", (blob,))
                self._telling.repaired("blob", blob, what, how="the blob, when the table is needed")
            else:
                self._telling.found("blob", blob, what)
