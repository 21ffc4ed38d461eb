"""A descriptor: what points from one document to some content, by type, digest and size."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from layerfs.digest import Digest
from layerfs.oci.document import Members
from layerfs.oci.platform import Platform
from layerfs.value import field, frozen


@frozen
class Descriptor:
    """Type, digest and size in bytes of some content (image-spec descriptor.md).

    `data` is the content itself where a document carries it, proven to fit digest and size.
    """

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    data: bytes | None = None
    artifact_type: str | None = None
    platform: Platform | None = None

    @classmethod
    def of(cls, members: Members) -> Descriptor:
        """Read a descriptor out of a document.

        Raises:
            DocumentError: a member is missing or wrong.
        """
        digest = members.digest("digest")
        size = members.integer("size")
        data = members.data("data")
        if data is not None and (len(data) != size or Digest.of(data, digest.algorithm) != digest):
            members.fail("data", "does not have the descriptor's digest and size")
        platform = members.optional_members("platform")
        return cls(
            members.text("mediaType"),
            digest,
            size,
            members.texts("urls"),
            members.text_map("annotations"),
            data,
            members.optional_text("artifactType"),
            None if platform is None else Platform.of(platform),
        )

    @classmethod
    def to(cls, raw: bytes, media_type: str, algorithm: str = "sha256") -> Descriptor:
        """Describe a document."""
        return cls(media_type, Digest.of(raw, algorithm), len(raw))

    def members(self) -> dict[str, Any]:
        """Give the JSON members, in the specification's order."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.urls:
            found["urls"] = list(self.urls)
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.data is not None:
            found["data"] = base64.b64encode(self.data).decode()
        if self.artifact_type is not None:
            found["artifactType"] = self.artifact_type
        if self.platform is not None:
            found["platform"] = self.platform.members()
        return found
