"""Images: a manifest, its config and layers, and the names by which users know them.

Names are stored in full (``docker.io/library/debian:12``) and shown short (``debian:12``). An image's
id is the digest of its config, as docker's is.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from layerfs import failpoints
from layerfs.blobs import Blobs
from layerfs.database import Database, now_ns
from layerfs.digest import Digest
from layerfs.errors import ArchiveError, InUseError, InvalidError, NotFoundError
from layerfs.leases import expire, leased
from layerfs.oci.config import History, ImageConfig
from layerfs.oci.manifest import Manifest
from layerfs.reference import Reference
from layerfs.value import frozen

# A document of an image that is larger is refused (PITFALLS: budgets).
DOCUMENT_MAXIMUM: Final = 4 << 20
# Inside of the class `list` is the method.
_Lines = list[str]
_Images = list["Image"]
_SHORT_ID: Final = r"(?:sha256:)?([0-9a-f]{2,64})"


@frozen
class Image:
    """One image of the store.

    `names` are short ones, such as ``debian:12``. `digest` is the manifest's. `size` is what its layers
    occupy unpacked, in bytes; of layers that are not unpacked here, what their blobs occupy.
    """

    names: tuple[str, ...]
    digest: Digest
    manifest: Manifest
    config: ImageConfig
    size: int
    stored_ns: int

    @property
    def id(self) -> Digest:
        """The digest of the config."""
        return self.manifest.config.digest

    @property
    def created(self) -> float | None:
        """When the image says that it was made, in seconds since 1970."""
        return seconds(self.config.created)

    @property
    def chain_ids(self) -> tuple[str, ...]:
        """The names of its layers, bottom first."""
        return tuple(map(str, self.config.chain_ids))


@frozen
class Stage:
    """One step of an image's history; `size` is its layer's in bytes, 0 for a change of config alone."""

    history: History
    size: int

    @property
    def created(self) -> float | None:
        """When it was made, in seconds since 1970."""
        return seconds(self.history.created)


class Images:
    """The images of one store."""

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        *,
        driver: str,
        reclaim: Callable[[Image, bool], list[str]],
        complete: Callable[[Image], None],
    ) -> None:
        """Use a store's.

        Args:
            reclaim: removes what only a deleted image needed, and says what that was, one line each; it is
                told whether to wait until all of that is gone.
            complete: gets what is not here of an image that was mounted lazily.
        """
        self._database = database
        self._blobs = blobs
        self._driver = driver
        self._reclaim = reclaim
        self._complete = complete

    def list(self) -> list[Image]:
        """Give every image, the newest in the store first."""
        rows = self._database.rows("SELECT manifest FROM images ORDER BY created_ns DESC, manifest")
        found = []
        for (manifest,) in rows:
            try:
                found.append(self._load(manifest))
            except NotFoundError:
                # What is damaged is to be seen, and what was removed a moment ago is not.
                if self._database.row("SELECT 1 FROM images WHERE manifest = ?", manifest) is not None:
                    raise
        return found

    def get(self, ref: str) -> Image:
        """Find an image by name, NAME@DIGEST, the digest of its manifest or config, or the start of its id.

        A name without a host stands for one of docker.io, else for one of localhost, as podman names images.

        Raises:
            NotFoundError: there is none.
            InvalidError: several images' ids start so, or this can be neither a name nor an id.
        """
        return self._load(self._resolve(ref))

    def name_of(self, ref: str) -> str | None:
        """Give the stored name that finds an image; None when there is none of that name."""
        named = self._named(ref)
        return None if named is None else named[0]

    def put(self, raw: bytes, media_type: str | None = None, names: Sequence[str] = ()) -> Image:
        """Add an image whose config and layers are in the content store, and give it these names.

        A name moves here from the image that has it. What is here already stays as it is.

        Raises:
            DocumentError: the manifest or the config is not one.
            ArchiveError: a blob is missing, or the config does not fit the layers.
        """
        return self.put_together([(raw, media_type, names)])[0]

    def put_together(self, images: Sequence[tuple[bytes, str | None, Sequence[str]]]) -> _Images:
        """Add several images, each with its names, or none of them; see `put`."""
        added = []
        for raw, media_type, names in images:
            manifest, config = self.parse(raw, media_type)
            digest = str(self._blobs.put(raw))
            if digest != str(manifest.digest):
                raise ArchiveError(
                    f"a manifest's digest is {manifest.digest}, in this store it would be {digest}"
                )
            added.append((digest, manifest, config, [full_name(name) for name in names]))
        failpoints.reach("image.put")
        with self._database.transaction(durable=True) as connection:
            for digest, manifest, config, full in added:
                self._put(connection, manifest, config)
                for name in full:
                    self._name(connection, name, digest)
            digests = [digest for digest, *_ in added]
            self._database.note(connection, "images", *digests)
        failpoints.reach("image.added")
        return [self._load(digest) for digest in digests]

    def _put(self, connection: sqlite3.Connection, manifest: Manifest, config: ImageConfig) -> None:
        digest = str(manifest.digest)
        links = {digest, str(manifest.config.digest), *(str(layer.digest) for layer in manifest.layers)}
        connection.execute(
            "INSERT OR IGNORE INTO images (manifest, media_type, config, created_ns) VALUES (?, ?, ?, ?)",
            (digest, manifest.media_type, str(manifest.config.digest), now_ns()),
        )
        connection.executemany(
            "INSERT OR IGNORE INTO links VALUES (?, ?)", [(digest, link) for link in links]
        )
        connection.executemany(
            "INSERT OR IGNORE INTO image_layers VALUES (?, ?)",
            [(digest, str(chain_id)) for chain_id in config.chain_ids],
        )

    def put_lazy(
        self, raw: bytes, media_type: str, layers: Sequence[str], names: Sequence[str] = ()
    ) -> Image:
        """Add an image of which the manifest and the config are here, and `layers` stand for its own.

        One that is all here already stays so. Raises as `put` does.
        """
        manifest = Manifest.parse(raw, media_type)
        full = [full_name(name) for name in names]
        digest = str(self._blobs.put(raw))
        with self._database.transaction(durable=True) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO images (manifest, media_type, config, created_ns) VALUES (?, ?, ?, ?)",
                (digest, manifest.media_type, str(manifest.config.digest), now_ns()),
            )
            connection.executemany(
                "INSERT OR IGNORE INTO links VALUES (?, ?)",
                [(digest, digest), (digest, str(manifest.config.digest))],
            )
            connection.executemany(
                "INSERT OR IGNORE INTO image_layers VALUES (?, ?)", [(digest, layer) for layer in layers]
            )
            for name in full:
                self._name(connection, name, digest)
            self._database.note(connection, "images", digest)
        return self._load(digest)

    def lacks_layers(self, image: Image) -> bool:
        """Say whether an image was only mounted lazily, so that not all of its layers are here."""
        query = "SELECT 1 FROM image_layers WHERE manifest = ? AND chain_id GLOB 'lazy:*' LIMIT 1"
        return self._database.row(query, str(image.digest)) is not None and not all(
            self._blobs.has(layer.digest) for layer in image.manifest.layers
        )

    def require_layers(self, image: Image) -> bool:
        """Have the layers of an image here, whole; say whether any had to be got.

        Raises:
            NotFoundError: it was only mounted lazily, and the rest cannot be had.
        """
        if not self.lacks_layers(image):
            return False
        self._complete(image)
        return True

    def parse(self, raw: bytes, media_type: str | None = None) -> tuple[Manifest, ImageConfig]:
        """Read a manifest and its config, which fit each other and whose blobs are all here.

        Raises as `put` does.
        """
        manifest = Manifest.parse(raw, media_type)
        for descriptor in (manifest.config, *manifest.layers):
            if not self._blobs.has(descriptor.digest):
                raise ArchiveError(
                    f"image {manifest.digest} needs blob {descriptor.digest}, which is missing"
                )
        config = ImageConfig.parse(self._blobs.read(manifest.config.digest, limit=DOCUMENT_MAXIMUM))
        if len(config.diff_ids) != len(manifest.layers):
            raise ArchiveError(
                f"image {manifest.digest} has {len(manifest.layers)} layers, its config"
                f" {len(config.diff_ids)} diff ids"
            )
        return manifest, config

    def tag(self, ref: str, name: str) -> Image:
        """Give an image a further name, which moves here from the image that has it; an index goes along.

        Raises:
            NotFoundError: there is no such image.
            InvalidError: this cannot be a name.
        """
        full = full_name(name)
        digest = self._resolve(ref)
        known = self.name_of(ref)
        failpoints.reach("image.tag")
        with self._database.transaction(durable=True) as connection:
            query = "SELECT digest FROM index_tags WHERE name = ?"
            index = connection.execute(query, (known,)).fetchone()
            try:
                self._name(connection, full, digest)
                if index is not None:
                    connection.execute("INSERT OR REPLACE INTO index_tags VALUES (?, ?)", (full, *index))
            except sqlite3.IntegrityError:
                raise NotFoundError(f"image {ref} was removed meanwhile") from None
            self._database.note(connection, "images", digest)
            if index is not None:
                self._database.note(connection, "indexes", *index)
        failpoints.reach("image.tagged")
        return self._load(digest)

    def remove(self, ref: str, *, force: bool = False, wait: bool = True) -> _Lines:
        """Take a name away, and delete the image when it was the last; say so in docker's lines.

        By id, an image goes with its name. `force` takes several names away, and the image's name from
        under containers; the image itself stays as long as these do. Without `wait` another process deletes
        the files of large layers, and may still be at it when this returns.

        An image that a running operation is at work with loses its names alone, and is garbage after that
        unless the operation names it.

        Raises:
            NotFoundError: there is no such image.
            InUseError: a container needs it, or an id has several names, and there is no `force`.
        """
        digest = self._resolve(ref)
        image = self._load(digest)
        name = self.name_of(ref)
        expire(self._database)
        failpoints.reach("image.remove")
        with self._database.transaction(durable=True) as connection:
            names = [
                row for (row,) in connection.execute("SELECT name FROM tags WHERE manifest = ?", (digest,))
            ]
            users = [
                row for (row,) in connection.execute("SELECT name FROM containers WHERE image = ?", (digest,))
            ]
            going = [name] if name in names else names
            last = len(going) == len(names)
            if name not in names and len(names) > 1 and not force:
                raise InUseError(
                    f"image {ref} has several names: {', '.join(map(familiar, names))}",
                    hint="remove them one by one, or all of them with --force",
                )
            if last and users and not force:
                raise InUseError(
                    f"image {ref} is used by container {users[0]}",
                    hint=f"layerfs rm {users[0]} first; or take the name alone with --force",
                )
            for one in going:
                self._unname(connection, str(one))
            deleted = last and not users and not leased(connection, "image", digest)
            if deleted:
                connection.execute("DELETE FROM images WHERE manifest = ?", (digest,))
            self._database.records.keep(connection, "images", digest)
            if self._blobs.durability != "none":
                self._database.records.sync("images", "indexes")
        failpoints.reach("image.removed")
        lines = [f"Untagged: {familiar(str(one))}" for one in going]
        if deleted:
            lines += [f"Deleted: {image.id}", *self._reclaim(image, wait)]
        return lines

    def history(self, ref: str) -> tuple[Stage, ...]:
        """Tell how an image was made, the newest step first."""
        image = self.get(ref)
        sizes = self._layer_sizes(image.manifest, image.config)
        stages = []
        for history in image.config.history:
            stages.append(Stage(history, 0 if history.empty_layer else next(sizes, 0)))
        return tuple(stages[::-1])

    def names_with(self, blob: Digest) -> _Lines:
        """Give the stored names of the images that need a blob, the one that was named last first."""
        rows = self._database.rows(
            "SELECT t.name FROM links l JOIN tags t ON t.manifest = l.manifest WHERE l.blob = ?"
            " ORDER BY t.updated_ns DESC",
            str(blob),
        )
        return [name for (name,) in rows]

    def raw_manifest(self, digest: Digest) -> bytes:
        """Read a manifest as it came in."""
        return self._blobs.read(digest, limit=DOCUMENT_MAXIMUM)

    def _name(self, connection: sqlite3.Connection, name: str, manifest: str) -> None:
        self._unname(connection, name)
        connection.execute("INSERT INTO tags VALUES (?, ?, ?)", (name, manifest, now_ns()))

    def _unname(self, connection: sqlite3.Connection, name: str) -> None:
        """Take a name away from whatever has it; an index, which goes by it too, loses it with the image."""
        records = self._database.records
        index = connection.execute("SELECT digest FROM index_tags WHERE name = ?", (name,)).fetchone()
        image = connection.execute("SELECT manifest FROM tags WHERE name = ?", (name,)).fetchone()
        connection.execute("DELETE FROM tags WHERE name = ?", (name,))
        if image is not None:
            records.keep(connection, "images", *image)
        if index is not None:
            records.keep(connection, "indexes", *index)

    def _load(self, digest: str) -> Image:
        row = self._database.row("SELECT media_type, created_ns FROM images WHERE manifest = ?", digest)
        if row is None:
            raise NotFoundError(f"there is no image {digest}")
        media_type, stored = row
        names = self._database.rows("SELECT name FROM tags WHERE manifest = ? ORDER BY name", digest)
        parsed = Digest.parse(digest)
        manifest = Manifest.parse(self.raw_manifest(parsed), media_type)
        config = ImageConfig.parse(self._blobs.read(manifest.config.digest, limit=DOCUMENT_MAXIMUM))
        size = sum(self._layer_sizes(manifest, config))
        return Image(tuple(familiar(name) for (name,) in names), parsed, manifest, config, size, stored)

    def _layer_sizes(self, manifest: Manifest, config: ImageConfig) -> Iterator[int]:
        rows = self._database.rows(
            "SELECT l.name, l.bytes FROM image_layers i JOIN layers l ON l.driver = ? AND l.name = i.chain_id"
            " WHERE i.manifest = ? AND l.state = 'committed'",
            self._driver,
            str(manifest.digest),
        )
        unpacked = dict(rows)
        pairs = zip(config.chain_ids, manifest.layers, strict=True)
        return iter([int(unpacked.get(str(chain_id), layer.size)) for chain_id, layer in pairs])

    def _resolve(self, ref: str) -> str:
        """Give the manifest digest of what a user calls an image."""
        if not ref.strip():
            raise InvalidError("the name of an image is empty", hint="layerfs images lists what there is")
        if named := self._named(ref):
            return named[1]
        digest = ref.partition("@")[2] or ref
        row = self._database.row("SELECT manifest FROM images WHERE manifest = ?", digest)
        if row is not None:
            return str(row[0])
        if matched := re.fullmatch(_SHORT_ID, ref):
            rows = self._database.rows(
                "SELECT manifest, config FROM images WHERE config GLOB ? ORDER BY created_ns DESC",
                f"sha256:{matched[1]}*",
            )
            if len({config for _, config in rows}) > 1:
                raise InvalidError(f"{ref!r} is the start of several images' ids", hint="write more of it")
            if rows:
                return str(rows[0][0])
        raise NotFoundError(f"there is no image {ref}", hint=self._advice(ref))

    def _advice(self, ref: str) -> str:
        from layerfs import similar

        known = [familiar(name) for (name,) in self._database.rows("SELECT name FROM tags ORDER BY name")]
        return similar.meant(ref, known) or "layerfs images lists what there is"

    def _named(self, ref: str) -> tuple[str, str] | None:
        """Give the stored name that a user means, and the digest of the manifest that has it."""
        for name in _full_names(ref):
            row = self._database.row("SELECT manifest FROM tags WHERE name = ?", name)
            if row is not None:
                return name, str(row[0])
        return None


def full_name(name: str) -> str:
    """Give the stored form of a name: host, repository and tag in full.

    Raises:
        InvalidError: it is not a name, or has a digest.
    """
    reference = Reference.parse(name)
    if reference.digest is not None:
        raise InvalidError(f"{name!r} has a digest; a name of an image has a tag at most")
    return str(reference)


def _full_names(ref: str) -> _Lines:
    """Give the stored names that a user may mean, the nearest first."""
    try:
        exact = full_name(ref)
    except InvalidError:
        return []
    local = Reference.local(ref)
    return [exact] if local is None else [exact, str(local)]


def familiar(name: str) -> str:
    """Give the short form of a stored name."""
    return Reference.parse(name).familiar()


def seconds(text: str | None) -> float | None:
    """Read an RFC 3339 time as seconds since 1970; None for what is none, or says nothing."""
    if not text or text.startswith("0001-01-01"):
        return None
    import datetime

    # Nanoseconds are too fine for the standard library.
    plain = re.sub(r"(\.\d{6})\d+", r"\1", text).replace("Z", "+00:00")
    try:
        return datetime.datetime.fromisoformat(plain).timestamp()
    except ValueError:
        return None
