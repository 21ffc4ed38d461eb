"""Manifests, tags and referrers of a repository (distribution-spec 1.1)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from layerfs.digest import Digest
from layerfs.errors import BudgetError, InvalidError, RegistryError, UnsupportedError, VerificationError
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.document import Members
from layerfs.registry import documents
from layerfs.registry import referrers as lists
from layerfs.registry.documents import ACCEPT, get, head
from layerfs.registry.repository import Repository

__all__ = ["ACCEPT", "delete", "get", "head", "put", "referrers", "tags"]


def put(repository: Repository, raw: bytes, media_type: str, what: str | Digest | None = None) -> Descriptor:
    """Store a manifest or an index under a tag, or under its digest when no tag is said.

    What it points to must be there already. With a `subject`, the list of referrers that stands in for a
    missing referrers API is kept too (distribution-spec, "Pushing Manifests with Subject").

    Raises:
        VerificationError: the registry stored something else.
        RegistryError: it does not take it.
    """
    descriptor, listed = documents.put(repository, raw, media_type, what)
    members = document.load(raw, what="manifest")
    subject = members.optional_members("subject")
    if subject is not None and not listed:
        lists.add(repository, subject.digest("digest"), _as_referrer(descriptor, members))
    return descriptor


def delete(repository: Repository, what: str | Digest) -> None:
    """Delete a manifest by its digest, or a tag where the registry can do that.

    Raises:
        NotFoundError: there is none.
        RegistryError: the registry does not allow it.
    """
    subject = None
    if ":" in str(what):
        # What cannot be read can be deleted all the same.
        with contextlib.suppress(BudgetError, InvalidError, UnsupportedError, VerificationError):
            raw, _ = get(repository, what)
            subject = document.load(raw, what="manifest").optional_members("subject")
    repository.send("DELETE", f"manifests/{what}", actions=("delete",), expect=(200, 202, 204)).close()
    if subject is not None:
        lists.discard(repository, subject.digest("digest"), Digest.parse(str(what)))


def tags(repository: Repository) -> Iterator[str]:
    """List the tags, in the registry's order.

    Raises:
        NotFoundError: the repository is unknown.
        RegistryError: the answer is no list of tags.
    """
    for answer, data in lists.pages(repository, "tags/list"):
        try:
            found = document.load(data, what="list of tags").texts("tags")
        except InvalidError as error:
            raise RegistryError(
                f"{repository.reference.host} gave no list of tags: {error}",
                status=answer.status,
                hint="check host and port: is it a registry?",
            ) from error
        yield from found


def referrers(
    repository: Repository, digest: Digest, artifact_type: str | None = None
) -> Iterator[Descriptor]:
    """List what names a manifest as its subject, by the API or by the tag that stands in for it.

    Raises:
        DocumentError: what the registry gives is no index.
    """
    return lists.of(repository, digest, artifact_type)


def _as_referrer(descriptor: Descriptor, members: Members) -> Descriptor:
    """Describe a manifest as lists of referrers do: with its type and annotations."""
    kind = members.optional_text("artifactType")
    config = members.optional_members("config")
    if not kind and config is not None and not media_types.is_index(descriptor.media_type):
        kind = config.text("mediaType")
    return Descriptor(
        descriptor.media_type,
        descriptor.digest,
        descriptor.size,
        annotations=members.text_map("annotations"),
        artifact_type=kind or None,
    )
