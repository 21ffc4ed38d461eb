"""Strangers' JSON: bounded, strict, with errors that say where."""

from __future__ import annotations

import pytest

from layerfs.errors import BudgetError, DocumentError
from layerfs.oci import document


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b"1", b'"x"', b'{"a":1}x', b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":1e999}',
     b'{"a":' + b"9" * 5000 + b"}", b'\xef\xbb\xbf{}', b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":"\n"}',
     b'{"a":1,"a":1}', b'{"b":{"a":1,"a":2}}', b"[" * 100_000, b'{"a":' * 100_000, b"{'a':1}", b'{"a":1,}',
     b'{"a":01}', "{}".encode("utf-16")],
)  # fmt: skip
def test_what_is_no_plain_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(DocumentError):
        document.load(raw, what="test")


def test_a_document_over_the_limit_is_not_even_parsed() -> None:
    assert document.load(b"{}" + b" " * (document.MAXIMUM_BYTES - 2), what="test").value == {}
    with pytest.raises(BudgetError, match="4194305"):
        document.load(b"{}" + b" " * (document.MAXIMUM_BYTES - 1), what="test")


def test_an_error_names_the_path() -> None:
    members = document.load(b'{"a":[{"b":{"c d":true}},{"b":1}]}', what="test")
    first, second = members.each("a")
    with pytest.raises(DocumentError, match=r'^a\[0\]\.b\."c d": a whole number is needed, not a boolean$'):
        first.members("b").integer("c d")
    with pytest.raises(DocumentError, match=r"^a\[1\]\.b: an object is needed") as caught:
        second.members("b")
    assert caught.value.path == "a[1].b"


@pytest.mark.parametrize("value", [b"true", b"1.0", b'"1"', b"-1", b"[]", b"{}", b"9223372036854775808"])
def test_a_whole_number_is_no_boolean_fraction_text_or_giant(value: bytes) -> None:
    members = document.load(b'{"n":' + value + b"}", what="test")
    with pytest.raises(DocumentError, match=r"^n: "):
        members.integer("n")


def test_null_means_absent() -> None:
    members = document.load(b'{"a":null}', what="test")
    assert not members.has("a")
    assert members.optional_text("a") is None
    assert members.optional_members("a") is None
    assert members.texts("a") == ()
    assert members.text_map("a") == {}
    assert members.keys("a") == ()
    assert members.flag("a") is False
    assert members.data("a") is None
    with pytest.raises(DocumentError, match=r"^a: is missing"):
        members.text("a")


@pytest.mark.parametrize("value", [b'"YQ"', b'"Y Q=="', b'"\xc3\xa9"', b"1"])
def test_data_must_be_base64(value: bytes) -> None:
    with pytest.raises(DocumentError, match=r"^d: "):
        document.load(b'{"d":' + value + b"}", what="test").data("d")


def test_equal_values_are_written_as_equal_bytes() -> None:
    value = {"b": "\u00e4<&>", "a": [1, None]}
    assert document.dump(value) == '{"b":"\u00e4<&>","a":[1,null]}'.encode()
