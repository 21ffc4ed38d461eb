"""Manifests and descriptors: OCI's and Docker's, and the documents that pretend."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from layerfs.digest import Digest
from layerfs.errors import BudgetError, DocumentError
from layerfs.oci import media_types
from layerfs.oci.descriptor import Descriptor
from layerfs.oci.manifest import Manifest

CONFIG = {"mediaType": media_types.OCI_CONFIG, "digest": str(Digest.of(b"c")), "size": 1}
LAYER = {"mediaType": media_types.OCI_LAYER_GZIP, "digest": str(Digest.of(b"l")), "size": 1}


def document(**changes: Any) -> bytes:
    members = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER], **changes}
    return json.dumps({name: value for name, value in members.items() if value is not ...}, indent=3).encode()


def test_raw_bytes_and_digest_are_those_that_came() -> None:
    raw = document(unknown={"x": 1.50})
    manifest = Manifest.parse(raw)
    assert manifest.raw == raw
    assert manifest.digest == Digest.of(raw)
    assert manifest.descriptor == Descriptor(media_types.OCI_MANIFEST, Digest.of(raw), len(raw))


def test_a_silent_document_takes_the_promised_media_type_or_its_config_s_kind() -> None:
    docker = document(config={**CONFIG, "mediaType": media_types.DOCKER_CONFIG})
    assert Manifest.parse(document()).media_type == media_types.OCI_MANIFEST
    assert Manifest.parse(docker).media_type == media_types.DOCKER_MANIFEST
    assert Manifest.parse(document(), media_types.DOCKER_MANIFEST).media_type == media_types.DOCKER_MANIFEST


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"schemaVersion": 1}, "schemaVersion"),
        ({"schemaVersion": ...}, "schemaVersion"),
        ({"schemaVersion": True}, "schemaVersion"),
        ({"manifests": []}, "manifests"),
        ({"config": ...}, "config"),
        ({"layers": ...}, "layers"),
        ({"layers": {}}, "layers"),
        ({"layers": [LAYER, 1]}, "layers[1]"),
        ({"layers": [LAYER, {**LAYER, "digest": "sha256:x"}]}, "layers[1].digest"),
        ({"layers": [{**LAYER, "size": -1}]}, "layers[0].size"),
        ({"layers": [{**LAYER, "size": True}]}, "layers[0].size"),
        ({"layers": [{**LAYER, "mediaType": None}]}, "layers[0].mediaType"),
        ({"layers": [{**LAYER, "annotations": {"a": 1}}]}, "layers[0].annotations.a"),
        ({"layers": [{**LAYER, "urls": ["u", 1]}]}, "layers[0].urls[1]"),
        ({"config": {**CONFIG, "data": "eA=="}}, "config.data"),
        ({"config": {**CONFIG, "platform": {"os": "linux"}}}, "config.platform.architecture"),
        ({"mediaType": media_types.OCI_INDEX}, "mediaType"),
        ({"mediaType": "text/html"}, "mediaType"),
    ],
)
def test_a_wrong_member_is_named_by_its_path(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(DocumentError) as caught:
        Manifest.parse(document(**changes))
    assert caught.value.path == path


def test_a_media_type_other_than_the_promised_one_is_refused() -> None:
    with pytest.raises(DocumentError, match="differs"):
        Manifest.parse(document(mediaType=media_types.OCI_MANIFEST), media_types.DOCKER_MANIFEST)


def test_a_manifest_over_the_budget_is_refused() -> None:
    with pytest.raises(BudgetError):
        Manifest.parse(document(annotations={"a": "x" * (4 << 20)}))


def test_carried_data_must_have_the_descriptor_s_digest() -> None:
    right = {**CONFIG, "data": base64.b64encode(b"c").decode()}
    assert Manifest.parse(document(config=right)).config.data == b"c"
    with pytest.raises(DocumentError):
        Manifest.parse(document(config={**right, "size": 2}))


def test_a_built_manifest_reads_back_and_is_deterministic() -> None:
    config = Descriptor(media_types.OCI_CONFIG, Digest.of(b"c"), 1, data=b"c")
    layer = Descriptor(media_types.OCI_LAYER, Digest.of(b"l"), 1, ("https://x",), {"a": "b"}, None, "t/x")
    manifest = Manifest.build(config, [layer], annotations={"k": "v"})
    again = Manifest.build(config, [layer], annotations={"k": "v"})
    assert manifest == again
    assert (manifest.config, manifest.layers, manifest.annotations) == (config, (layer,), {"k": "v"})


def test_equal_descriptors_are_one_key_whatever_their_annotations() -> None:
    one = Descriptor("t", Digest.of(b""), 0, annotations={"a": "1"})
    assert len({one, Descriptor("t", Digest.of(b""), 0, annotations={"a": "1"})}) == 1


def test_layer_media_types_follow_the_compression() -> None:
    from layerfs.compression import Compression

    assert media_types.layer_media_type(Compression.ZSTD) == media_types.OCI_LAYER_ZSTD
    assert media_types.layer_media_type(Compression.GZIP, docker=True) == media_types.DOCKER_LAYER_GZIP
    for compression in Compression:
        assert media_types.is_layer(media_types.layer_media_type(compression))
