"""Gets blobs that are damaged or missing from the registries which the names of images say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from layerfs.blobs import Blobs
from layerfs.database import Database
from layerfs.digest import Digest
from layerfs.errors import InvalidError, LayerfsError, NotFoundError, TransportError, VerificationError
from layerfs.images import DOCUMENT_MAXIMUM
from layerfs.incoming import Incoming
from layerfs.oci.index import Index
from layerfs.oci.manifest import Manifest
from layerfs.reference import Reference

if TYPE_CHECKING:
    from layerfs.oci.descriptor import Descriptor
    from layerfs.registry.session import Session
    from layerfs.registry.settings import Options


class Refetching:
    """Registries to be asked, none before it is needed; a context manager that closes the connections."""

    def __init__(
        self, database: Database, blobs: Blobs, options: Options, *, warn: Callable[[str], None]
    ) -> None:
        """Args: `options` say how registries are spoken with; `warn` is told what was odd."""
        self._database = database
        self._blobs = blobs
        self._options = options
        self._warn = warn
        self._session: Session | None = None

    def fetch(self, digest: Digest) -> str:
        """Get a blob into the store, verified, and say where it came from.

        Raises:
            NotFoundError: no image that needs it has a name of a registry, or it is not known how long it is.
            TransportError: no registry gives it; of the last that was asked.
        """
        problem: LayerfsError | OSError = NotFoundError(
            f"no image with a name needs {digest}, so no registry is known to have it"
        )
        for name in self._names(digest):
            try:
                self._get(digest, name)
                return name
            except (LayerfsError, OSError) as error:
                problem = error
        raise problem

    def __enter__(self) -> Refetching:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._session is not None:
            self._session.close()

    def _get(self, digest: Digest, name: str) -> None:
        from layerfs.registry import manifests
        from layerfs.registry.download import Download

        if self._session is None:
            from layerfs.registry.session import Session

            self._session = Session(self._options, warn=self._warn)
        repository = self._session.repository(Reference.parse(name))
        if self._is_document(digest):
            raw, _ = manifests.get(repository, str(digest))
            if self._blobs.put(raw) != digest:
                raise VerificationError(f"{name} gave another document for {digest}")
            return
        descriptor = self._described(digest)
        if descriptor is None:
            raise NotFoundError(f"no manifest that is here says how long {digest} is")
        with (
            Download(repository, descriptor) as stream,
            Incoming(self._blobs, digest, descriptor.size, stream) as incoming,
        ):
            incoming.finish()
            if incoming.ingest is None:
                raise TransportError(f"{digest} was not stored")
            incoming.ingest.commit()

    def _names(self, digest: Digest) -> list[str]:
        rows = self._database.rows(
            "SELECT t.name FROM links l JOIN tags t ON t.manifest = l.manifest WHERE l.blob = ?1 UNION"
            " SELECT t.name FROM index_links l JOIN index_tags t ON t.digest = l.digest WHERE l.blob = ?1",
            str(digest),
        )
        return [name for (name,) in rows]

    def _is_document(self, digest: Digest) -> bool:
        query = (
            "SELECT EXISTS (SELECT 1 FROM images WHERE manifest = ?1)"
            " OR EXISTS (SELECT 1 FROM indexes WHERE digest = ?1)"
        )
        if self._database.row(query, str(digest)) == (1,):
            return True
        return any(one.digest == digest for one in self._members())

    def _described(self, digest: Digest) -> Descriptor | None:
        return next((one for one in described(self._database, self._blobs) if one.digest == digest), None)

    def _members(self) -> Iterator[Descriptor]:
        for raw, media_type in _documents(
            self._database, self._blobs, "SELECT digest, media_type FROM indexes"
        ):
            try:
                yield from Index.parse(raw, media_type).manifests
            except InvalidError:
                continue


def described(database: Database, blobs: Blobs) -> Iterator[Descriptor]:
    """Give what the manifests of images, and of indexes' other platforms, say of configs and layers."""
    linked = "SELECT DISTINCT blob, NULL FROM index_links"
    for query in ("SELECT manifest, media_type FROM images", linked):
        for raw, media_type in _documents(database, blobs, query):
            try:
                manifest = Manifest.parse(raw, media_type)
            except LayerfsError:
                continue
            yield manifest.config
            yield from manifest.layers


def _documents(database: Database, blobs: Blobs, query: str) -> Iterator[tuple[bytes, str | None]]:
    for name, media_type in database.rows(query):
        try:
            digest = Digest.parse(name)
            if blobs.is_whole(digest) and blobs.path(digest).stat().st_size <= DOCUMENT_MAXIMUM:
                yield blobs.read(digest, limit=DOCUMENT_MAXIMUM), media_type
        except (LayerfsError, OSError):
            continue
