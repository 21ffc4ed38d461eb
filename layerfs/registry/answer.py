"""An answer of a registry: its head, and a body that is read as it comes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Self

from layerfs.errors import BudgetError, RegistryError
from layerfs.registry import problems
from layerfs.registry.origin import joined

if TYPE_CHECKING:
    import urllib3

# Reading so much takes less time than a new connection does.
_SMALL: Final = 64 << 10


class Answer:
    """An answer; a context manager. Its connection is used again when the body was read to its end.

    `headers` are found whatever their case; `url` is where the answer came from, after redirects.
    """

    __slots__ = ("_at_end", "_host", "_response", "headers", "status", "url")

    def __init__(self, response: urllib3.BaseHTTPResponse, url: str, *, host: str) -> None:
        self._response = response
        self._host = host
        self._at_end = False
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers
        self.url = url

    @property
    def length(self) -> int | None:
        """How many bytes the body has, as the head says (Content-Length); None when it does not."""
        text = self.headers.get("Content-Length", "")
        return int(text) if re.fullmatch("[0-9]{1,18}", text) else None

    def location(self) -> str:
        """Give the absolute URL of the Location header.

        Raises:
            RegistryError: there is none.
            UntrustedError: it is no URL.
        """
        found = self.headers.get("Location")
        if not found:
            raise RegistryError(f"{self._host} does not say where to go on (no Location)", status=self.status)
        return joined(self.url, found)

    def read(self, size: int, /) -> bytes:
        """Read on: as many bytes as asked for, fewer before the end only; b"" at the end.

        Raises:
            Interrupted: the connection was cut, or stood still for too long, before the end of the body.
        """
        from urllib3.exceptions import HTTPError

        if self._at_end:
            return b""
        try:
            data = self._response.read(size, decode_content=False)
        except (HTTPError, OSError) as error:
            self.close()
            raise problems.from_exception(error, self._host) from error
        if not data:
            self._at_end = True
        return data

    def data(self, limit: int) -> bytes:
        """Read the whole body.

        Raises:
            BudgetError: it has more than `limit` bytes.
            Interrupted: the connection was cut.
        """
        parts = []
        left = limit + 1
        while left and (data := self.read(min(left, 1 << 20))):
            parts.append(data)
            left -= len(data)
        if not left:
            self.close()
            raise BudgetError(f"{self._host} gave an answer of over {limit} bytes, which is not read")
        self.close()
        return b"".join(parts)

    def stop(self) -> None:
        """Let a read that waits in another thread see the end of the connection at once."""
        # Refused when the answer was read to its end, or has no socket.
        with contextlib.suppress(ValueError, OSError):
            self._response.shutdown()

    def close(self) -> None:
        """Let go of the connection, which is used again if the body was read or has no bytes; idempotent."""
        if not self._at_end and self._response.length_remaining == 0:
            # http.client has to see the end of nothing, too.
            self._at_end = not self._response.read(1, decode_content=False)
        if self._at_end:
            self._response.release_conn()
        else:
            self._response.close()
        self._at_end = True

    def drain(self) -> None:
        """Read what is left of a small body, so that the connection is used again; then `close`."""
        left = self.length
        try:
            while left is not None and left <= _SMALL and self.read(_SMALL):
                pass
        except problems.Interrupted:
            pass
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
