"""Reading JSON documents of strangers: bounded, strict about types, errors that name the path.

`load` parses; `Members` hands out members by the type that is expected. Members that nobody asks
for are ignored, and kept where a document is written again. As in Go, ``null`` means absent.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from layerfs.digest import Digest
from layerfs.errors import BudgetError, DocumentError, InvalidError

# PITFALLS, "Budgets": manifest and index size. Registries refuse more, too.
MAXIMUM_BYTES: Final = 4 << 20
_MAXIMUM_INTEGER: Final = (1 << 63) - 1


def load(raw: bytes, *, what: str) -> Members:
    """Parse a JSON object.

    Args:
        raw: the document, UTF-8 without a byte order mark.
        what: what it is, for messages, such as ``image manifest``.

    Raises:
        BudgetError: it has more than 4 MiB.
        DocumentError: it is not JSON (RFC 8259), not an object, names a member twice, has a number that is
            none, text that is no Unicode, or is nested too deep.
    """
    return Members(_expect_object(load_value(raw, what=what), ""), "")


def load_value(raw: bytes, *, what: str) -> Any:
    """Parse any JSON value, with the limits and errors of `load`."""
    if len(raw) > MAXIMUM_BYTES:
        raise BudgetError(f"{what} of {len(raw)} bytes; at most {MAXIMUM_BYTES} are read")
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
        if "\\u" in text:
            # A lone half of a surrogate pair passes the parser and could not be written again.
            json.dumps(value, ensure_ascii=False).encode()
    except DocumentError:
        raise
    except RecursionError:
        raise DocumentError("", f"{what} is nested too deep") from None
    except (ValueError, MemoryError) as error:
        raise DocumentError("", f"{what} is not valid JSON: {error}") from error
    return value


def dump(value: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Write a document: compact, UTF-8, members in the given order, so that equal values give equal bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                # Parsers differ in which of the two they take: what one verifies, another would use.
                raise DocumentError(name[:100], "this member stands twice in one object")
            seen.add(name)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value


def _expect_object(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DocumentError(path, f"an object is needed, not {_kind(value)}")
    return value


def _kind(value: object) -> str:
    for types, name in (
        (bool, "a boolean"),
        ((int, float), "a number"),
        (str, "a text"),
        (list, "a list"),
        (dict, "an object"),
    ):
        if isinstance(value, types):
            return name
    return "nothing"


class Members:
    """The members of one JSON object, and where in the document it stands.

    Every method raises DocumentError, with the path, when the member is not of the type. Those with
    ``optional`` in the name, and the lists and maps, take an absent member for None or empty.
    """

    __slots__ = ("path", "value")

    def __init__(self, value: dict[str, Any], path: str) -> None:
        self.value = value
        self.path = path

    def has(self, name: str) -> bool:
        """Say whether the member is there, and not null."""
        return self.value.get(name) is not None

    def at(self, name: str) -> str:
        """Give the path of a member, such as ``config.Labels``."""
        shown = name if name.isidentifier() else json.dumps(name[:100])
        return f"{self.path}.{shown}" if self.path else shown

    def fail(self, name: str, problem: str) -> NoReturn:
        """Refuse the document because of this member."""
        raise DocumentError(self.at(name), problem)

    def text(self, name: str) -> str:
        """Give a text that must be there."""
        found = self.optional_text(name)
        if found is None:
            self.fail(name, "is missing")
        return found

    def optional_text(self, name: str) -> str | None:
        """Give a text, None when there is none."""
        found = self.value.get(name)
        if found is not None and not isinstance(found, str):
            self.fail(name, f"a text is needed, not {_kind(found)}")
        return found

    def integer(self, name: str, *, minimum: int = 0) -> int:
        """Give a whole number that must be there, from `minimum` to 2^63-1."""
        found = self.value.get(name)
        if found is None:
            self.fail(name, "is missing")
        if not isinstance(found, int) or isinstance(found, bool):
            self.fail(name, f"a whole number is needed, not {_kind(found)}")
        if not minimum <= found <= _MAXIMUM_INTEGER:
            self.fail(name, f"a number from {minimum} to 2^63-1 is needed")
        return found

    def flag(self, name: str) -> bool:
        """Give a boolean, False when there is none."""
        found = self.value.get(name)
        if found is not None and not isinstance(found, bool):
            self.fail(name, f"true or false is needed, not {_kind(found)}")
        return bool(found)

    def digest(self, name: str) -> Digest:
        """Give a digest that must be there."""
        return self._digest(self.text(name), self.at(name))

    def digests(self, name: str) -> tuple[Digest, ...]:
        """Give a list of digests."""
        return tuple(
            self._digest(text, f"{self.at(name)}[{place}]") for place, text in enumerate(self.texts(name))
        )

    @staticmethod
    def _digest(text: str, path: str) -> Digest:
        try:
            return Digest.parse(text)
        except InvalidError as error:
            raise DocumentError(path, str(error)) from error

    def data(self, name: str) -> bytes | None:
        """Give bytes from base64 (RFC 4648 section 4), None when there are none."""
        text = self.optional_text(name)
        if text is None:
            return None
        try:
            return base64.b64decode(text.encode(), validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            raise DocumentError(self.at(name), f"not base64: {error}") from error

    def texts(self, name: str) -> tuple[str, ...]:
        """Give a list of texts."""
        found = self._list(name)
        for place, item in enumerate(found):
            if not isinstance(item, str):
                raise DocumentError(f"{self.at(name)}[{place}]", f"a text is needed, not {_kind(item)}")
        return tuple(found)

    def text_or_texts(self, name: str) -> tuple[str, ...]:
        """Give a list of texts, which old images write as a single text."""
        found = self.value.get(name)
        return (found,) if isinstance(found, str) else self.texts(name)

    def text_map(self, name: str) -> Mapping[str, str]:
        """Give a map of texts to texts."""
        found = self.value.get(name)
        if found is None:
            return {}
        below = Members(_expect_object(found, self.at(name)), self.at(name))
        return {key: below.text(key) if value is not None else "" for key, value in found.items()}

    def keys(self, name: str) -> tuple[str, ...]:
        """Give the names of an object whose values mean nothing (how Go writes a set)."""
        found = self.value.get(name)
        return () if found is None else tuple(_expect_object(found, self.at(name)))

    def members(self, name: str) -> Members:
        """Give an object that must be there."""
        found = self.optional_members(name)
        if found is None:
            self.fail(name, "is missing")
        return found

    def optional_members(self, name: str) -> Members | None:
        """Give an object, None when there is none."""
        found = self.value.get(name)
        return None if found is None else Members(_expect_object(found, self.at(name)), self.at(name))

    def each(self, name: str) -> Iterator[Members]:
        """Give the objects of a list, one by one."""
        for place, item in enumerate(self._list(name)):
            path = f"{self.at(name)}[{place}]"
            yield Members(_expect_object(item, path), path)

    def _list(self, name: str) -> list[Any]:
        found = self.value.get(name)
        if found is None:
            return []
        if not isinstance(found, list):
            self.fail(name, f"a list is needed, not {_kind(found)}")
        return found
