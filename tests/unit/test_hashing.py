"""Hashing in a thread: the same digests, in whatever order their bytes come, and never lost."""

from __future__ import annotations

import hashlib
import random

from layerfs.hashing import Hasher


def test_digests_of_interleaved_streams_are_right() -> None:
    source = random.Random(1)
    pieces = [(source.randrange(5), source.randbytes(source.randrange(5000))) for _ in range(200)]
    with Hasher() as hasher:
        hashes = [hasher.begin("sha512" if number == 4 else "sha256") for number in range(5)]
        for number, data in pieces:
            hasher.update(hashes[number], data)
        for one in hashes:
            hasher.end(one)
        for number in (3, 4, 0, 1, 2):
            whole = b"".join(data for owner, data in pieces if owner == number)
            expected = (hashlib.sha512 if number == 4 else hashlib.sha256)(whole).hexdigest()
            assert str(hashes[number]) == str(hashes[number]) == expected


def test_what_was_handed_over_is_hashed_before_the_block_ends() -> None:
    with Hasher() as hasher:
        one = hasher.begin()
        hasher.update(one, bytes(5 << 20))
        hasher.end(one)
    assert str(one) == hashlib.sha256(bytes(5 << 20)).hexdigest()
