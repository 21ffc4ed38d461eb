"""Platforms: which machine an image is for, and which of several images fits a machine best."""

from __future__ import annotations

import functools
import os as _os
import re
from typing import Any, Final

from layerfs.errors import InvalidError
from layerfs.oci.document import Members
from layerfs.value import frozen, replace

_PART: Final = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
# What `uname -m` and people say, as (architecture, variant) of Go's GOARCH and GOARM.
_ALIASES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "armv6l": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv8l": ("arm", "v8"),
    "loongarch64": ("loong64", ""),
}
_ARM64_OLDEST_OF_V9: Final = 5  # Armv9.0 has what Armv8.5 has (Arm Architecture Reference Manual)


@frozen
class Platform:
    """Operating system and machine (image-spec image-index.md, "platform").

    As the document says it; `normalized` gives the form in which platforms compare.
    """

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def host(cls) -> Platform:
        """Name this machine."""
        return cls("linux", _os.uname().machine).normalized()

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``OS/ARCHITECTURE[/VARIANT]``, or an architecture alone, as users write them.

        Raises:
            InvalidError: it is neither.
        """
        parts = text.split("/")
        if len(parts) > 3 or not all(re.fullmatch(_PART, part) for part in parts):
            raise InvalidError(f"{text[:100]!r} is not a platform", hint="write it like linux/arm64/v8")
        return cls(*(parts if len(parts) > 1 else ("linux", *parts))).normalized()

    @classmethod
    def given(cls, platform: Platform | str | None) -> Platform | None:
        """Take a platform as callers give it: itself, as `parse` reads it, or None for none in particular.

        Raises:
            InvalidError: the text is no platform.
            TypeError: it is something else.
        """
        if isinstance(platform, str):
            return cls.parse(platform)
        if not isinstance(platform, Platform | None):
            raise TypeError(f"a platform is a Platform, or text, and no {type(platform).__name__}")
        return platform

    @classmethod
    def of(cls, members: Members) -> Platform:
        """Read a document's ``platform`` object."""
        return cls(
            members.text("os"),
            members.text("architecture"),
            members.optional_text("variant") or "",
            members.optional_text("os.version") or "",
            members.texts("os.features"),
        )

    def members(self) -> dict[str, Any]:
        """Give the JSON members of a ``platform`` object."""
        found: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            found["os.version"] = self.os_version
        if self.os_features:
            found["os.features"] = list(self.os_features)
        if self.variant:
            found["variant"] = self.variant
        return found

    def normalized(self) -> Platform:
        """Give the one form of several spellings, by containerd's rules (platforms/database.go).

        ``x86_64`` is amd64, ``aarch64`` and arm64/v8 are arm64, amd64/v1 is amd64, and arm alone is arm/v7.
        """
        os = self.os.lower()
        os = {"": "linux", "macos": "darwin"}.get(os, os)
        architecture = self.architecture.lower()
        architecture, variant = _ALIASES.get(architecture, (architecture, self.variant.lower()))
        if self.variant and not variant:
            variant = self.variant.lower()
        if variant[:1].isdigit():
            variant = f"v{variant}"
        if (architecture, variant) in (("arm64", "v8"), ("arm64", "v8.0"), ("amd64", "v1")):
            variant = ""
        elif (architecture, variant) == ("arm64", "v9.0"):
            variant = "v9"
        elif (architecture, variant) == ("arm", ""):
            variant = "v7"
        return replace(self, os=os, architecture=architecture, variant=variant)

    def rank(self, offered: Platform) -> int | None:
        """Say how well an image for `offered` runs on this platform: 0 is best, None is not at all.

        An image for a smaller variant, and for the 32-bit machine in a 64-bit one, runs too, but
        less well (containerd platforms/compare.go). Every feature that it demands must be here.
        """
        wanted, other = self.normalized(), offered.normalized()
        if wanted.os != other.os or not set(other.os_features) <= set(wanted.os_features):
            return None
        if wanted.os_version and other.os_version and wanted.os_version != other.os_version:
            return None
        return _runs(wanted.architecture, wanted.variant).get((other.architecture, other.variant))

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@functools.cache
def _runs(architecture: str, variant: str) -> dict[tuple[str, str], int]:
    """Map what this machine runs to its rank."""
    order = [(architecture, variant)]
    matched = re.fullmatch(r"v([0-9]{1,2})(?:\.([0-9]{1,2}))?", variant)
    major, minor = (int(matched[1]), int(matched[2] or 0)) if matched else (0, 0)
    if architecture == "amd64":
        order += [("amd64", f"v{number}" if number > 1 else "") for number in range(major - 1, 0, -1)]
        order.append(("386", ""))
    elif architecture == "arm":
        order += [("arm", f"v{number}") for number in range(major - 1, 4, -1)]
    elif architecture == "arm64":
        if major == 9:
            order += [("arm64", f"v9.{number}" if number else "v9") for number in range(minor, -1, -1)]
            minor += _ARM64_OLDEST_OF_V9
        order += [("arm64", f"v8.{number}" if number else "") for number in range(minor, -1, -1)]
        order += [("arm", f"v{number}") for number in range(8, 4, -1)]
    ranks: dict[tuple[str, str], int] = {}
    for place, machine in enumerate(order):
        ranks.setdefault(machine, place)
    return ranks
