"""What a server that answers 401 wants: the challenges of WWW-Authenticate (RFC 9110 section 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER: Final = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*')
_SCHEME: Final = re.compile(rf"\s*({_TOKEN})(?:\s+|$|(?=,))")
_SEPARATORS: Final = re.compile(r"[\s,]*")
_LONGEST: Final = 16 << 10


class Challenge(NamedTuple):
    """One way to be let in: its scheme in lower case, its parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str]


def parse(values: Iterable[str]) -> list[Challenge]:
    """Read the values of the header fields; what cannot be read ends a value silently.

    >>> parse(['Bearer realm="https://a/token",service="r",scope="x:y:pull,push"'])[0].parameters["scope"]
    'x:y:pull,push'
    """
    found: list[Challenge] = []
    for value in values:
        _parse_one(value[:_LONGEST], found)
    return found


def _parse_one(text: str, found: list[Challenge]) -> None:
    at = 0
    current: dict[str, str] | None = None
    while at < len(text):
        at = _SEPARATORS.match(text, at).end()  # type: ignore[union-attr]
        parameter = _PARAMETER.match(text, at)
        if parameter is not None and current is not None:
            name, quoted, plain = parameter.groups()
            given = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            current.setdefault(name.lower(), given)
            at = parameter.end()
            continue
        scheme = _SCHEME.match(text, at)
        if scheme is None:
            return
        current = {}
        found.append(Challenge(scheme[1].lower(), current))
        at = scheme.end()
