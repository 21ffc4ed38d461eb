"""Digests: what is one, and what is none."""

from __future__ import annotations

import hashlib

import pytest

from layerfs.digest import Digest
from layerfs.errors import InvalidError

EMPTY = "sha256:" + hashlib.sha256(b"").hexdigest()


def test_text_survives_the_round_trip() -> None:
    for text in (EMPTY, "sha512:" + "0a" * 64):
        assert str(Digest.parse(text)) == text


def test_bytes_are_hashed_with_either_algorithm() -> None:
    assert str(Digest.of(b"")) == EMPTY
    assert Digest.of(b"x", "sha512").hex == hashlib.sha512(b"x").hexdigest()


def test_a_hasher_is_of_the_digest_s_own_algorithm() -> None:
    for algorithm in ("sha256", "sha512"):
        digest = Digest.of(b"abc", algorithm)
        hasher = digest.hasher()
        hasher.update(b"abc")
        assert hasher.hexdigest() == digest.hex


def test_equal_digests_are_one_key() -> None:
    assert {Digest.parse(EMPTY): 1}[Digest.of(b"")] == 1


@pytest.mark.parametrize(
    "text",
    ["", "sha256", "sha256:", EMPTY[:-1], EMPTY + "0", EMPTY.upper(), EMPTY + "\n", "md5:" + "0" * 32,
     "sha256:" + "0" * 128, "sha512:" + "0" * 64, "sha256:../../../../etc/passwd", "SHA256:" + "0" * 64],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        Digest.parse(text)
