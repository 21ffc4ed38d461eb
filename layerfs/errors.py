"""Every error that layerfs raises on purpose, as one tree.

Failures of the operating system that need no translation (no space, I/O error, permission)
pass through as `OSError`; everything else is one of these::

    LayerfsError
    ├── InvalidError            input that breaks its specification (also a ValueError)
    │   ├── DocumentError       a JSON document of an image; names the path into it
    │   ├── LayerError          a layer's tar stream; names the entry and the offset
    │   ├── OptionError         options of a mount that there are not, or whose values make no sense
    │   └── ArchiveError        an OCI layout or a docker archive
    ├── BudgetError             valid input that is larger than the caller allows
    ├── VerificationError       content whose digest or size is not the expected one
    ├── NotFoundError           (also a LookupError)
    ├── ExistsError             the name is taken
    ├── InUseError              something living still needs it
    ├── UnsupportedError        this host, kernel, file system or version cannot do it
    ├── MountError              a mount or an unmount that failed (also an OSError)
    ├── ProcessError            a container's process that could not be started
    ├── StoreError              the store on disk is damaged or of another format
    └── TransportError          a source or a destination of images failed
        ├── UnreachableError      no answer: the registry's name, the network, TLS, a proxy, a time-out
        │   └── Interrupted         an answer that was cut; the rest can be asked for again
        ├── RegistryError         an answer of a registry that is no success
        │   ├── AuthenticationError   it wants credentials, other ones, or does not let these do it
        │   └── RateLimitError        it wants to be asked less often
        └── UntrustedError        where an answer sends us, or our credentials, and we do not go
"""

from __future__ import annotations


class LayerfsError(Exception):
    """The root of the tree; `hint` says what the user can do about it, if there is something."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InvalidError(LayerfsError, ValueError):
    """Input that breaks its specification."""


class DocumentError(InvalidError):
    """A JSON document that is not what its media type promises.

    `path` leads into the document, such as ``layers[2].digest``.
    """

    def __init__(self, path: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path or 'document'}: {problem}", hint=hint)
        self.path = path


class LayerError(InvalidError):
    """A layer's tar stream that cannot be accepted.

    `offset` counts bytes of the uncompressed stream (None when the fault has no place there),
    `entry` is the name of the entry as it stands in the archive.
    """

    def __init__(
        self,
        problem: str,
        *,
        entry: bytes | None = None,
        offset: int | None = None,
        hint: str | None = None,
    ) -> None:
        where = "" if entry is None else f" in entry {printable(entry)!r}"
        where += "" if offset is None else f" at byte {offset}"
        super().__init__(problem + where, hint=hint)
        self.entry = entry
        self.offset = offset


class OptionError(InvalidError):
    """Options of a mount (mount(8), -o) that there are not, or whose values make no sense; names them all."""


class ArchiveError(InvalidError):
    """An OCI layout or a docker archive whose parts do not fit together."""


class BudgetError(LayerfsError):
    """Input that asks for more than the caller's budget allows."""


class VerificationError(LayerfsError):
    """Content whose digest or size differs from what was promised."""


class NotFoundError(LayerfsError, LookupError):
    """A name, digest, container or layer that the store does not hold."""


class ExistsError(LayerfsError):
    """A name that is already taken."""


class InUseError(LayerfsError):
    """Something that cannot be changed or removed while another thing needs it."""


class UnsupportedError(LayerfsError):
    """Something that this host, kernel, file system or format version cannot do.

    `errno` is the answer of the probe that failed, None when no system call was involved.
    """

    def __init__(self, message: str, *, errno: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class MountError(LayerfsError, OSError):
    """A mount or an unmount that the kernel refused; `errno` holds its answer."""

    def __init__(self, message: str, *, errno: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class ProcessError(LayerfsError):
    """A container's process that never ran.

    `status` is the exit status that docker gives for it: 125 when layerfs failed, 126 when the
    program is not executable, 127 when it was not found.
    """

    def __init__(self, message: str, *, status: int = 125, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class StoreError(LayerfsError):
    """A store that is damaged, of another format, or not a store at all."""


class TransportError(LayerfsError):
    """A source or a destination of images that failed."""


class UnreachableError(TransportError):
    """A registry that gave no answer: its name, the network, TLS, a proxy or a time-out stood before it.

    `lasting` says that asking again at once would end the same way.
    """

    def __init__(self, message: str, *, lasting: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.lasting = lasting


class Interrupted(UnreachableError):
    """An answer whose connection was cut, or stood still, before its end; the rest can be asked for again."""


class RegistryError(TransportError):
    """A registry's answer that is no success.

    `status` is that of HTTP, `codes` are the error codes of its document (distribution-spec, "Error Codes").
    """

    def __init__(
        self, message: str, *, status: int, codes: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.codes = codes


class AuthenticationError(RegistryError):
    """A registry that wants credentials, or other ones, or does not let the given ones do this."""


class RateLimitError(RegistryError):
    """A registry that wants to be asked less often; `seconds` is how long, if it tells."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        codes: tuple[str, ...] = (),
        seconds: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, status=status, codes=codes, hint=hint)
        self.seconds = seconds


class UntrustedError(TransportError):
    """An answer that sends us, or our credentials, to a place where we do not go."""


def printable(name: bytes) -> str:
    """Show a name of any bytes on one line: UTF-8 where it is, escapes where it is not."""
    text = name.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
