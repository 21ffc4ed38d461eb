"""Digests: content by the name of its hash, such as ``sha256:9f86...``."""

import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from layerfs.errors import InvalidError

if TYPE_CHECKING:
    from hashlib import _Hash

# The algorithms that image-spec descriptor.md registers ("Registered Algorithms") and all tools know.
_HEX: Final = {"sha256": re.compile("[0-9a-f]{64}"), "sha512": re.compile("[0-9a-f]{128}")}


class Digest(NamedTuple):
    """The hash of some content, and which algorithm made it (image-spec descriptor.md, "Digests").

    `parse` is for text from outside; the constructor trusts its arguments.
    """

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read ``ALGORITHM:HEX``; hexadecimal digits are lower case, as the specification says.

        Raises:
            InvalidError: it is no digest, or of an algorithm other than sha256 and sha512.
        """
        algorithm, colon, encoded = text.partition(":")
        pattern = _HEX.get(algorithm)
        if not colon:
            raise InvalidError(f"{text[:200]!r} is not a digest: ALGORITHM:HEX is needed")
        if pattern is None:
            raise InvalidError(f"{algorithm[:40]!r} is not a digest algorithm known here (sha256, sha512)")
        if not pattern.fullmatch(encoded):
            raise InvalidError(f"{text[:200]!r} is not a {algorithm} digest in lower-case hexadecimal digits")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: str = "sha256") -> "Digest":
        """Hash bytes."""
        return cls(algorithm, hashlib.new(algorithm, data, usedforsecurity=False).hexdigest())

    def hasher(self) -> "_Hash":
        """Begin a hash of this digest's algorithm; compare its `hexdigest()` with `hex`."""
        return hashlib.new(self.algorithm, usedforsecurity=False)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
