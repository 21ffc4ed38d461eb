"""What a stream may be able to do besides `compression.Readable`: protocols, and what asks for them."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from layerfs.files import descriptor_of


@runtime_checkable
class Skips(Protocol):
    """A stream that need not begin at its beginning."""

    def skip(self, count: int) -> None:
        """Leave out the next bytes; before anything was read."""
        ...


@runtime_checkable
class Portable(Protocol):
    """A stream that a forked process can read as well, as long as nothing was read before the fork.

    It opens what it needs with its first read; whoever forked may close it all the same.
    """

    def descriptors(self) -> list[int]:
        """Name the descriptors that must stay open in that process; called right before it is forked."""
        ...


@runtime_checkable
class Stops(Protocol):
    """A stream that may wait for long, and can be told to give up."""

    def stop(self) -> None:
        """Let the read that is under way, and every later one, fail soon; in any thread."""
        ...


def portable_descriptors(stream: object) -> list[int]:
    """Name the descriptors that a forked process needs to read a stream.

    Raises:
        OSError: it can only be read by this process.
    """
    return stream.descriptors() if isinstance(stream, Portable) else [descriptor_of(stream)]
