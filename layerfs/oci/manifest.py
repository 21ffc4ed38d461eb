"""A manifest: one image as its config and its layers (OCI's, and Docker's schema 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from layerfs.digest import Digest
from layerfs.errors import DocumentError
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.document import Members
from layerfs.value import field, frozen


@frozen
class Manifest:
    """One image's manifest (image-spec manifest.md); `raw` is the document as it came, byte for byte.

    `layers` stand bottom first.
    """

    raw: bytes = field(repr=False)
    media_type: str
    digest: Digest
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    subject: Descriptor | None = None
    artifact_type: str | None = None

    @classmethod
    def parse(cls, raw: bytes, media_type: str | None = None) -> Manifest:
        """Read a manifest.

        Args:
            raw: the document.
            media_type: what the descriptor or the registry called it, if anything did.

        Raises:
            BudgetError: it has more than 4 MiB.
            DocumentError: it is no manifest, is one of schema 1, is an index at the same time, or says
                itself that it is of another media type.
        """
        members = document.load(raw, what="image manifest")
        check_version(members)
        if members.has("manifests"):
            # What one tool verifies as an image, another would read as an index (CVE-2021-41190).
            members.fail("manifests", "an image manifest has no list of manifests")
        config = Descriptor.of(members.members("config"))
        own = check_media_type(members, media_type)
        if own is None:
            docker = config.media_type == media_types.DOCKER_CONFIG
            own = media_types.DOCKER_MANIFEST if docker else media_types.OCI_MANIFEST
        if not media_types.is_manifest(own):
            members.fail("mediaType", f"{own[:100]!r} is not an image manifest")
        if not isinstance(members.value.get("layers"), list):
            members.fail("layers", "a list is needed")
        subject = members.optional_members("subject")
        return cls(
            raw,
            own,
            Digest.of(raw),
            config,
            tuple(map(Descriptor.of, members.each("layers"))),
            members.text_map("annotations"),
            None if subject is None else Descriptor.of(subject),
            members.optional_text("artifactType"),
        )

    @classmethod
    def build(
        cls,
        config: Descriptor,
        layers: Sequence[Descriptor],
        *,
        media_type: str = media_types.OCI_MANIFEST,
        annotations: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Write a manifest; equal arguments give equal bytes. Docker's has no annotations."""
        members: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config.members(),
            "layers": [layer.members() for layer in layers],
        }
        if annotations:
            members["annotations"] = dict(annotations)
        return cls.parse(document.dump(members), media_type)

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor that points here."""
        return Descriptor(self.media_type, self.digest, len(self.raw), artifact_type=self.artifact_type)


def check_version(members: Members) -> None:
    """Refuse a document of Docker's schema 1, or of none that is known."""
    version = members.integer("schemaVersion")
    if version == 1:
        raise DocumentError(
            "schemaVersion",
            "Docker's schema 1 is not supported",
            hint="convert it: skopeo copy --format v2s2",
        )
    if version != 2:
        members.fail("schemaVersion", f"2 is needed, not {version}")


def check_media_type(members: Members, promised: str | None) -> str | None:
    """Give the media type of a document: what was promised and what it says itself must agree."""
    own = members.optional_text("mediaType")
    if own and promised and own != promised:
        members.fail("mediaType", f"{own[:100]!r} differs from {promised[:100]!r}, which was promised")
    return own or promised
