"""`tags`, `delete`, `attach` and `referrers`: what a registry has beside the images themselves."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from layerfs.cli import output, registry_options
from layerfs.cli.commands import Command
from layerfs.cli.context import Context, warn
from layerfs.cli.copy_options import annotations_of
from layerfs.cli.parser import CommandParser, UsageError
from layerfs.cli.progress import PUSH, showing
from layerfs.cli.transfer import tell_pushed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.reference import Reference
    from layerfs.registry.repository import Repository


@contextlib.contextmanager
def _repository(arguments: argparse.Namespace) -> Iterator[Repository]:
    """Open the repository that a command is about."""
    from layerfs.registry.session import Session

    with Session(registry_options.read(arguments), warn=warn) as session:
        yield session.repository(_reference(arguments.name))


def _reference(text: str) -> Reference:
    """Read the name of an image in a registry; ``docker://`` may be left out."""
    from layerfs import transports

    reference = transports.parse(text).reference
    if reference is None:
        raise UsageError(f"{text[:300]!r} is in no registry", hint="write docker://HOST/REPOSITORY:TAG")
    return reference


def _artifact_type(text: str | None) -> str | None:
    """Check what an artifact is said to be, which image-spec manifest.md wants to be a media type."""
    from layerfs.oci import media_types

    if text is not None and not media_types.is_name(text):
        raise UsageError(
            f"{text[:300]!r} is no artifact type", hint="write a media type, such as application/spdx+json"
        )
    return text


def _target(repository: Repository) -> str:
    """Give the tag or the digest that the user named; a digest says more than a tag."""
    reference = repository.reference
    return str(reference.digest or reference.tag)


def _configure_tags(parser: CommandParser) -> None:
    parser.add_argument(
        "name", metavar="REPOSITORY", help="docker://HOST/REPOSITORY; docker:// may be left out"
    )
    registry_options.add(parser)


def _tags(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs.registry import manifests

    host = arguments.name.removeprefix("docker://").removesuffix("/")
    if "/" not in host and "." in host:
        raise UsageError(f"{host[:300]!r} names no repository", hint=f"write {host[:300]}/REPOSITORY")
    with _repository(arguments) as repository:
        if context.json:
            output.document(
                {"repository": repository.reference.name, "tags": list(manifests.tags(repository))}
            )
            return 0
        for tag in manifests.tags(repository):
            output.line(output.plain(tag))
    return 0


def _configure_delete(parser: CommandParser) -> None:
    parser.add_argument("name", metavar="IMAGE", help="docker://HOST/REPOSITORY:TAG, or ...@DIGEST")
    registry_options.add(parser)


def _delete(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs.registry import manifests

    with _repository(arguments) as repository:
        digest = repository.reference.digest
        if digest is None:
            digest = manifests.get(repository, _target(repository))[1].digest
        manifests.delete(repository, digest)
    if context.json:
        output.document({"repository": repository.reference.name, "digest": str(digest)})
    else:
        output.line(f"Deleted: {repository.reference.name}@{digest}")
    return 0


def _configure_attach(parser: CommandParser) -> None:
    parser.add_argument("name", metavar="IMAGE", help="docker://HOST/REPOSITORY:TAG, or ...@DIGEST")
    parser.add_argument(
        "files",
        metavar="FILE[:MEDIA-TYPE]",
        nargs="+",
        help="what to attach; application/octet-stream where no media type is said",
    )
    parser.add_argument(
        "--artifact-type",
        metavar="TYPE",
        required=True,
        help="what it is, a media type such as application/spdx+json",
    )
    parser.add_argument(
        "--annotation",
        metavar="NAME=TEXT",
        action="append",
        default=[],
        help="an annotation of the artifact; may be repeated",
    )
    parser.flag("-q", "--quiet", help="show no progress")
    registry_options.add(parser)


def _attach(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs.transports import registry
    from layerfs.transports.artifacts import attach

    annotations = annotations_of(arguments.annotation)
    artifact_type = _artifact_type(arguments.artifact_type)
    assert artifact_type is not None
    files = [_file(text) for text in arguments.files]
    reference = _reference(arguments.name)
    options = registry_options.read(arguments)
    with (
        contextlib.closing(registry.open_source(reference, options=options, warn=warn)) as source,
        contextlib.closing(registry.open_sink(reference, options=options, warn=warn)) as sink,
        showing(PUSH, quiet=arguments.quiet) as progress,
    ):
        descriptor = attach(
            sink,
            source.root().descriptor,
            files,
            artifact_type=artifact_type,
            annotations=annotations,
            progress=progress,
        )
        sink.commit()
    tell_pushed(context, descriptor, None)
    return 0


def _file(text: str) -> tuple[Path, str]:
    """Part a file's name from its media type."""
    from layerfs.oci import media_types

    path, _, media_type = text.rpartition(":")
    if not path or "/" not in media_type or Path(text).exists():
        path, media_type = text, "application/octet-stream"
    if not media_types.is_name(media_type):
        raise UsageError(
            f"{media_type[:300]!r} is no media type", hint="write FILE:TYPE/SUBTYPE, such as sbom:text/plain"
        )
    # Before anything is asked of the registry.
    os.stat(path)
    return Path(path), media_type


def _configure_referrers(parser: CommandParser) -> None:
    parser.add_argument("name", metavar="IMAGE", help="docker://HOST/REPOSITORY:TAG, or ...@DIGEST")
    parser.add_argument("--artifact-type", metavar="TYPE", help="only those of this media type")
    registry_options.add(parser)


def _referrers(context: Context, arguments: argparse.Namespace) -> int:
    from layerfs.registry import manifests

    artifact_type = _artifact_type(arguments.artifact_type)
    with _repository(arguments) as repository:
        digest = repository.reference.digest or manifests.get(repository, _target(repository))[1].digest
        found = list(manifests.referrers(repository, digest, artifact_type=artifact_type))
    if context.json:
        output.document({"subject": str(digest), "referrers": [one.members() for one in found]})
        return 0
    rows = [(output.plain(one.artifact_type or "-"), str(one.digest), output.size(one.size)) for one in found]
    output.table(["ARTIFACT TYPE", "DIGEST", "SIZE"], rows)
    return 0


COMMANDS = {
    "tags": Command(
        description="One a line, in the registry's order.",
        examples=["layerfs tags docker://localhost:5000/app"],
        configure=_configure_tags,
        run=_tags,
    ),
    "delete": Command(
        description="Deletes the manifest that the tag stands for, and with it all its other tags. The"
        " registry frees the\nblobs when it collects garbage; many forbid deletion unless told otherwise.",
        examples=["layerfs delete docker://localhost:5000/app:1"],
        configure=_configure_delete,
        run=_delete,
    ),
    "attach": Command(
        description="Files go as an artifact whose subject is the image, which stays as it is: signatures,"
        " bills of material\nand the like. `layerfs referrers` lists them. Prints the artifact's digest.",
        examples=["layerfs attach --artifact-type application/spdx+json localhost:5000/app:1 sbom.json"],
        configure=_configure_attach,
        run=_attach,
    ),
    "referrers": Command(
        description="Artifacts that name the image as their subject; by the referrers API where the registry"
        " has it, else by\nthe tag that stands in for it.",
        examples=["layerfs referrers localhost:5000/app:1"],
        configure=_configure_referrers,
        run=_referrers,
    ),
}
