"""Where images come from and go to: each place is a Source or a Sink, and `copy` is the walk between two.

Nothing heavy is imported before a place is opened.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from layerfs.errors import ExistsError, InvalidError, NotFoundError, TransportError
from layerfs.value import frozen

if TYPE_CHECKING:
    from layerfs.oci.descriptor import Descriptor
    from layerfs.oci.manifest import Manifest
    from layerfs.oci.platform import Platform
    from layerfs.progress import Progress
    from layerfs.reference import Reference
    from layerfs.registry.settings import Options
    from layerfs.transports.endpoint import Available, Opens, Plans, Sink, Source
    from layerfs.tree.budget import Budget

__all__ = ["Place", "copy", "parse"]

_FORMS = {
    "oci": "oci:DIR[:TAG]",
    "oci-archive": "oci-archive:FILE[:TAG]",
    "docker-archive": "docker-archive:FILE[:NAME]",
}
_REGISTRY = "docker"
_REGISTRY_FORM = "docker://HOST/REPOSITORY[:TAG]"
# Transports of skopeo, by whose storage they reach.
_ELSEWHERE = {"containers-storage": "podman", "docker-daemon": "docker"}


@frozen
class Place:
    """A transport, a path, and the name of an image there (None where none is said).

    Of a registry the path is empty and the name a complete reference.
    """

    transport: str
    path: Path
    name: str | None = None

    @property
    def reference(self) -> Reference | None:
        """What is meant in a registry; None where this is none."""
        if self.transport != _REGISTRY or self.name is None:
            return None
        from layerfs.reference import Reference

        return Reference.parse(self.name)

    def source(
        self,
        *,
        spool: Callable[[], BinaryIO],
        budget: Budget,
        warn: Callable[[str], None],
        options: Options | None = None,
    ) -> Source:
        """Open the place for reading; the caller closes it, and asks it for `name`.

        Args:
            spool: makes an empty temporary file, for what cannot be read in place.
            budget: bounds the ratio of compression, as it bounds layers.
            warn: told of what is odd.
            options: how a registry is spoken with.

        Raises:
            NotFoundError: there is nothing at the path.
            InvalidError: what is there is malformed.
            OSError: it cannot be read.
        """
        reference = self.reference
        if reference is not None:
            from layerfs.transports import registry

            return registry.open_source(reference, options=options, warn=warn)
        if not self.path.exists():
            raise NotFoundError(
                f"there is no {self.path}",
                hint=f"{_FORMS[self.transport]} is the form; names of the store have no prefix",
            )
        if self.transport == "oci":
            from layerfs.transports import oci_layout

            return oci_layout.open_source(self.path)
        if self.transport == "oci-archive":
            from layerfs.transports import oci_archive

            return oci_archive.open_source(self.path, spool=spool, budget=budget, warn=warn)
        from layerfs.transports import docker_archive

        return docker_archive.open_source(self.path, spool=spool, budget=budget, warn=warn)

    def sink(
        self, *, options: Options | None = None, warn: Callable[[str], None] = lambda message: None
    ) -> Sink:
        """Open the place for writing; the caller commits and closes it, and puts the image under `name`.

        An archive is made, and none is replaced; a layout gets an image more.

        Args:
            options: how a registry is spoken with.
            warn: told of what is odd.

        Raises:
            ExistsError: there is an archive already, or another file that is not empty.
            TransportError: something else is there.
            OSError: it cannot be written.
        """
        reference = self.reference
        if reference is not None:
            from layerfs.transports import registry

            return registry.open_sink(reference, options=options, warn=warn)
        if self.transport == "oci":
            from layerfs.transports import oci_layout

            return oci_layout.LayoutSink(self.path)
        _refuse_existing(self.path)
        if self.transport == "oci-archive":
            from layerfs.transports import oci_archive

            return oci_archive.open_sink(self.path)
        from layerfs.transports import docker_archive

        return docker_archive.open_sink(self.path)

    @contextlib.contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Have errors about content that is not what was promised say of which image it is."""
        from layerfs.errors import VerificationError

        try:
            yield
        except VerificationError as error:
            raise type(error)(f"{self}: {error}", hint=error.hint) from error

    def __str__(self) -> str:
        if self.transport == _REGISTRY:
            return f"{_REGISTRY}://{self.name}"
        return f"{self.transport}:{self.path}" + ("" if self.name is None else f":{self.name}")


def _refuse_existing(path: Path) -> None:
    """See that an archive may be written here; a pipe, a device and an empty file will do."""
    with contextlib.suppress(FileNotFoundError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size > 0:
            raise ExistsError(
                f"{path} exists already, and an archive is not added to",
                hint="remove it first, or write another file; `layerfs save -o` replaces what is there",
            )


def has_transport(text: str) -> bool:
    """Say whether a place says which transport it is of, and so cannot be the name of an image."""
    return text.partition(":")[0] in _FORMS or text.startswith("docker://")


def parse(text: str) -> Place:
    """Read a place as skopeo writes it (containers-transports(5)); a path holds no colon.

    What has no prefix is an image in a registry, completed as docker does.

    Raises:
        InvalidError: it can be no image's name.
        TransportError: a path is missing.
    """
    transport, _, rest = text.partition(":")
    if transport == _REGISTRY and rest.startswith("//"):
        return _in_registry(rest[2:])
    if transport in _ELSEWHERE:
        peer = _ELSEWHERE[transport]
        raise InvalidError(
            f"there is no transport {transport} here",
            hint=f"{peer} save IMAGE | layerfs load, or layerfs save IMAGE | {peer} load",
        )
    if transport not in _FORMS:
        return _in_registry(text)
    path, _, name = rest.partition(":")
    if not path or "\0" in path:
        raise TransportError(f"{text[:300]!r} names no path", hint=f"write it as {_FORMS[transport]}")
    return Place(transport, Path(path), name or None)


def _in_registry(text: str) -> Place:
    from layerfs.reference import Reference

    host = text.removesuffix("/")
    if _is_host(host):
        raise InvalidError(
            f"{host!r} is a registry, and names nothing in it", hint=f"write {host}/REPOSITORY[:TAG]"
        )
    try:
        return Place(_REGISTRY, Path(), str(Reference.parse(text)))
    except InvalidError as error:
        forms = ", ".join([_REGISTRY_FORM, *_FORMS.values()])
        problem, hint = str(error), f"write one of {forms}"
        if text.startswith(("/", "./", "../")):
            problem = f"{text[:300]!r} is a path, which needs its transport before it"
        elif text.startswith(("https://", "http://")):
            problem, hint = f"{text[:300]!r} is a URL, and no image name", f"write {_REGISTRY_FORM}"
        elif text.startswith("dir:"):
            problem = "there is no transport dir here"
        raise InvalidError(problem, hint=error.hint or hint) from error


def _is_host(text: str) -> bool:
    """Say whether a text, which docker would complete to an image of its own, can only mean a registry."""
    host, colon, port = text.partition(":")
    is_address = host.count(".") == 3 and host.replace(".", "").isdecimal()
    return (host in ("localhost", "docker.io") or is_address) and (not colon or port.isdecimal())


def copy(
    source: Source,
    sink: Sink,
    *,
    image: Available | str | None = None,
    names: Sequence[str] = (),
    platform: Platform | None = None,
    progress: Progress | None = None,
) -> Descriptor:
    """Copy one image: the blobs that the sink lacks, bottom layer first, then the manifest.

    Bytes are handed on as they are. The sink is not committed, so that several images can go as one.

    Args:
        image: one of ``source.images()``, or its name; None where the source has one only.
        names: what the sink calls it.
        platform: which manifest of an index; this machine's when left out.
        progress: shown one task for each blob, in bytes.

    Returns:
        The descriptor of the manifest in the sink.

    Raises:
        NotFoundError: the source has no such image.
        InvalidError: something in it is malformed.
        VerificationError: a blob does not have its digest or size; out of a registry, twice.
    """
    from layerfs.errors import VerificationError
    from layerfs.oci.manifest import Manifest
    from layerfs.progress import Silent
    from layerfs.transports.endpoint import Expects, Plans

    shown = progress or Silent()
    resolved = source.manifest(image, platform=platform)
    manifest = Manifest.parse(resolved.raw, resolved.descriptor.media_type)
    if isinstance(sink, Plans):
        try:
            _copy_planned(source, sink, manifest, shown)
        except VerificationError:
            if not isinstance(source, Expects):
                raise
            # What came wrong is gone; what came whole stays and is not fetched again.
            _copy_planned(source, sink, manifest, shown)
    else:
        send(source, sink, (manifest.config, *manifest.layers), progress=shown)
    return sink.put_manifest(resolved.raw, manifest.media_type, names=names)


def _copy_planned(source: Source, sink: Plans, manifest: Manifest, progress: Progress) -> None:
    sink.plan(manifest)
    send(source, sink, (manifest.config, *manifest.layers), attempts=2, progress=progress)


def send(
    source: Opens, sink: Sink, blobs: Sequence[Descriptor], *, attempts: int = 1, progress: Progress
) -> None:
    """Copy those of these blobs that the sink lacks; with two attempts also what it used and did not keep.

    Layers that must not be handed on, and say where they are had, stay there, unless the sink needs them.
    """
    from layerfs.oci import media_types
    from layerfs.progress import Parts
    from layerfs.transports.endpoint import Expects, Plans, Prepares

    if not isinstance(sink, Plans):
        blobs = [each for each in blobs if not (each.urls and media_types.is_foreign_layer(each.media_type))]
    if isinstance(progress, Parts):
        progress.expect({part(descriptor): descriptor.size for descriptor in blobs})
    if isinstance(sink, Prepares):
        sink.prepare(blobs, source)
    elif isinstance(source, Expects):
        source.expect([descriptor for descriptor in blobs if not sink.has(descriptor)])
    sent = set()
    for _ in range(attempts):
        for descriptor in blobs:
            if not sink.has(descriptor):
                _send(source, sink, descriptor, progress)
                sent.add(descriptor.digest)
            elif isinstance(progress, Parts) and descriptor.digest not in sent:
                progress.exists(part(descriptor))


def part(descriptor: Descriptor) -> str:
    """Name a blob as progress shows it."""
    return f"blob {descriptor.digest.hex[:12]}"


def _send(source: Opens, sink: Sink, descriptor: Descriptor, progress: Progress) -> None:
    from layerfs.progress import Counted
    from layerfs.transports.endpoint import Overlaps, Proven

    with contextlib.ExitStack() as opened:
        task = progress.task(part(descriptor), descriptor.size)
        advance = opened.enter_context(task)
        stream = opened.enter_context(source.open(descriptor))
        if isinstance(sink, Overlaps):
            later = opened.pop_all()
            sink.begin_blob(descriptor, stream, advance=advance, done=later.close)
        else:
            proven = stream.proven if isinstance(stream, Proven) else None
            sink.put_blob(descriptor, Counted(stream.read, advance, proven=proven))
