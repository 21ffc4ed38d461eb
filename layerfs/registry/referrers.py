"""What refers to a manifest: the referrers API, and the tag that stands in for it where there is none.

distribution-spec, "Listing Referrers", "Referrers Tag Schema" and "Pushing Manifests with Subject".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from layerfs.digest import Digest
from layerfs.errors import NotFoundError, RegistryError
from layerfs.oci import document, media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.index import Index
from layerfs.registry import documents
from layerfs.registry.answer import Answer
from layerfs.registry.origin import joined
from layerfs.registry.repository import Repository

# Answers of registries that do not know the API; what knows it answers 200, with an empty list at the least.
_UNKNOWN: Final = (400, 404, 405, 501)
_NEXT: Final = re.compile(r'<([^<>]*)>\s*;[^<]*\brel\s*=\s*"?next"?', re.IGNORECASE)
# Somebody else may write the list between our reading and our writing of it.
_ATTEMPTS: Final = 4
# A hundred tags a page is the least that registries give; none has so many.
_MOST_PAGES: Final = 10_000
_MOST_BYTES: Final = 64 << 20


def of(repository: Repository, digest: Digest, artifact_type: str | None = None) -> Iterator[Descriptor]:
    """List the manifests that name this one as their subject.

    Args:
        repository: where.
        digest: of the manifest that is referred to; it need not exist.
        artifact_type: only those of this type.

    Raises:
        DocumentError: what the registry gives is no index.
        LayerfsError: what `Repository.send` raises.
    """
    for found in _listed(repository, digest, artifact_type):
        if artifact_type is None or found.artifact_type == artifact_type:
            yield found


def add(repository: Repository, subject: Digest, referrer: Descriptor) -> None:
    """Add a manifest to the tag's list, for a registry that keeps none of its own; idempotent."""

    def with_it(found: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
        if any(each.digest == referrer.digest for each in found):
            return found
        return (*found, referrer)

    _change(repository, subject, with_it)


def discard(repository: Repository, subject: Digest, referrer: Digest) -> None:
    """Take a manifest that is deleted out of the tag's list; idempotent."""
    _change(repository, subject, lambda found: tuple(each for each in found if each.digest != referrer))


def pages(
    repository: Repository,
    path: str,
    *,
    query: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
    expect: tuple[int, ...] = (200,),
) -> Iterator[tuple[Answer, bytes]]:
    """Give a list page by page (RFC 8288), as `Repository.fetch` gives each; all are of the first one's host.

    Raises:
        RegistryError: the list has no end.
        LayerfsError: what `Repository.fetch` raises.
    """
    seen: set[str] = set()
    size = 0
    while path:
        if path in seen or len(seen) == _MOST_PAGES or size > _MOST_BYTES:
            raise RegistryError(f"{repository.reference.host} gives a list without end", status=200)
        seen.add(path)
        answer, raw = repository.fetch(
            path, limit=document.MAXIMUM_BYTES, query=query, headers=headers, expect=expect
        )
        size += len(raw)
        yield answer, raw
        match = _NEXT.search(answer.headers.get("Link", ""))
        path, query = _beside(answer.url, match[1]) if match else "", ()


def _beside(url: str, target: str) -> str:
    """Give the URL of a next page; registries behind a proxy may not know by what name they are called."""
    there = urlsplit(joined(url, target))
    return urlsplit(url)._replace(path=there.path, query=there.query).geturl()


def _listed(repository: Repository, digest: Digest, artifact_type: str | None) -> Iterator[Descriptor]:
    query = [] if artifact_type is None else [("artifactType", artifact_type)]
    for answer, raw in pages(
        repository, f"referrers/{digest}", query=query, expect=(200, *_UNKNOWN),
        headers={"Accept": media_types.OCI_INDEX},
    ):  # fmt: skip
        told = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        if answer.status != 200 or told not in (media_types.OCI_INDEX, "application/json"):
            yield from _tagged(repository, digest)
            return
        yield from Index.parse(raw, media_types.OCI_INDEX).manifests


def _tagged(repository: Repository, digest: Digest) -> tuple[Descriptor, ...]:
    try:
        raw, descriptor = documents.get(repository, _tag(digest), accept=(media_types.OCI_INDEX,))
    except NotFoundError:
        return ()
    return Index.parse(raw, descriptor.media_type).manifests


def _change(
    repository: Repository,
    subject: Digest,
    change: Callable[[tuple[Descriptor, ...]], tuple[Descriptor, ...]],
) -> None:
    found = _tagged(repository, subject)
    for _ in range(_ATTEMPTS):
        wanted = change(found)
        if wanted == found:
            return
        documents.put(repository, Index.build(wanted).raw, media_types.OCI_INDEX, _tag(subject))
        found = _tagged(repository, subject)
    if change(found) != found:
        raise RegistryError(
            f"others change the list of referrers of {subject} in {repository.reference.name} all the time",
            status=409, hint="try again",
        )  # fmt: skip


def _tag(digest: Digest) -> str:
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"
