"""An index: several manifests under one name, one for each platform (OCI's, and Docker's manifest list)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from layerfs.digest import Digest
from layerfs.errors import NotFoundError
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import check_media_type, check_version
from layerfs.oci.platform import Platform
from layerfs.value import field, frozen


@frozen
class Index:
    """A list of manifests (image-spec image-index.md); `raw` is the document as it came, byte for byte."""

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None) -> Index:
        """Read an index.

        Args:
            raw: the document.
            media_type: what the descriptor or the registry called it, if anything did.

        Raises:
            BudgetError: it has more than 4 MiB.
            DocumentError: it is no index, is an image manifest at the same time, or says itself that it is
                of another media type.
        """
        members = document.load(raw, what="image index")
        check_version(members)
        for name in ("layers", "config"):
            if members.has(name):
                members.fail(name, "an image index has no member of this name")
        own = check_media_type(members, media_type) or media_types.OCI_INDEX
        if not media_types.is_index(own):
            members.fail("mediaType", f"{own[:100]!r} is not an image index")
        subject = members.optional_members("subject")
        return cls(
            raw,
            own,
            Digest.of(raw),
            tuple(map(Descriptor.of, members.each("manifests"))),
            members.text_map("annotations"),
            None if subject is None else Descriptor.of(subject),
            members.optional_text("artifactType"),
        )

    @classmethod
    def build(
        cls,
        manifests: Sequence[Descriptor],
        *,
        media_type: str = media_types.OCI_INDEX,
        annotations: Mapping[str, str] | None = None,
    ) -> Index:
        """Write an index; equal arguments give equal bytes."""
        members: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [descriptor.members() for descriptor in manifests],
        }
        if annotations:
            members["annotations"] = dict(annotations)
        return cls.parse(document.dump(members), media_type)

    def select(self, platform: Platform | None = None) -> Descriptor:
        """Pick the manifest, or the nested index, that fits best; the first of equals.

        Args:
            platform: the wanted one; this machine's when left out.

        Raises:
            NotFoundError: there is none.
        """
        return select(self.manifests, platform)

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor that points here."""
        return Descriptor(self.media_type, self.digest, len(self.raw), artifact_type=self.artifact_type)


def select(manifests: Sequence[Descriptor], platform: Platform | None = None) -> Descriptor:
    """Pick the descriptor that fits a platform best; one that names no platform is the last resort.

    Raises:
        NotFoundError: there is none.
    """
    wanted = platform or Platform.host()
    best: tuple[int, int] | None = None
    unknown: int | None = None
    for place, descriptor in enumerate(manifests):
        if not (
            media_types.is_manifest(descriptor.media_type) or media_types.is_index(descriptor.media_type)
        ):
            continue
        if descriptor.platform is None:
            unknown = place if unknown is None else unknown
            continue
        rank = wanted.rank(descriptor.platform)
        if rank is not None and (best is None or rank < best[0]):
            best = (rank, place)
    if best is not None:
        return manifests[best[1]]
    if unknown is not None:
        return manifests[unknown]
    offered = sorted({str(found.platform) for found in manifests if found.platform is not None})
    raise NotFoundError(
        f"no image for {wanted} in the index",
        hint=f"there is {', '.join(offered[:20])}: choose one with --platform" if offered else None,
    )
