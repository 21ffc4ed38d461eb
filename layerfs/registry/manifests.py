"""Manifests and tags of a repository, verified whoever sent them (distribution-spec, "Pulling manifests")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from urllib.parse import urljoin

from layerfs.digest import Digest
from layerfs.errors import (
    DocumentError,
    InvalidError,
    RegistryError,
    UnsupportedError,
    VerificationError,
)
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.registry.answer import Answer
from layerfs.registry.repository import Repository

ACCEPT: Final = (
    media_types.OCI_INDEX,
    media_types.OCI_MANIFEST,
    media_types.DOCKER_MANIFEST_LIST,
    media_types.DOCKER_MANIFEST,
)
_SCHEMA1: Final = (media_types.DOCKER_SCHEMA1, media_types.DOCKER_SCHEMA1_SIGNED)
# Media types that say nothing: what a server sends that does not know what it stores.
_VAGUE: Final = ("", "application/json", "application/octet-stream", "text/plain")


def get(
    repository: Repository, what: str | Digest, *, accept: Sequence[str] = ACCEPT
) -> tuple[bytes, Descriptor]:
    """Fetch a manifest or an index, byte for byte.

    Args:
        repository: where.
        what: a tag, or a digest.
        accept: the media types to ask for.

    Returns:
        The document, and the descriptor that points to it.

    Raises:
        NotFoundError: there is none.
        BudgetError: it has more than 4 MiB.
        VerificationError: it does not have the digest that was asked for, or that the registry promised.
        DocumentError: it is none, is two kinds at once, or says another media type than its Content-Type.
        UnsupportedError: it is of Docker's schema 1.
    """
    answer, raw = repository.fetch(
        f"manifests/{what}", limit=document.MAXIMUM_BYTES, headers={"Accept": ", ".join(accept)}
    )
    if isinstance(what, str) and ":" in what:
        what = Digest.parse(what)
    wanted = what if isinstance(what, Digest) else _promised(answer)
    if wanted is not None and Digest.of(raw, wanted.algorithm) != wanted:
        raise VerificationError(
            f"{repository.reference.name} gave a manifest that is not {wanted}",
            hint="the registry, a mirror or a proxy before it is damaged, or somebody altered it on the way",
        )
    digest = wanted if wanted is not None else Digest.of(raw)
    return raw, Descriptor(_media_type(raw, answer), digest, len(raw))


def head(repository: Repository, what: str | Digest, *, accept: Sequence[str] = ACCEPT) -> Descriptor | None:
    """Ask what a tag or a digest points to; None when there is none, or the registry does not tell.

    The digest is the registry's word: nothing is verified.
    """
    with repository.send(
        "HEAD", f"manifests/{what}", headers={"Accept": ", ".join(accept)}, expect=(200, 404)
    ) as answer:
        digest = _promised(answer)
        length = answer.length
        if answer.status == 404 or digest is None or length is None:
            return None
        return Descriptor(_content_type(answer), digest, length)


def put(repository: Repository, raw: bytes, media_type: str, what: str | Digest | None = None) -> Descriptor:
    """Store a manifest or an index under a tag, or under its digest when no tag is said.

    What it points to must be there already. With a `subject`, the list of referrers that stands in for a
    missing referrers API is kept too (distribution-spec, "Pushing Manifests with Subject").

    Raises:
        VerificationError: the registry stored something else.
        RegistryError: it does not take it.
    """
    descriptor = Descriptor.to(raw, media_type)
    with repository.send(
        "PUT", f"manifests/{what or descriptor.digest}", headers={"Content-Type": media_type}, body=raw,
        actions=("pull", "push"), expect=(200, 201, 202),
    ) as answer:  # fmt: skip
        promised = _promised(answer)
    if (
        promised is not None
        and promised.algorithm == descriptor.digest.algorithm
        and promised != descriptor.digest
    ):
        raise VerificationError(
            f"{repository.reference.name} stored {promised} in place of {descriptor.digest}"
        )
    return descriptor


def delete(repository: Repository, what: str | Digest) -> None:
    """Delete a manifest by its digest, or a tag where the registry can.

    Raises:
        NotFoundError: there is none.
        RegistryError: the registry does not allow it.
    """
    repository.send("DELETE", f"manifests/{what}", actions=("delete",), expect=(200, 202, 204)).close()


def tags(repository: Repository) -> Iterator[str]:
    """List the tags, in the registry's order.

    Raises:
        NotFoundError: the repository is unknown.
        RegistryError: the answer is no list of tags.
    """
    path = "tags/list"
    while path:
        answer, data = repository.fetch(path, limit=document.MAXIMUM_BYTES)
        path = _next(answer)
        try:
            found = document.load(data, what="list of tags").texts("tags")
        except DocumentError as error:
            raise RegistryError(
                f"{repository.reference.host} gave no list of tags: {error}", status=answer.status
            ) from error
        yield from found


def _next(answer: Answer) -> str:
    """Give the URL of the next page (RFC 8288), "" at the last one."""
    for part in answer.headers.get("Link", "").split(","):
        target, _, parameters = part.strip().partition(">")
        if target.startswith("<") and 'rel="next"' in parameters.replace(" ", "").replace(
            "rel=next", 'rel="next"'
        ):
            return urljoin(answer.url, target[1:])
    return ""


def _promised(answer: Answer) -> Digest | None:
    try:
        return Digest.parse(answer.headers.get("Docker-Content-Digest", ""))
    except InvalidError:
        return None


def _content_type(answer: Answer) -> str:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _media_type(raw: bytes, answer: Answer) -> str:
    """Say what a document is: its own word, that of the Content-Type, and what stands in it must agree."""
    told = _content_type(answer)
    if told in _SCHEMA1:
        raise UnsupportedError(
            "the image is of Docker's schema 1, which is not supported",
            hint="convert it: skopeo copy --format v2s2",
        )
    members = document.load(raw, what="manifest")
    own = members.optional_text("mediaType")
    if told in _VAGUE:
        told = ""
    if own and told and own != told:
        members.fail("mediaType", f"{own[:100]!r} differs from the Content-Type {told[:100]!r}")
    if members.has("manifests") and (members.has("layers") or members.has("config")):
        members.fail("manifests", "a document is an index or an image manifest, not both")
    if members.value.get("schemaVersion") == 1 and not members.has("config"):
        raise UnsupportedError(
            "the image is of Docker's schema 1, which is not supported",
            hint="convert it: skopeo copy --format v2s2",
        )
    found = own or told
    if not found:
        found = media_types.OCI_INDEX if members.has("manifests") else media_types.OCI_MANIFEST
    if members.has("manifests") and media_types.is_manifest(found):
        members.fail("manifests", "an image manifest has no list of manifests")
    if members.has("layers") and media_types.is_index(found):
        members.fail("layers", "an image index has no layers")
    return found
