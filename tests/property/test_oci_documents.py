"""Documents of images under generated input: bytes survive, and faults have a type."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from layerfs.digest import Digest
from layerfs.errors import DocumentError
from layerfs.oci import media_types
from layerfs.oci.config import History, ImageConfig
from layerfs.oci.index import Index
from layerfs.oci.manifest import Manifest

PARSERS = (Manifest.parse, Index.parse, ImageConfig.parse)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
digests = st.binary(max_size=3).map(Digest.of)
descriptors = st.fixed_dictionaries(
    {"mediaType": texts, "digest": digests.map(str), "size": st.integers(0, (1 << 63) - 1)},
    optional={"urls": st.lists(texts, max_size=2), "annotations": st.dictionaries(texts, texts, max_size=2)},
)
manifests = st.fixed_dictionaries(
    {"schemaVersion": st.just(2), "config": descriptors, "layers": st.lists(descriptors, max_size=3)},
    optional={"mediaType": st.just(media_types.OCI_MANIFEST), "x-unknown": values},
)
configs = st.fixed_dictionaries(
    {
        "architecture": texts,
        "os": texts,
        "rootfs": st.fixed_dictionaries(
            {"type": st.just("layers"), "diff_ids": st.lists(digests.map(str), max_size=4)}
        ),
    },
    optional={
        "x-unknown": values,
        "created": texts,
        "config": st.fixed_dictionaries({}, optional={"X": values}),
    },
)
known = st.sampled_from(
    ["schemaVersion", "mediaType", "manifests", "layers", "config", "rootfs", "history", "annotations", "os",
     "type", "diff_ids", "digest", "size", "data", "urls", "platform", "subject", "Env", "Cmd", "Labels",
     "empty_layer"]
)  # fmt: skip
near_documents = st.recursive(
    plain | st.just(2) | digests.map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(known | texts, inner, max_size=6),
)


def written(value: Any, indent: int | None, escape: bool) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=escape).encode()


class TestDigestsNeverChangeByParsing:
    """Issue 2: raw bytes survive a round trip: a digest never changes because we parsed it."""

    @given(manifests, st.none() | st.integers(0, 4), st.booleans())
    def test_of_a_manifest(self, value: Any, indent: int | None, escape: bool) -> None:
        raw = written(value, indent, escape)
        manifest = Manifest.parse(raw)
        assert (manifest.raw, manifest.digest) == (raw, Digest.of(raw))
        assert [layer.members() for layer in manifest.layers] == [
            {name: member for name, member in layer.items() if member or name not in ("urls", "annotations")}
            for layer in value["layers"]
        ]

    @given(configs, st.none() | st.integers(0, 4), st.booleans())
    def test_of_a_config(self, value: Any, indent: int | None, escape: bool) -> None:
        raw = written(value, indent, escape)
        config = ImageConfig.parse(raw)
        assert (config.raw, config.digest) == (raw, Digest.of(raw))


class TestUnknownMembersSurviveALayer:
    """image-spec config.md: "Any extra fields [...] are considered implementation specific"."""

    @given(configs, digests)
    def test_with_layer(self, value: Any, diff_id: Digest) -> None:
        config = ImageConfig.parse(written(value, None, False)).with_layer(diff_id, History(comment="x"))
        after = json.loads(config.raw)
        assert after.get("x-unknown") == value.get("x-unknown")
        assert after.get("config") == value.get("config")
        assert str(config.diff_ids[-1]) == str(diff_id)


class TestMalformedDocumentsGiveTypedErrors:
    """STYLE 8: parse at the edge; an error names the path into the document."""

    @given(st.binary(max_size=60))
    def test_any_bytes(self, raw: bytes) -> None:
        self.expect_nothing_else(raw)

    @given(st.text(alphabet='{}[]":,0123456789.eE+-truefalsn\\ud8', max_size=60))
    def test_any_json_like_text(self, text: str) -> None:
        self.expect_nothing_else(text.encode())

    @given(near_documents)
    def test_any_json_with_known_names(self, value: Any) -> None:
        self.expect_nothing_else(written(value, None, False))

    @given(manifests | configs, st.data())
    def test_a_truncated_or_broken_document(self, value: Any, data: st.DataObject) -> None:
        raw = bytearray(written(value, None, False))
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        self.expect_nothing_else(bytes(raw[: data.draw(st.integers(0, len(raw)))]))

    def expect_nothing_else(self, raw: bytes) -> None:
        for parse in PARSERS:
            try:
                parse(raw)
            except DocumentError as error:
                assert str(error)
