"""Manifests as documents, byte for byte, verified whoever sent them ("Pulling manifests")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from layerfs.digest import Digest
from layerfs.errors import (
    InvalidError,
    UnsupportedError,
    VerificationError,
)
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.registry import problems
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
    if _content_type(answer) == "text/html":
        raise problems.not_a_registry(repository.reference.host, answer.status)
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


def put(
    repository: Repository, raw: bytes, media_type: str, what: str | Digest | None = None
) -> tuple[Descriptor, bool]:
    """Store a document under a tag or a digest; None is its own digest.

    Returns:
        The descriptor that points to it, and whether the registry keeps lists of referrers (OCI-Subject).

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
        listed = bool(answer.headers.get("OCI-Subject"))
    own = descriptor.digest
    if promised is not None and promised.algorithm == own.algorithm and promised != own:
        raise VerificationError(f"{repository.reference.name} stored {promised} in place of {own}")
    return descriptor, listed


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
