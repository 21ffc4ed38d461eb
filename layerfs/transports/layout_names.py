"""Names of images in an OCI layout's index: which annotations hold them, and how they are written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from layerfs.oci import media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.transports.endpoint import Available, reference_of
from layerfs.value import replace

# image-spec annotations.md: whatever tools put there, often the tag alone.
REF_NAME: Final = "org.opencontainers.image.ref.name"
# containerd's, and docker save's: always the complete name.
IMAGE_NAME: Final = "io.containerd.image.name"


def names_of(descriptor: Descriptor) -> list[str]:
    """Give the names that an entry of ``index.json`` has, the complete one first."""
    found = (descriptor.annotations.get(annotation) for annotation in (IMAGE_NAME, REF_NAME))
    return [name for name in dict.fromkeys(found) if name]


def list_images(manifests: Iterable[Descriptor]) -> list[Available]:
    """Gather the entries of ``index.json`` into images, each with all of its names.

    Attestations and other artifacts that no platform can run are left out.
    """
    found: dict[Descriptor, list[str]] = {}
    for descriptor in manifests:
        media_type = descriptor.media_type
        if not (media_types.is_manifest(media_type) or media_types.is_index(media_type)):
            continue
        if descriptor.artifact_type or (descriptor.platform and descriptor.platform.os == "unknown"):
            continue
        key = Descriptor(media_type, descriptor.digest, descriptor.size, platform=descriptor.platform)
        names = found.setdefault(key, [])
        names += [name for name in names_of(descriptor) if name not in names]
    return [Available(descriptor, tuple(names)) for descriptor, names in found.items()]


def named(descriptor: Descriptor, name: str) -> Descriptor:
    """Give a descriptor the annotations of a name.

    ``ref.name`` is the name exactly as given, which skopeo and umoci look for; a complete name stands in
    containerd's annotation too, so that docker and containerd load it under that name.
    """
    annotations = {**descriptor.annotations, REF_NAME: name}
    annotations.pop(IMAGE_NAME, None)
    reference = reference_of(name)
    if reference is not None:
        annotations[IMAGE_NAME] = str(reference)
    return replace(descriptor, annotations=annotations)


def named_as_docker_does(descriptor: Descriptor, name: str) -> Descriptor:
    """Give a descriptor the annotations of ``docker save``: the complete name, and the tag by itself."""
    reference = reference_of(name, bare=True)
    if reference is None or reference.tag is None:
        return named(descriptor, name)
    annotations = {**descriptor.annotations, IMAGE_NAME: str(reference), REF_NAME: reference.tag}
    return replace(descriptor, annotations=annotations)
